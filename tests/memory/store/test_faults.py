"""The store under what goes wrong: killed anywhere, on a full or read-only disk, with files torn, flipped or gone."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stores import BASE, CONFIG, digest, edit, edits, in_a_process, learn, new_folder, soak, statuses, written

from wise.errors import StoreError
from wise.memory import folder as folder_module
from wise.memory.store import failpoints
from wise.memory.store.backends import sqlite as backend_module
from wise.memory.store.backends.base import digest_of
from wise.memory.store.backends.sqlite import SqliteBackend
from wise.memory.store.edit_request import Version
from wise.memory.store.failpoints import POINTS
from wise.memory.store.journal import Journal
from wise.memory.store.store import Store

NO_DISK = ("transaction-durable", "version-collected")
"""Points at which nothing is asked of the disk."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with new_folder() as parent:
        yield parent / "store"


@contextmanager
def armed(point: str, action: str, turn: int) -> Iterator[None]:
    failpoints.passages.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(failpoints.VARIABLE, f"{point}:{action}:{turn}")
        yield


# -- killed -----------------------------------------------------------------------------------


def scenario(folder: Path, pipe: int, known: dict[int, str], seed: int) -> None:
    """Everything that a store can do, once, told as `soak.work` tells it."""

    def say(**words: Any) -> None:
        os.write(pipe, soak.json.dumps(words).encode() + b"\n")

    with Store.open(folder) as store:
        for numbers in ((1, 2), (3,)):
            tickets = store.enqueue(edits(*numbers))
            say(acknowledged=[[ticket.number, ticket.edit.to_dict()] for ticket in tickets])
            state = written(edits(*numbers), store.read().state)
            say(intended=[store.read().version + 1, digest(state)])
            known[learn(store, []).number] = digest(state)
            say(done=store.read().version)
        say(intended=[3, digest(state.without(["e1"]))])
        say(done=store.delete(["e1"]).number)
        say(intended=[4, known[1]])
        say(done=store.rollback(1).number)
        store.gc(keep=1)
    os._exit(0)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_passage_of_a_point_nothing_is_lost_or_wrong(point: str) -> None:
    for turn in range(1, 100):
        with new_folder() as parent:
            reports = soak.Reports()
            killed = soak.kill_once(parent / "store", reports, random.Random(turn), f"{point}:kill:{turn}", scenario)
            if (parent / "store" / "writer.lock").exists():
                reports.compare(parent / "store")
            assert (reports.lost, reports.wrong, reports.problems) == (0, 0, []), turn
            if not killed:
                break
    assert turn > (1 if point == "version-collected" else 2), "never passed"
    assert reports.reported == 4 and len(reports.acknowledged) == 3


@pytest.mark.slow
def test_killed_at_random_instants_nothing_is_lost_or_wrong() -> None:
    with new_folder() as parent:
        found = soak.soak(30, seed=1, named=0.3, parent=parent)
    assert (found["lost"], found["wrong"], found["otherwise"], found["problems"]) == (0, 0, 0, [])
    assert found["acknowledged"] > 10 and found["versions"] > 5, "hardly anything was done"


def kills() -> Any:
    """What kills at the first passages of the point behind a written file leave behind."""
    with new_folder() as parent:
        reports = soak.Reports()
        for turn in range(1, 5):
            soak.kill_once(parent / "store", reports, random.Random(turn), f"blob-written:kill:{turn}")
            reports.compare(parent / "store")
    return reports


def test_a_store_that_names_a_version_before_it_is_stored_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    put, add_version = SqliteBackend.put, Journal.add_version
    waiting: list[tuple[SqliteBackend, bytes]] = []

    def late(backend: SqliteBackend, data: bytes) -> str:
        waiting.append((backend, data))
        return digest_of(data)

    def early(journal: Journal, **told: Any) -> Version:
        version = add_version(journal, **told)
        while waiting:
            put(*waiting.pop(0))
        return version

    assert not kills().problems
    monkeypatch.setattr(SqliteBackend, "put", late)
    monkeypatch.setattr(Journal, "add_version", early)
    with pytest.raises(StoreError, match="is missing"):
        kills()


def test_an_answer_before_the_edit_is_durable_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(store: Store, rng: random.Random, known: Any, say: Any) -> None:
        name = f"{rng.getrandbits(64):x}"
        wanted = edit(1)
        number = len(store.journal.tickets()) + 1
        say(acknowledged=[[number, {**wanted.to_dict(), "id": name}]])
        store.enqueue([soak.Edit(**{**wanted.to_dict(), "id": name})])

    monkeypatch.setattr(soak, "ask", early)

    def hasty(folder: Path, pipe: int, known: dict[int, str], seed: int) -> None:
        store = Store.open(folder)
        rng = random.Random(seed)
        while True:
            early(store, rng, known, lambda **words: os.write(pipe, soak.json.dumps(words).encode() + b"\n"))

    with new_folder() as parent:
        reports = soak.Reports()
        soak.kill_once(parent / "store", reports, random.Random(0), "transaction-filled:kill:6", hasty)
        reports.compare(parent / "store")
    assert reports.lost == 1


def test_a_part_is_on_the_disk_before_anything_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def replaced(source: Path, target: Path) -> None:
        steps.append(("rename", source.name))
        replace(source, target)

    with Store.open(folder) as store:
        store.enqueue(edits(1))
        batch = store.claim()
        monkeypatch.setattr(folder_module.os, "fsync", synced)
        monkeypatch.setattr(folder_module.os, "replace", replaced)
        monkeypatch.setattr(backend_module, "reach", lambda point: steps.append(("reach", point)))
        store.commit(batch, written(edits(1)), parent=0, config=CONFIG, base=BASE)
        monkeypatch.undo()
        parts = store.backend.sizes()
    begun = steps.index(("reach", "transaction-begun"))
    new = [name for step, name in steps[:begun] if step == "rename"]
    assert {name.split(".")[1] for name in new} == set(parts) and len(parts) == 3
    for name in new:
        at = steps.index(("rename", name))
        assert ("sync", name) in steps[:at], "renamed before it was synced"
        assert ("sync", "blobs") in steps[at:begun], "named before its folder was synced"


# -- a disk that does not take it ---------------------------------------------------------------


def everything(store: Store) -> list[Callable[[], object]]:
    """All that changes a store, in an order in which each goes through; one may be repeated after it failed."""
    state = store.read().state

    def commit() -> None:
        batch = store.journal.tickets(status="training") or store.claim()
        made = written([ticket.edit for ticket in batch], state)
        store.commit(batch, made, parent=1, config=CONFIG, base=BASE)

    return [
        lambda: store.enqueue(edits(10), key="ten"),
        commit,
        lambda: store.delete(["e1"]),
        lambda: store.rollback(1),
        lambda: store.gc(keep=1),
    ]


@pytest.mark.parametrize("action", ["ENOSPC", "EROFS", "EIO"])
@pytest.mark.parametrize("point", [point for point in POINTS if point not in NO_DISK])
def test_an_error_of_the_disk_anywhere_changes_nothing_and_can_be_tried_again(
    folder: Path, point: str, action: str
) -> None:
    failures = 0
    with Store.open(folder) as store:
        learn(store, edits(1, 2))
        for change in everything(store):
            for turn in range(1, 20):
                before = store.journal.version(), statuses(store)
                try:
                    with armed(point, action, turn):
                        change()
                    break
                except StoreError as error:
                    failures += 1
                    assert os.strerror(getattr(__import__("errno"), action)) in str(error)
                assert store.check().problems == ()
                now = store.journal.version(), statuses(store)
                assert now == before or now[1].get("e10") == "training"
        assert digest(store.read().state) == digest(written(edits(1, 2)))
        assert statuses(store) == {"e1": "live", "e2": "live", "e10": "retired"}
    assert failures


def test_a_store_that_could_not_be_opened_can_be_opened_by_the_same_process(folder: Path) -> None:
    with Store.open(folder) as store:
        store.enqueue(edits(1))
        store.claim()
    for turn in (1, 2):  # as the tables are looked after, and as interrupted training is queued again
        with armed("transaction-begun", "ENOSPC", turn), pytest.raises(StoreError, match="No space left"):
            Store.open(folder)
    with Store.open(folder) as store:
        assert statuses(store) == {"e1": "queued"}


def test_what_is_removed_while_the_files_are_listed_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(folder) as store, Store.open(folder, writer=False) as reader:
        kept, removed = store.backend.put(b"kept"), store.backend.put(b"removed")
        listed = Path.iterdir

        def meanwhile(path: Path) -> Iterator[Path]:
            files = [*listed(path)]
            store.backend.remove([removed])
            return iter(files)

        monkeypatch.setattr(Path, "iterdir", meanwhile)
        assert reader.backend.sizes() == {kept: 4}


def test_a_limit_on_the_size_of_files_is_told_and_nothing_is_lost(folder: Path) -> None:
    with Store.open(folder) as store:
        learn(store, edits(*range(30)))
        store.enqueue(edits(100), key="k")

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with Store.open(folder, writer=False) as store, pytest.raises(StoreError, match="nothing was changed"):
            store.enqueue(edits(*range(200, 260)))

    assert in_a_process(work) == 0
    with Store.open(folder) as store:
        assert store.check().problems == () and len(store.journal.tickets()) == 31
        learn(store, [])
        assert len(store.read().state.edits) == 31


@contextmanager
def small_disk(parent: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = parent / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        (disk / "ballast").write_bytes(bytes(700_000))
        with Store.open(disk / "store") as store:
            taken = 0
            with pytest.raises(StoreError, match="nothing was changed"):
                for number in range(10_000):
                    store.enqueue(edits(number))
                    taken += 1
            assert len(store.journal.tickets()) == taken > 20
            assert store.check().problems == ()
            (disk / "ballast").unlink()
            learn(store, edits(20_000))
            assert len(store.read().state.edits) == taken + 1


def test_a_read_only_disk_can_be_read_and_says_what_it_is(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        with Store.open(disk / "store") as store:
            learn(store, edits(1))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match="Read-only file system"):
            Store.open(disk / "store")
        with Store.open(disk / "store", writer=False) as store, store.pin() as pinned:
            assert digest(pinned.state) == digest(written(edits(1)))
            assert store.check().problems == ()
            with pytest.raises(StoreError, match="nothing was changed"):
                store.enqueue(edits(2))


# -- damaged files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Iterator[tuple[Path, dict[int, str]]]:
    """A store of several versions, and what each holds. To be copied."""
    with new_folder() as parent:
        with Store.open(parent / "store") as store:
            learn(store, [edit(i, author="someone", namespace="n") for i in range(3)])
            learn(store, edits(3), without=["e1"])
            store.enqueue(edits(4))
            store.rollback(1, author="me", reason="it was better")
            digests = {number: digest(store.read(number).state) for number in (1, 2, 3)}
        yield parent / "store", digests


def served(folder: Path) -> tuple[dict[int, str], tuple[str, ...]]:
    """Digest of each version that can be read, and what a check finds, or why the store does not open."""
    try:
        with Store.open(folder, writer=False) as store:
            found = {}
            for number in (1, 2, 3):
                try:
                    found[number] = digest(store.read(number).state)
                except StoreError:
                    continue
            return found, store.check().problems
    except StoreError as error:
        return {}, (str(error),)


def torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "torn": torn,
    "emptied": lambda data: b"",
    "grown": lambda data: data + b"\0",
    "gone": lambda data: None,
    "another": lambda data: b"{}",
    **{f"flipped at {at}": lambda data, at=at: flipped(data, int(at * (len(data) - 1))) for at in (0, 0.3, 0.7, 1)},  # type: ignore[misc]
}


def flipped(data: bytes, at: int, bit: int = 4) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_found_and_never_served(
    whole: tuple[Path, dict[int, str]], tmp_path: Path, damage: str
) -> None:
    source, digests = whole
    assert served(source) == (digests, ())
    for number, part in enumerate(sorted((source / "blobs").iterdir())):
        copy = tmp_path / str(number)
        shutil.copytree(source, copy)
        new = DAMAGE[damage](part.read_bytes())
        if new is None:
            (copy / "blobs" / part.name).unlink()
        else:
            (copy / "blobs" / part.name).write_bytes(new)
        found, problems = served(copy)
        assert found.items() < digests.items(), part
        assert any(part.name[:16] in problem and "version" in problem for problem in problems)


def test_a_flipped_bit_of_the_journal_is_found_or_of_no_account(
    whole: tuple[Path, dict[int, str]], tmp_path: Path
) -> None:
    source, digests = whole
    file = tmp_path / "store" / "journal.sqlite3"
    shutil.copytree(source, tmp_path / "store")
    data = file.read_bytes()
    rows = dump(file)
    rng = random.Random(0)
    texts = [data.index(text) + 2 for text in (b"someone", b"it was better", b"training", b"prompt 2", b"here")]
    noticed = 0
    for at in (*texts, *(rng.randrange(len(data)) for _ in range(120))):
        file.write_bytes(flipped(data, at, rng.randrange(8)))
        found, problems = served(tmp_path / "store")
        assert all(digests[number] == wanted for number, wanted in found.items())
        assert problems or (found == digests and dump(file) == rows), at
        noticed += bool(problems)
    assert noticed > len(texts)


def dump(file: Path) -> list[str] | None:
    """All that a database holds; None where it cannot be read."""
    connection = sqlite3.connect(file)
    try:
        return list(connection.iterdump())
    except (sqlite3.Error, UnicodeDecodeError):
        return None
    finally:
        connection.close()


def test_a_damaged_current_version_can_be_rolled_back(folder: Path) -> None:
    with Store.open(folder) as store:
        learn(store, edits(1))
        learn(store, edits(2))
        current = store.journal.version().manifest
        wanted = digest(store.read(1).state)
    (folder / "blobs" / current).write_bytes(b"rot")
    with Store.open(folder) as store:
        with pytest.raises(StoreError, match=f"{current[:16]} is damaged"):
            store.read()
        assert len(store.check().problems) == 1
        store.rollback(1)
        assert digest(store.read().state) == wanted
        assert statuses(store) == {"e1": "live", "e2": "retired"}


def test_nothing_is_collected_while_it_is_unknown_what_is_needed(folder: Path) -> None:
    with Store.open(folder) as store:
        for number in range(3):
            learn(store, edits(number))
        file = folder / "blobs" / store.journal.version(3).manifest
        before = sorted(store.backend.sizes())
        data = file.read_bytes()
        file.write_bytes(b"rot")
        with pytest.raises(StoreError, match="is damaged"):
            store.gc(keep=1)
        assert sorted(store.backend.sizes()) == before
        file.write_bytes(data)
        assert store.gc(keep=1).versions == (1, 2)


def test_what_a_write_that_was_cut_off_left_is_told_and_collected(folder: Path) -> None:
    with Store.open(folder) as store:
        learn(store, edits(1))
        (folder / "blobs" / f"{'0' * 64}.1234.new").write_bytes(b"half")
        found = store.check()
        assert found.problems == () and found.unneeded == 1
        assert store.gc().blobs == 1 and store.check().unneeded == 0
