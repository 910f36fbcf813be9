"""Kills a store in the middle of its work, again and again, and looks whether anything was lost.

    python scripts/soak_store.py --kills 1000

A process hands in edits, commits, deletes, rolls back, collects and reads, at random, and says into a pipe what it is
about to do and what came of it. It is killed with SIGKILL: at a named point of `wise.memory.store.failpoints`, or
at a random instant. Then the store is opened anew, checked as a whole, and compared with what the process had reported:
every acknowledged edit is there, every version holds bit for bit what was committed as it, and the current one is the
last that was reported or the one that was being made. Every 50 kills begin a new store. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from wise.config import WiseConfig
from wise.edits import Edit
from wise.memory.fingerprint import Fingerprint
from wise.memory.key_space import RelationSpace
from wise.memory.slot import AnswerSlot
from wise.memory.state import MemoryState
from wise.memory.store import failpoints
from wise.memory.store.store import Store

STORE_FOR = 50
"""Kills before a new store is begun: its journal grows, and is checked as a whole each time."""
LONGEST = 0.25
"""Seconds after which a process is killed, at the most."""
F, D, R = 6, 4, 5
CONFIG = WiseConfig(mode="hybrid")
BASE = Fingerprint(
    model_type="llama", path="model.layers.1.mlp.down_proj", in_features=F, out_features=D, vocabulary=9, depth=2,
    parameters=99, dtype="float32", quantization="", digest="0" * 64, sample=(0.5,), quantized=(),
)


def _drawn(seed: str, *shape: int) -> torch.Tensor:
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


SPACE = RelationSpace(reader="none", size=R, threshold=0.7, unnamed_threshold=0.9)


def written(edits: Sequence[Edit], before: MemoryState | None = None) -> MemoryState:
    """A memory that holds `edits` after those of `before`, with values that are a function of each edit."""
    state = before or MemoryState()
    slots, keys = list(state.slots), dict(state.keys)
    for edit in edits:
        rows = 1 + len(edit.target) % 2
        slots.append(
            AnswerSlot(
                id=len(slots), edit_ids=(edit.id,), scores=(0.7,), features=F,
                values=_drawn(f"{edit.id} {edit.target}", rows, D), ids=torch.arange(rows),
                counts=torch.tensor([0, rows]),
            )
        )
        keys[edit.id] = normalize(_drawn(f"key {edit.id}", 1 + rows, R), dim=-1).half()
    return MemoryState(edits=(*state.edits, *edits), slots=tuple(slots), keys=keys, key_space=SPACE)


def digest(state: MemoryState) -> str:
    """SHA-256 of all that a memory holds, in its order."""
    state_digest = hashlib.sha256(json.dumps([edit.to_dict() for edit in state.edits]).encode())
    for slot in state.slots:
        state_digest.update(json.dumps([slot.id, slot.kind, slot.edit_ids, slot.scores]).encode())
        for name, tensor in slot.tensors().items():
            state_digest.update(name.encode() + tensor.numpy().tobytes())
    for edit_id, keys in state.keys.items():
        state_digest.update(edit_id.encode() + keys.numpy().tobytes())
    for name, tensor in (state.key_space.tensors() if state.key_space else {}).items():
        state_digest.update(name.encode() + tensor.numpy().tobytes())
    return state_digest.hexdigest()


# -- the process that is killed -----------------------------------------------------------------


def work(folder: Path | str, pipe: int, digests: dict[int, str], seed: int) -> None:
    """Works on the store until it is killed."""
    rng = random.Random(seed)

    def report(**fields: Any) -> None:
        os.write(pipe, json.dumps(fields).encode() + b"\n")

    store = Store.open(folder)
    report(opened=True)
    steps = (ask, ask, commit, commit, commit, delete, rollback, collect, look)
    while True:
        rng.choice(steps)(store, rng, digests, report)


def ask(store: Store, rng: random.Random, digests: dict[int, str], report: Any) -> None:
    edits = []
    for _ in range(rng.randint(1, 4)):
        name = f"{rng.getrandbits(64):x}"
        edits.append(Edit(id=name, prompt=f"prompt {name}", target="x" * rng.randint(1, 6)))
    tickets = store.enqueue(edits)
    report(acknowledged=[[ticket.number, ticket.edit.to_dict()] for ticket in tickets])


def commit(store: Store, rng: random.Random, digests: dict[int, str], report: Any) -> None:
    batch = store.claim(rng.randint(1, 8))
    if not batch:
        return
    current = store.read()
    dropped = [edit_id for edit_id in current.state.edit_ids if rng.random() < 0.05]
    good = [ticket.edit for ticket in batch if rng.random() < 0.8]
    state = written(good, current.state.without(dropped))
    if good or dropped:
        report(intended=[current.version + 1, digest(state)])
    outcomes = {edit.id: {"answer": edit.target} for edit in good}
    version = store.commit(batch, state, parent=current.version, config=CONFIG, base=BASE, outcomes=outcomes)
    if good or dropped:
        digests[version.number] = digest(state)
        report(done=version.number)


def delete(store: Store, rng: random.Random, digests: dict[int, str], report: Any) -> None:
    current = store.read()
    if not current.state.edits:
        return
    removed = rng.sample(current.state.edit_ids, 1)
    state = current.state.without(removed)
    report(intended=[current.version + 1, digest(state)])
    digests[store.delete(removed).number] = digest(state)
    report(done=current.version + 1)


def rollback(store: Store, rng: random.Random, digests: dict[int, str], report: Any) -> None:
    readable = [version.number for version in store.journal.versions() if not version.collected]
    if not readable or rng.random() < 0.5:
        return
    target = rng.choice(readable)
    report(intended=[readable[-1] + 1, digests[target]])
    digests[store.rollback(target).number] = digests[target]
    report(done=readable[-1] + 1)


def collect(store: Store, rng: random.Random, digests: dict[int, str], report: Any) -> None:
    store.gc(keep=rng.randint(3, 12))


def look(store: Store, rng: random.Random, digests: dict[int, str], report: Any) -> None:
    readable = [version.number for version in store.journal.versions() if not version.collected]
    for number in rng.sample(readable, min(2, len(readable))):
        store._latest = type(store._latest)(version=0)  # nothing from memory: as another process would read it
        if digest(store.read(number).state) != digests[number]:
            report(wrong=number)


# -- the process that kills and looks -----------------------------------------------------------


@dataclass(kw_only=True)
class Reports:
    """What killed processes had reported about one store."""

    acknowledged: dict[int, dict[str, Any]] = field(default_factory=dict)
    versions: dict[int, str] = field(default_factory=dict)
    """Version -> digest of what it was to hold; of one that was not reported, the last intention."""
    reported: int = 0
    lost: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, line: bytes) -> None:
        fields = json.loads(line)
        for number, edit in fields.get("acknowledged", ()):
            self.acknowledged[number] = edit
        if "intended" in fields:
            number, intended = fields["intended"]
            self.versions[number] = intended
        self.reported = max(self.reported, fields.get("done", 0))
        self.wrong += "wrong" in fields

    def compare(self, folder: Path | str) -> None:
        """Opens the store as after a crash, and holds it against what was reported."""
        with Store.open(folder) as store:
            self.problems += store.check().problems
            tickets = {ticket.number: ticket.edit.to_dict() for ticket in store.journal.tickets()}
            self.lost += sum(tickets.get(number) != edit for number, edit in self.acknowledged.items())
            current = store.journal.version().number
            self.lost += current < self.reported
            for version in store.journal.versions():
                if not version.collected:
                    self.wrong += digest(store.read(version.number).state) != self.versions.get(version.number)
            for number in [number for number in self.versions if number > current]:
                del self.versions[number]


def kill_once(folder: Path | str, reports: Reports, rng: random.Random, armed: str | None, work: Any = work) -> bool:
    """Starts a process, kills it, and hears what it reports. False where it ended in another way.

    armed: what `WISE_FAILPOINT` is to be; None kills at a random instant.
    """
    seed, delay = rng.getrandbits(32), rng.uniform(0.0, LONGEST)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            if armed is not None:
                os.environ[failpoints.VARIABLE] = armed
            work(folder, writer, dict(reports.versions), seed)
        except BaseException as error:  # a fork must not go on as its parent
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        first = pipe.readline() if armed is None else b""
        if armed is None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        lines = (first + pipe.read()).split(b"\n")[:-1]  # a line that was cut off was not said
    _, status = os.waitpid(child, 0)
    for line in lines:
        reports.add(line)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def soak(kills: int, *, seed: int, named: float, parent: Path | None) -> dict[str, Any]:
    """`kills` kills, a share `named` of them at named points; what was lost, wrong or broken, which must be nothing.

    parent: folder in which stores are made; None for the system's own for temporary files.
    """
    rng = random.Random(seed)
    points: Counter[str] = Counter()
    totals = {"kills": 0, "acknowledged": 0, "versions": 0, "lost": 0, "wrong": 0, "otherwise": 0}
    problems: list[str] = []
    while totals["kills"] < kills:
        reports = Reports()
        with tempfile.TemporaryDirectory(dir=parent) as made:
            folder = Path(made) / "store"
            for _ in range(min(STORE_FOR, kills - totals["kills"])):
                point = rng.choice(failpoints.POINTS) if rng.random() < named else None
                armed = point and f"{point}:kill:{rng.randint(1, 6)}"
                totals["otherwise"] += not kill_once(folder, reports, rng, armed)
                points[point or "any instant"] += 1
                totals["kills"] += 1
                reports.compare(folder)
        totals["acknowledged"] += len(reports.acknowledged)
        totals["versions"] += max(reports.versions, default=0)
        totals["lost"] += reports.lost
        totals["wrong"] += reports.wrong
        problems += reports.problems
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{totals['kills']} of {kills} kills")
    return totals | {"problems": problems[:20], "killed_at": dict(sorted(points.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where stores are made")
    args = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)
    result = soak(args.kills, seed=args.seed, named=0.5, parent=args.folder)
    sys.stdout.write(json.dumps(result | {"seconds": round(time.perf_counter() - start, 1)}) + "\n")
    sys.exit(1 if result["lost"] or result["wrong"] or result["otherwise"] or result["problems"] else 0)


if __name__ == "__main__":
    main()
