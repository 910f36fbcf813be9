"""A backup is a whole store of one moment, whoever writes meanwhile; a store is its owner's and has one writer."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import digest, edits, end, in_a_process, learn, new_folder, statuses, waiting, written
from waiting import until

from wise.errors import ArtifactError, StoreError
from wise.memory.store import backup as backup_module
from wise.memory.store.backends import sqlite as backend_module
from wise.memory.store.backends.base import Backend
from wise.memory.store.store import Store

NOBODY = 65534
"""The user of that name."""


@pytest.fixture
def parent() -> Iterator[Path]:
    with new_folder() as made:
        yield made


def test_a_backup_is_the_store_and_can_be_written(parent: Path) -> None:
    with Store.open(parent / "store") as store:
        learn(store, edits(1, 2))
        learn(store, edits(3), without=["e1"])
        store.enqueue(edits(4))
        store.commands.enqueue("rollback", {"version": 1}, 3600)
        done: list[tuple[str, int, int]] = []
        with Store.open(parent / "store", writer=False) as reader:
            found = reader.backup(parent / "backup", progress=lambda *at: done.append(at))
        assert found.problems == () and {name for name, *_ in done} >= {"rows", "files", "versions"}
        wanted = [digest(store.read(number).state) for number in (1, 2)]
        assert store.commands.claim() is not None
    with Store.open(parent / "backup", writer=False) as backup:
        backup.backup(parent / "restored")
    with Store.open(parent / "restored") as restored:
        assert [digest(restored.read(number).state) for number in (1, 2)] == wanted
        assert restored.commands.claim() is None, "whoever gave it waits for another store"
        learn(restored, [])
        assert statuses(restored)["e4"] == "live" and restored.check().problems == ()


def test_nothing_is_left_in_a_backup_of_commands_that_are_not_in_it(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def careless(*given: Any, **named: Any) -> sqlite3.Connection:
        """As a build of SQLite that does not overwrite what is deleted unless it is told to."""
        connection = connect(*given, **named)
        connection.execute("PRAGMA secure_delete=OFF")
        return connection

    monkeypatch.setattr(sqlite3, "connect", careless)
    with Store.open(parent / "store") as store:
        learn(store, edits(1))
        store.commands.enqueue("delete", {"reason": "known to nobody"}, 3600)
        store.backup(parent / "backup")
    said = [b"known to nobody" in (parent / name / "journal.sqlite3").read_bytes() for name in ("store", "backup")]
    assert said == [True, False]


def test_a_disk_that_does_not_take_the_copy_is_said_and_nothing_is_left(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Store.open(parent / "store") as store:
        learn(store, edits(1))
        monkeypatch.setattr(backup_module, "write_private", full)
        with pytest.raises(StoreError, match="nothing was copied: .*No space left on device; see to the disk"):
            store.backup(parent / "backup")
    assert [file.name for file in parent.iterdir()] == ["store"]


def test_nothing_is_overwritten(parent: Path) -> None:
    with Store.open(parent / "store") as store:
        learn(store, edits(1))
        store.backup(parent / "backup")
        before = sorted((parent / "backup").rglob("*"))
        (parent / "file").write_text("mine")
        for target, said in (("backup", "is there already"), ("store", "is there already")):
            with pytest.raises(StoreError, match=said):
                store.backup(parent / target)
        with pytest.raises(ArtifactError, match="is a file"):
            store.backup(parent / "file")
        assert sorted((parent / "backup").rglob("*")) == before and (parent / "file").read_text() == "mine"
        (parent / "empty").mkdir()
        store.backup(parent / "empty")


def test_what_is_not_whole_is_not_copied(parent: Path) -> None:
    with Store.open(parent / "store") as store:
        learn(store, edits(1))
        (parent / "store" / "blobs" / store.journal.version().manifest).write_bytes(b"rot")
        with pytest.raises(StoreError, match="is damaged"):
            store.backup(parent / "backup")
    assert [file.name for file in parent.iterdir()] == ["store"]


def test_versions_that_are_collected_while_they_are_copied_are_no_loss(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(parent / "store") as store, Store.open(parent / "store", writer=False) as reader:
        for number in range(4):
            learn(store, edits(number))
        get: list[int] = []
        original = type(reader.backend).get

        def collected(self: Backend, wanted: str) -> bytes:
            if self is reader.backend and not get:
                get.append(1)
                store.gc(keep=1)
            return original(self, wanted)  # type: ignore[arg-type]

        monkeypatch.setattr(type(reader.backend), "get", collected)
        assert reader.backup(parent / "backup").versions == 1
        assert get


def writing(folder: Path) -> None:
    with Store.open(folder) as store:
        for number in range(10_000):
            learn(store, edits(number))
            if number % 5 == 4:
                store.gc(keep=3)
            if number % 7 == 6:
                store.rollback(store.journal.version().number - 1)


def test_backups_while_another_process_writes_are_whole(parent: Path) -> None:
    Store.open(parent / "store").close()
    child = os.fork()
    if not child:
        try:
            writing(parent / "store")
        finally:
            os._exit(1)
    try:
        seen = 0
        for number in range(6):
            with Store.open(parent / "store", writer=False) as store:
                until(lambda since=seen: store.log(since=since, limit=1), missing="nothing is written meanwhile")
                found = store.backup(parent / str(number))
                assert found.problems == () and found.events > seen
                seen = found.events
    finally:
        end(child)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_files_are_for_their_owner_alone_whatever_the_umask(parent: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with Store.open(parent / "store") as store:
            learn(store, edits(1))
            store.check(checked=store.checked_file)
            store.backup(parent / "backup")
    finally:
        os.umask(before)
    for folder in (parent / "store", parent / "backup"):
        for path in (folder, *folder.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_older_store_is_closed_to_others_by_its_writer(parent: Path) -> None:
    with Store.open(parent / "store") as store:
        learn(store, edits(1))
    files = ("journal.sqlite3", "journal.sqlite3-journal", "writer.lock")
    for name in files:
        (parent / "store" / name).chmod(0o644)
    (parent / "store" / "blobs").chmod(0o755)
    Store.open(parent / "store").close()
    assert {stat.S_IMODE((parent / "store" / name).stat().st_mode) for name in files} == {0o600}
    assert stat.S_IMODE((parent / "store" / "blobs").stat().st_mode) == 0o700


def test_a_store_in_a_folder_that_may_not_be_listed_is_opened(parent: Path) -> None:
    """As `/srv` with mode 0711 is for the user of a service."""
    around = parent / "around"
    Store.open(around / "store").close()

    def open_as_its_owner() -> None:
        if not os.getuid():  # who may list everything
            for path in (parent, around, *around.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        around.chmod(0o311)
        with pytest.raises(PermissionError):
            next(around.iterdir())
        with Store.open(around / "store") as store:
            learn(store, edits(1))
        around.chmod(0o700)

    assert in_a_process(open_as_its_owner) == 0


# -- one writer -------------------------------------------------------------------------------


def test_a_lock_file_that_is_made_anew_admits_one_writer_and_not_two(parent: Path) -> None:
    folder = parent / "store"
    with Store.open(folder) as first:
        learn(first, edits(1))
        batch_of_first = first.enqueue(edits(2))
        (folder / "writer.lock").unlink()
        (folder / "writer.lock").touch()
        with Store.open(folder) as second:
            learn(second, [])
            for change in (
                lambda: first.claim(),
                lambda: first.delete(["e1"]),
                lambda: first.enqueue(edits(3)),
                lambda: first.fail(batch_of_first, detail={}),
            ):
                with pytest.raises(StoreError, match="another process is the writer by now"):
                    change()
            assert statuses(second) == {"e1": "live", "e2": "live"}
            assert digest(second.read().state) == digest(written(edits(1, 2)))
            assert second.check().problems == ()


@pytest.mark.parametrize("how", ["its lock was replaced", "the store was replaced"])
def test_what_is_no_writer_any_more_removes_no_file(parent: Path, how: str) -> None:
    """Files that another writer has stored, and names in its next transaction, look as if nobody needed them."""
    folder = parent / "store"
    with Store.open(folder) as first:
        learn(first, edits(1))
        if how == "its lock was replaced":
            (folder / "writer.lock").unlink()
        else:
            first.backup(parent / "backup")
            folder.rename(parent / "old")
            shutil.copytree(parent / "backup", folder)
        with Store.open(folder) as second:
            stored = second.backend.put(b"of a commit that is being made")
            with pytest.raises(StoreError, match="another process is the writer by now|was moved or replaced"):
                first.gc()
            assert second.backend.get(stored)
            assert second.gc().blobs == 1, "the writer removes it, since no commit came of it"


def test_a_lock_file_that_is_a_link_is_refused_and_its_target_stays_as_it_is(parent: Path) -> None:
    (parent / "store").mkdir()
    (parent / "mine").write_text("dear")
    (parent / "store" / "writer.lock").symlink_to(parent / "mine")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(parent / "store")
    assert (parent / "mine").read_text() == "dear"
    (parent / "store" / "writer.lock").unlink()
    Store.open(parent / "store").close()


def test_a_writer_whose_lock_file_was_removed_takes_it_again(parent: Path) -> None:
    folder = parent / "store"
    with Store.open(folder) as store:
        learn(store, edits(1))
        (folder / "writer.lock").unlink()
        with Store.open(folder, writer=False) as reader:
            assert reader.journal.version().number == 1
        learn(store, edits(2))
        with pytest.raises(StoreError, match="has a writer already"):
            Store.open(folder)
        learn(store, edits(3))
    Store.open(folder).close()


def test_a_store_that_was_put_in_the_place_of_another_is_not_written_by_its_writer(parent: Path) -> None:
    folder = parent / "store"
    with Store.open(folder) as store:
        learn(store, edits(1))
        store.backup(parent / "backup")
        learn(store, edits(2))
        folder.rename(parent / "old")
        shutil.copytree(parent / "backup", folder)
        with pytest.raises(StoreError, match="was moved or replaced"):
            learn(store, edits(3))
    with Store.open(folder) as restored:
        assert statuses(restored) == {"e1": "live"}


def test_a_reader_that_does_not_end_holds_up_the_writer_for_a_bounded_time(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "PATIENCE", 0.2)
    with Store.open(parent / "store") as store:
        learn(store, edits(1))

        def reader() -> object:
            connection = sqlite3.connect(parent / "store" / "journal.sqlite3", isolation_level=None)
            connection.execute("BEGIN")
            connection.execute("SELECT * FROM tickets").fetchall()
            return connection

        process = waiting(reader)
        try:
            with pytest.raises(StoreError, match="another process has been reading or writing it for more than"):
                store.enqueue(edits(2))
        finally:
            end(process)
        store.enqueue(edits(2))
        assert statuses(store) == {"e1": "live", "e2": "queued"}
