"""What finding an edit by its key costs, and how many of the nearest are found: flat, HNSW and IVF-PQ side by side.

    python scripts/bench_keys.py
    python scripts/bench_keys.py --sizes 1000 10000

The keys are made up: a unit subject key of 256 dimensions and a unit relation key of 64
side by side, scaled to length 1. Relations lie in 400 clusters; subjects are all distinct and point anywhere, which is
as hard as keys can be to search. Three classes of queries: *edit*, an edit asked again in other words (cosine 0.8 to
its subject, 0.85 to its relation); *neighbour*, the relation of some edits asked of a subject that no edit has;
*unrelated*, neither, so that all keys are about as far.

Every kind is built over the same keys, whatever it would be chosen for; "chosen" marks what an index of that size uses.
Recall is the share of the true 1 or 10 nearest that are found. Times are CPU time of one thread where there is one
(the default), into which other work on the machine hardly enters, and else wall time; in brackets the ratio to flat.

A table goes to stdout as Markdown; its last line is one JSON object of the same figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import faiss
import torch
from torch import Tensor
from torch.nn.functional import normalize

from wise.memory.faiss_index import Kind, Sizes
from wise.memory.keys import KeyIndex

SUBJECT, RELATION, CLUSTERS = 256, 64, 400
SPREAD = 0.5
"""Length of what tells one relation key from its cluster's centre."""
NEAR_SUBJECT, NEAR_RELATION = 0.8, 0.85
NEVER = 2**62
ALWAYS: dict[Kind, Sizes] = {
    "flat": Sizes(hnsw=NEVER, ivf_pq=NEVER),
    "hnsw": Sizes(hnsw=1, ivf_pq=NEVER),
    "ivf-pq": Sizes(hnsw=1, ivf_pq=2),
}
CHANGES = 50
"""Edits added, replaced and removed one by one."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    keys: int
    kind: Kind
    chosen: bool
    fill_seconds: float
    """Taking all edits in at once."""
    matrix_seconds: float
    """Making the resident form."""
    build_seconds: float
    """The first search, which builds the index, less a later one."""
    add_milliseconds: float
    replace_milliseconds: float
    remove_milliseconds: float
    """Each of one edit."""
    lone_milliseconds: float
    """A query alone."""
    batch_milliseconds: float
    """A query among all."""
    recall: dict[str, tuple[float, float]]
    """Of each class of queries, at 1 and at 10."""


def made_up(count: int, seed: int, clusters: int = 0) -> Tensor:
    """`[count, 320]` keys. clusters: the seed of the clusters' centres."""
    centres = normalize(torch.randn(CLUSTERS, RELATION, generator=torch.Generator().manual_seed(clusters)), dim=1)
    random = torch.Generator().manual_seed(seed)
    subject = normalize(torch.randn(count, SUBJECT, generator=random), dim=1)
    own = normalize(torch.randn(count, RELATION, generator=random), dim=1)
    relation = centres[torch.randint(CLUSTERS, (count,), generator=random)] + SPREAD * own
    return normalize(torch.cat([subject, normalize(relation, dim=1)], dim=1), dim=1)


def asked_again(keys: Tensor, count: int) -> Tensor:
    """`[count, 320]` queries near to some of `keys`."""
    random = torch.Generator().manual_seed(2)
    meant = keys[torch.randint(len(keys), (count,), generator=random)]
    parts = []
    for part, cosine in zip(meant.split([SUBJECT, RELATION], dim=1), (NEAR_SUBJECT, NEAR_RELATION), strict=True):
        unit = normalize(part, dim=1)
        noise = torch.randn(unit.shape, generator=random)
        across = normalize(noise - (noise * unit).sum(dim=1, keepdim=True) * unit, dim=1)
        parts.append(cosine * unit + (1 - cosine**2) ** 0.5 * across)
    return normalize(torch.cat(parts, dim=1), dim=1)


def cost(kind: Kind, keys: Tensor, queries: dict[str, Tensor], clock: Callable[[], float]) -> Cost:
    near = queries["edit"]
    index = KeyIndex(keys.shape[1], sizes=ALWAYS[kind])
    edits = [(f"{i:08}", i, key[None]) for i, key in enumerate(keys)]
    more = [(f"more-{i}", i, key[None]) for i, key in enumerate(made_up(CHANGES, seed=4))]
    filled = timed(lambda: index.add_all(edits), clock)
    matrix = timed(index.matrix, clock)
    first = timed(lambda: index.search(near[:1]), clock)
    lone = statistics.median(timed(lambda i=i: index.search(near[i : i + 1]), clock) for i in range(len(near)))
    batch = statistics.median(timed(lambda: index.search(near), clock) for _ in range(5)) / len(near)
    recall = {name: (index.recall(asked, 1), index.recall(asked, 10)) for name, asked in queries.items()}
    added = [timed(lambda e=e: index.add(*e), clock) for e in more]
    replaced = [timed(lambda e=e: index.replace(*e), clock) for e in more]
    removed = [timed(lambda e=e: index.remove(e[0]), clock) for e in more]
    return Cost(
        keys=len(keys),
        kind=kind,
        chosen=Sizes().kind(len(keys)) == kind,
        fill_seconds=filled,
        matrix_seconds=matrix,
        build_seconds=first - lone,
        add_milliseconds=1000 * statistics.mean(added),
        replace_milliseconds=1000 * statistics.mean(replaced),
        remove_milliseconds=1000 * statistics.mean(removed),
        lone_milliseconds=1000 * lone,
        batch_milliseconds=1000 * batch,
        recall=recall,
    )


def timed(do: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    do()
    return clock() - begun


def show(costs: list[Cost]) -> None:
    head = ["keys", "kind", "fill / matrix / build, s", "a query alone, ms", "a query of many, ms"]
    head += [f"recall@1 / @10: {name}" for name in costs[0].recall] + ["add / replace / remove, ms"]
    print(f"| {' | '.join(head)} |")
    print("|" + " --- |" * len(head))
    for each in costs:
        flat = next(other for other in costs if other.keys == each.keys)
        cells = (
            f"{each.keys:,}",
            each.kind + (" (chosen)" if each.chosen else ""),
            f"{each.fill_seconds:.2f} / {each.matrix_seconds:.2f} / {each.build_seconds:.1f}",
            f"{each.lone_milliseconds:.2f} ({each.lone_milliseconds / flat.lone_milliseconds:.2f})",
            f"{each.batch_milliseconds:.2f} ({each.batch_milliseconds / flat.batch_milliseconds:.2f})",
            *(f"{first:.3f} / {ten:.3f}" for first, ten in each.recall.values()),
            f"{each.add_milliseconds:.2f} / {each.replace_milliseconds:.2f} / {each.remove_milliseconds:.2f}",
        )
        print(f"| {' | '.join(cells)} |")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [1_000, 10_000, 30_000, 60_000, 100_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="numbers of keys (1,000 to 100,000)")
    parser.add_argument("--queries", type=int, default=500, help="of each class (500)")
    parser.add_argument("--without-hnsw", action="store_true", help="whose building takes minutes from 500,000 keys on")
    parser.add_argument("--threads", type=int, default=1, help="threads of FAISS and torch (1)")
    args = parser.parse_args()
    if min(args.sizes) < 2 or min(args.queries, args.threads) < 1:
        parser.error("--queries and --threads start at 1, --sizes at 2")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    costs = []
    for size in args.sizes:
        keys = made_up(size, seed=1)
        queries = {
            "edit": asked_again(keys, args.queries),
            "neighbour": made_up(args.queries, seed=3),
            "unrelated": made_up(args.queries, seed=3, clusters=5),
        }
        kinds = [kind for kind in ALWAYS if not (kind == "hnsw" and args.without_hnsw)]
        costs += [cost(kind, keys, queries, clock) for kind in kinds]
    show(costs)
    figures = {"threads": args.threads, "queries": args.queries, "retrieval": [asdict(each) for each in costs]}
    print(json.dumps(figures, separators=(",", ":")))


if __name__ == "__main__":
    main()
