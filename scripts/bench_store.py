"""What a store costs: milliseconds to take an edit in, to commit a batch or a lone edit, and to read a version.

    python scripts/bench_store.py --edits 100 1000 10000 --folder /some/disk
    python scripts/bench_store.py --tickets 1000 100000      # only what a long journal costs, in CPU time

Edits of mode `hybrid`: values of 256 numbers for four tokens of an answer in either form, and four keys of 128 numbers
each. Every figure is the median of several; the time of the disk is in them, so its time for one synced write stands
beside. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from wise.config import WiseConfig
from wise.edits import Edit
from wise.memory.fingerprint import Fingerprint
from wise.memory.key_space import RelationSpace
from wise.memory.slot import FORMS, AnswerSlot
from wise.memory.state import MemoryState
from wise.memory.store.store import Store

D, F, RELATION, KEYS, TOKENS = 256, 704, 128, 4, 4
BATCH, TIMES = 64, 7
CONFIG = WiseConfig(mode="hybrid")
BASE = Fingerprint(
    model_type="llama", path="model.layers.4.mlp.down_proj", in_features=F, out_features=D, vocabulary=4096, depth=6,
    parameters=7_000_000, dtype="float32", quantization="", digest="0" * 64, sample=(0.5,), quantized=(),
)
EMPTY = MemoryState(key_space=RelationSpace(reader="drawn", size=RELATION, threshold=0.7, unnamed_threshold=0.85))


def drawn_edits(first: int, count: int) -> list[Edit]:
    names = range(first, first + count)
    return [
        Edit(id=f"edit-{i}", prompt=f"The capital of country {i} is", target=f"city {i}", subject=f"country {i}")
        for i in names
    ]


def written(state: MemoryState, edits: Sequence[Edit]) -> MemoryState:
    first = len(state.slots)
    slots = [
        AnswerSlot(
            id=first + i, edit_ids=(edit.id,), scores=(0.7,), features=F, values=torch.randn(FORMS * TOKENS, D),
            ids=torch.randint(BASE.vocabulary, (FORMS * TOKENS,)), counts=torch.full((FORMS,), TOKENS),
        )
        for i, edit in enumerate(edits)
    ]
    keys = {edit.id: normalize(torch.randn(KEYS, RELATION), dim=-1).half() for edit in edits}
    return replace(state, edits=(*state.edits, *edits), slots=(*state.slots, *slots), keys={**state.keys, **keys})


def learn(store: Store, edits: Sequence[Edit]) -> tuple[float, float]:
    """Milliseconds of the commit alone: by the clock, and of the CPU."""
    store.enqueue(edits)
    batch, current = store.claim(len(edits)), store.read()
    state = written(current.state if current.version else EMPTY, [ticket.edit for ticket in batch])
    start, start_cpu = time.perf_counter(), time.process_time()
    store.commit(batch, state, parent=current.version, config=CONFIG, base=BASE)
    return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - start_cpu)


def took(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def synced_write(folder: Path) -> float:
    def write() -> None:
        with (folder / "probe").open("ab") as stream:
            stream.write(b"x")
            stream.flush()
            os.fsync(stream.fileno())

    return statistics.median(took(write) for _ in range(TIMES))


def measure(folder: Path, count: int) -> dict[str, Any]:
    with Store.open(folder / "store") as store:
        for first in range(0, count, BATCH):
            learn(store, drawn_edits(first, min(BATCH, count - first)))
        new = count
        acknowledged, batches, lone, sizes = [], [], [], []
        for _ in range(TIMES):
            acknowledged.append(took(lambda first=new: store.enqueue(drawn_edits(10**6 + first, 1))))  # type: ignore[misc]
            store.delete([f"edit-{10**6 + new}"])
            before = store.backend.sizes()
            batches.append(learn(store, drawn_edits(new, BATCH)))
            manifest = store.journal.version().manifest
            after = store.backend.sizes()
            sizes.append(sum(size for part, size in after.items() if part not in before) - after[manifest])
            lone.append(learn(store, drawn_edits(new + BATCH, 1)))
            new += BATCH + 1
        segments = store.read().manifest
        manifest_bytes = after[manifest]
    with Store.open(folder / "store", writer=False) as store:
        reading = took(store.read)
        cpu = time.process_time()
        checking = took(store.check)
        checking_cpu = 1000 * (time.process_time() - cpu)
    return {
        "edits": count,
        "acknowledge_ms": statistics.median(acknowledged),
        "commit_64_ms": statistics.median(wall for wall, _ in batches),
        "commit_64_cpu_ms": statistics.median(cpu for _, cpu in batches),
        "commit_1_ms": statistics.median(wall for wall, _ in lone),
        "commit_1_cpu_ms": statistics.median(cpu for _, cpu in lone),
        "commit_64_new_bytes": statistics.median(sizes),
        "manifest_bytes": manifest_bytes,
        "segments": len(segments.segments) if segments else 0,
        "read_ms": reading,
        "check_ms": checking,
        "check_cpu_ms": checking_cpu,
    }


def measure_journal(folder: Path, count: int) -> dict[str, Any]:
    """Milliseconds of CPU that a journal of `count` tickets costs: ten lines of its log, and checks of it."""

    def spent(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return 1000 * (time.process_time() - start)

    with Store.open(folder / "store") as store:
        for first in range(0, count, 1000):
            store.enqueue(drawn_edits(first, min(1000, count - first)))
    with Store.open(folder / "store", writer=False) as store:
        def log() -> None:
            events = store.journal.events(limit=10)
            store.journal.tickets(numbers=[event.ticket for event in events if event.ticket])
            store.journal.counts()

        figures = {"tickets": count, "log_10_ms": statistics.median(spent(log) for _ in range(TIMES))}
        figures["check_complete_ms"] = spent(store.check)
        store.check(checked=store.checked_file)
        figures["check_again_ms"] = spent(lambda: store.check(checked=store.checked_file))
        store.enqueue(drawn_edits(10**6, 1))
        figures["check_after_one_ms"] = spent(lambda: store.check(checked=store.checked_file))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--tickets", type=int, nargs="+", default=[], help="measure journals of these instead")
    parser.add_argument("--folder", type=Path, default=None, help="where stores are made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = []
    for count in args.tickets or args.edits:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            if args.tickets:
                result = measure_journal(Path(folder), count)
            else:
                result = measure(Path(folder), count) | {"synced_write_ms": synced_write(Path(folder))}
        figures.append({name: round(value, 2) for name, value in result.items()})
        sys.stdout.write("  ".join(f"{name} {value}" for name, value in figures[-1].items()) + "\n")
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
