"""How well questions about one subject are told apart: by which reader, and by what an edit keeps of its question.

    python scripts/bench_relations.py
    python scripts/bench_relations.py --data counterfact.jsonl.xz --skip 3000 --limit 1200 --facts 150

No model is edited and none generates. Of each fact, the edit's keys are compared with its rewordings, which should
open, and with other questions about the subject, which should not. Left out, the facts are the fitting half of those
that ship.

Readers: *published*, the sentence encoder as it is downloaded, and *taught*, as it ships. Keys: the edit's question,
also the question with the answer, and also the nearest relation of the questions that ship. *Rivals*: a text that is
much nearer to another relation of the subject's kind does not open.

*Recall* is the share of rewordings that open, and of freer ones, where 5 % of the other questions do. *Others* is the
share of other questions that open where 85 % of the rewordings do. The curve is of the last row.

Two tables go to stdout as Markdown; the last line is one JSON object of the same figures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wise.cli.terminal import cell
from wise.formats.edit_file import read_records
from wise.lab.bench.benchmark_table import markdown
from wise.lab.editors.in_context import published_encoder
from wise.lab.eval.chat.facts import Fact, everyday_facts, facts_of
from wise.router.encoder import SentenceEncoder, load_encoder
from wise.router.relations import RIVAL_MARGIN, nearest_relation, rivals
from wise.router.sentences import last_sentence
from wise.router.subjects import names_of, without_names
from wise.training.router.builtin_questions import builtin_questions
from wise.training.router.calibration import relation_centres, relation_kinds
from wise.training.router.examples import stated

OTHERS_PASS, REWORDINGS_PASS = 0.05, 0.85
CURVE = [n / 20 for n in range(7, 16)]
KEYS = ("question", "+ answer", "+ relation", "+ rivals")
CLASSES = ("rewordings", "free_rewordings", "same_subject")


def published(encoder: str | None) -> SentenceEncoder:
    reader = published_encoder(encoder)
    reader.relation_centres = relation_centres(reader.read, builtin_questions())
    reader.relation_kinds = relation_kinds(builtin_questions())
    return reader


def keys(reader: SentenceEncoder, fact: Fact, kinds: int) -> Tensor:
    """`[kinds, r]` the first of `KEYS`, at most three."""
    question = without_names(fact.edit.prompt, names_of(fact.edit))
    vectors = reader.read([question, stated(question, fact.edit.target)])
    centre = reader.relation_centres[nearest_relation(vectors, reader.relation_centres)]
    return torch.cat([vectors, centre[None]])[:kinds]


def scores(reader: SentenceEncoder, facts: Sequence[Fact], kinds: int) -> dict[str, Tensor]:
    """Of each class of texts, the cosine to the nearest key, as the router takes it; -1 where a rival is nearer."""
    results: dict[str, list[float]] = {name: [] for name in CLASSES}
    for fact in facts:
        edit_keys = keys(reader, fact, kinds)
        with_rivals = KEYS[kinds - 1] == "+ rivals"
        others = reader.relation_centres[rivals(edit_keys[:2], reader)] if with_rivals else edit_keys[:0]
        for name in CLASSES:
            for text_of_fact in getattr(fact, name):
                text = without_names(text_of_fact, names_of(fact.edit))
                vectors = reader.read([text, last_sentence(text)])
                score, rival = (float((each @ vectors.T).max()) if len(each) else -1.0 for each in (edit_keys, others))
                results[name].append(score if score >= rival - RIVAL_MARGIN else -1.0)
    return {name: torch.tensor(values) for name, values in results.items()}


def share(values: Tensor, threshold: Tensor | float) -> float | None:
    return float((values >= threshold).float().mean()) if len(values) else None


def figures(scores_of: dict[str, Tensor]) -> dict[str, float | None]:
    rewordings, other = scores_of["rewordings"], scores_of["same_subject"]
    threshold = torch.quantile(other, 1 - OTHERS_PASS)
    return {
        "auroc": float((rewordings[:, None] > other[None]).float().mean()),
        "recall": share(rewordings, threshold),
        "free_recall": share(scores_of["free_rewordings"], threshold),
        "others": share(other, torch.quantile(rewordings, 1 - REWORDINGS_PASS)),
    }


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(markdown(titles, [[cell(value).plain for value in row] for row in rows]))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="records of edits; left out: the facts that ship")
    parser.add_argument("--half", default="fit", help="of the facts that ship: fit or judge (fit)")
    parser.add_argument("--skip", type=int, default=0, help="records to leave out at the start")
    parser.add_argument("--limit", type=int, help="records to read")
    parser.add_argument("--facts", type=int, default=150, help="of these, facts to ask for (150)")
    parser.add_argument("--encoder", help="folder or hub id of the encoder; left out: the installed one")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[Fact]:
    if args.data is None:
        return everyday_facts(args.half, ["known", "private"])
    limit = None if args.limit is None else args.skip + args.limit
    records = list(islice(read_records(args.data, format="auto", limit=limit), args.skip, None))
    return random.Random(0).sample(facts_of(records), min(args.facts, len(records)))


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    facts = chosen(args)
    readers: dict[str, Callable[[], SentenceEncoder]] = {
        "published": lambda: published(args.encoder),
        "taught": lambda: load_encoder(args.encoder),
    }
    rows, by_reader, result = [], dict[str, Any](), dict[str, Tensor]()
    for name, load in readers.items():
        reader = load()
        for kinds, title in enumerate(KEYS, start=1):
            sys.stderr.write(f"\r{name}, {title}: {len(facts)} facts ")
            result = scores(reader, facts, kinds)
            by_reader[f"{name}, {title}"] = measured = figures(result)
            rows.append((name, title, *measured.values()))
    sys.stderr.write("\n")
    table(("reader", "keys", "AUROC", "recall", "recall, freer", "others"), rows)
    curve = [(at, *(share(result[name], at) for name in CLASSES)) for at in CURVE]
    table(("threshold", "rewordings open", "freer ones", "other questions"), curve)
    print(json.dumps({"facts": len(facts), "readers": by_reader, "curve": curve}))


if __name__ == "__main__":
    main()
