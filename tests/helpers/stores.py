"""Stores for the tests: memories by hand, whose every bit is a function of their edits, and processes of their own.

The memories are those of `scripts/soak_store.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from repository import loaded
from safetensors.torch import load_file, save_file

from wise.edits import Edit
from wise.memory.artifact import CONFIG_FILE, FORMAT, TENSORS_FILE, digest_of_json
from wise.memory.store.edit_request import Version
from wise.memory.store.store import Store

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A file system in memory, where the system has one: what these tests kill is a process and no disk."""


soak = loaded("scripts/soak_store.py")
BASE, CONFIG, written, digest = soak.BASE, soak.CONFIG, soak.written, soak.digest


@contextmanager
def new_folder() -> Iterator[Path]:
    """An empty folder, in memory where there is such."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        yield Path(folder)


def edit(number: int, target: str = "here", **fields: str) -> Edit:
    return Edit(id=f"e{number}", prompt=f"prompt {number}", target=target, **fields)


def edits(*numbers: int) -> list[Edit]:
    return [edit(number) for number in numbers]


def learn(store: Store, new: Sequence[Edit], *, failing: Sequence[str] = (), without: Sequence[str] = ()) -> Version:
    """Hands edits in, takes all that is queued into training, and commits what did not fail."""
    if new:
        store.enqueue(new)
    batch = store.claim(10_000)
    good = [ticket.edit for ticket in batch if ticket.edit.id not in failing]
    current = store.read()
    state = written(good, current.state.without(without))
    outcomes = {ticket.edit.id: {"answer": ticket.edit.target} for ticket in batch}
    return store.commit(batch, state, parent=current.version, config=CONFIG, base=BASE, outcomes=outcomes)


def statuses(store: Store) -> dict[str, str]:
    """Edit id -> status of its last ticket."""
    return {ticket.edit.id: ticket.status for ticket in store.journal.tickets()}


def seal(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a sealed JSON file, and its digest with it, as whoever made it could."""
    data = json.loads(file.read_text())
    del data["sha256"]
    change(data)
    file.write_text(json.dumps(data | {"sha256": digest_of_json(data)}))


def reseal(
    folder: Path,
    change: Callable[[dict[str, Any]], object] = lambda manifest: None,
    tensors: Callable[[dict[str, torch.Tensor]], object] | None = None,
) -> None:
    """Changes the manifest and the tensors of a saved memory, and makes all its digests fit again."""
    if tensors is not None:
        held = load_file(folder / TENSORS_FILE)
        tensors(held)
        save_file(held, folder / TENSORS_FILE, metadata={"format": FORMAT})

    def changed(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        change(manifest)

    seal(folder / CONFIG_FILE, changed)


def in_a_process(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process. 0 where it returned, 1 where it raised, -9 where it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # a fork must not go on as its parent
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def waiting(work: Callable[[], object]) -> int:
    """Starts a process that does `work` and then waits, holding what it holds. Its id; `end` kills it."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            held = work()
            os.write(writer, b"x")
            while held is not os:
                signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"x", "the process ended before it was ready"
    os.close(reader)
    return child


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
