"""A store in a folder of one machine.

    journal.sqlite3   tickets, events, versions
    blobs/SHA256      segments, key spaces and manifests, each under the SHA-256 of its bytes
    writer.lock       held by the one writer, and says who that is

Bytes are written to a temporary name, synced and renamed, and the folder is synced; only then does a transaction name
them, so a file in `blobs` is never half written. Rows are in SQLite with `synchronous=FULL` and a rollback journal,
since SQLite before 3.51.3 can corrupt a write-ahead log; the journal file persists, since a deleted one may come back
after a power cut and undo the last commit. The folder must be on a local disk of a POSIX system: the locks of network
file systems are not reliable. Files are for their owner alone, since they hold what edits say; what is deleted from a
file is overwritten.

The writer is the process that has locked the file which is called `writer.lock`. If that file is removed or replaced,
its process notices in its next transaction, before anything is written, and is no longer the writer.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any

from wise.errors import MissingError, StoreError
from wise.memory.folder import replaced_file, synced
from wise.memory.store.backends.base import Backend, Execute, Scan, digest_of, held_up, lost_blob, verified_blob
from wise.memory.store.backends.migrations import all_statements, opening
from wise.memory.store.failpoints import reach
from wise.memory.store.locks import SharedLocks, exclusive_lock, identity, unlocked

JOURNAL_FILE = "journal.sqlite3"
UNDO_FILE = f"{JOURNAL_FILE}-journal"
"""What SQLite keeps of a transaction until it is committed."""
BLOBS = "blobs"
LOCK_FILE = "writer.lock"
PATIENCE = 10.0
"""Seconds to wait for another process to end its transaction, of reading or of writing."""


class SqliteBackend(Backend):
    def __init__(self, folder: Path, *, writer: bool, create: bool = True) -> None:
        """Makes the store where there is none and both `writer` and `create` are set.

        Raises StoreError where another process is its writer, there is no store, or the folder holds something else.
        """
        self.place, self.writer = str(folder), writer
        self._folder, self._blobs = folder, folder / BLOBS
        self._may_create = writer and create
        self._guard = RLock()
        self._holds = SharedLocks()
        self._writer_handle: int | None = None
        self._rows_file: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        with opening(self), self._store_errors("cannot be opened"):
            self._check_folder()
            if writer:
                self._claim()
            self._connection = self._connect()

    def _check_folder(self) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise StoreError(f"{self.place} is a file; give the folder of a store")
        names = {file.name for file in self._folder.iterdir()} if self._folder.is_dir() else set()
        if not names & {LOCK_FILE, JOURNAL_FILE} and (names or not self._may_create):
            what = f"holds {', '.join(sorted(names)[:4])}" if names else "holds nothing"
            kind = StoreError if names else MissingError
            raise kind(f"{self.place} {what} and is no store; give the folder of a store, or a new one")

    def _claim(self) -> None:
        make_private(self._folder)
        file = self._folder / LOCK_FILE
        self._writer_handle = exclusive_lock(file)
        if self._writer_handle is None:
            raise StoreError(
                f"{self.place} has a writer already ({file.read_text().strip() or 'it does not say who'}); end it, or "
                "open the store with writer=False to read and to hand in edits"
            )
        os.ftruncate(self._writer_handle, 0)
        os.pwrite(self._writer_handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        make_private(self._blobs)
        for name, mode in ((BLOBS, 0o700), (LOCK_FILE, 0o600), (JOURNAL_FILE, 0o600), (UNDO_FILE, 0o600)):
            with suppress(FileNotFoundError, PermissionError):
                (self._folder / name).chmod(mode)
        synced(self._folder)
        with suppress(PermissionError):  # who may not list it has not made the store in it just now
            synced(self._folder.parent)

    def _connect(self) -> sqlite3.Connection:
        file = self._folder / JOURNAL_FILE
        if not self._may_create and not file.is_file():
            is_new = not (self._blobs.is_dir() and any(self._blobs.iterdir()))  # its maker was interrupted
            kind = MissingError if is_new else StoreError
            raise kind(f"{self.place} has no {JOURNAL_FILE}; open it once as its writer, or restore a backup")
        if not file.exists():  # SQLite would make one for everybody
            file.touch(0o600)
            file.chmod(0o600)
        connection = sqlite3.connect(file, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.text_factory = _text
        self._rows_file = identity(file)
        for setting in ("secure_delete=ON", "synchronous=FULL", "journal_mode=PERSIST"):
            connection.execute(f"PRAGMA {setting}")
        return connection

    # -- rows -----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._guard, self._store_errors("could not be written, and nothing was changed"):
            connection = self._open
            connection.execute("BEGIN IMMEDIATE")
            try:
                reach("transaction-begun")
                self._check_in_place()
                yield self._execute
                reach("transaction-filled")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            reach("transaction-durable")

    def _check_in_place(self) -> None:
        """Raises StoreError if the store was moved or replaced, or another process may be its writer."""
        if identity(self._folder / JOURNAL_FILE) != self._rows_file:
            raise StoreError(f"{self.place}: {JOURNAL_FILE} was moved or replaced by another; open the store again")
        lock = self._folder / LOCK_FILE
        if self._writer_handle is None or identity(self._writer_handle) == identity(lock):
            return
        if not lock.exists():
            again = exclusive_lock(lock, new=True)
            if again is not None:
                os.close(self._writer_handle)
                self._writer_handle = again
                return
        self.is_lost = True
        raise StoreError(
            f"{self.place}: {LOCK_FILE} was removed or replaced, and another process is the writer by now; this one "
            "writes no more: open the store again"
        )

    @contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._guard, self._store_errors("could not be read"):
            connection = self._open
            connection.execute("BEGIN")
            try:
                yield self._execute
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def snapshot(self) -> Iterator[Scan]:
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as copy:
            with self._guard, self._store_errors("could not be read"):
                self._copy_rows(copy)
            copy.text_factory = _text

            def scan(statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
                with self._store_errors("could not be read"):
                    yield from copy.execute(statement, values)

            yield scan

    def _copy_rows(self, copy: sqlite3.Connection) -> None:
        """In one step, in which no process writes."""

        def step(status: int, remaining: int, total: int) -> None:
            if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):  # it would be tried without an end
                raise held_up(self.place, "could not be read", PATIENCE)

        self._open.backup(copy, progress=step)

    def copy_rows(self, file: Path) -> None:
        """Makes a database of all rows as they are now: of one moment, while other processes write."""
        file.touch(0o600, exist_ok=False)
        with self._guard, self._store_errors("could not be copied"), closing(sqlite3.connect(file)) as copy:
            self._copy_rows(copy)

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.place} was closed; open it again")
        return self._connection

    def _execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._open.execute(statement, values).fetchall()

    def faults(self, scan: Scan) -> list[str]:
        """What SQLite finds, and tables and indexes that are not exactly those which the migrations make."""
        tables = "SELECT type, name, tbl_name, sql FROM sqlite_master"
        try:
            faults = [str(text) for (text,) in scan("PRAGMA integrity_check") if text != "ok"]
            rows = {tuple(map(str, row)) for row in scan(tables)}
        except StoreError as error:
            return [str(error)]
        with closing(sqlite3.connect(":memory:")) as fresh:
            for statement in all_statements():
                fresh.execute(statement)
            wanted = {tuple(map(str, row)) for row in fresh.execute(tables)}
        faults += [f"a table or an index was altered: {' '.join(row)!r:.120}" for row in sorted(rows - wanted)]
        return faults + [f"a table or an index is missing: {' '.join(row):.120}" for row in sorted(wanted - rows)]

    # -- bytes ----------------------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        path = self._blobs / digest
        with self._store_errors("could not be written, and nothing was changed"):
            if not (path.is_file() and digest_of(path.read_bytes()) == digest):
                self._write(path, data)
            synced(self._blobs)
            reach("blob-in-place")
        return digest

    def _write(self, path: Path, data: bytes) -> None:
        with replaced_file(path) as new:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(data)
                stream.flush()
                reach("blob-written")
                os.fsync(stream.fileno())
            reach("blob-synced")
        reach("blob-renamed")

    def get(self, digest: str) -> bytes:
        with self._store_errors("could not be read"):
            try:
                data = (self._blobs / digest).read_bytes()
            except FileNotFoundError:
                raise lost_blob(digest, self.place) from None
        return verified_blob(data, digest, self.place)

    def sizes(self) -> dict[str, int]:
        sizes = {}
        with self._store_errors("could not be read"):
            for file in self._blobs.iterdir():
                with suppress(FileNotFoundError):  # the writer removes and renames files meanwhile
                    sizes[file.name] = file.stat().st_size
        return sizes

    def remove(self, digests: Iterable[str]) -> None:
        """In a transaction, which only the writer of the store that is in this place begins."""
        with self.transaction(), self._store_errors("could not be tidied up"):
            for digest in digests:
                (self._blobs / digest).unlink(missing_ok=True)
                reach("blob-removed")
            synced(self._blobs)

    # -- locks ----------------------------------------------------------------------------------

    def hold(self, digest: str) -> None:
        with self._store_errors("could not be read"):
            if not self._holds.hold(self._blobs / digest):
                raise lost_blob(digest, self.place)

    def release(self, digest: str) -> None:
        self._holds.release(self._blobs / digest)

    def unheld(self, digest: str) -> AbstractContextManager[bool]:
        return unlocked(self._blobs / digest)

    def scrub(self) -> None:
        """Writes the database anew, then cuts off what the last transactions left in their file."""
        with self._guard, self._store_errors("could not be scrubbed; do it again"):
            connection = self._open
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("VACUUM")
            connection.execute("BEGIN IMMEDIATE")  # so that no process uses the file
            try:
                with open(self._folder / UNDO_FILE, "r+b") as file:
                    file.truncate()
                    os.fsync(file.fileno())
            finally:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        with self._guard:
            self.is_lost = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._holds.release_all()
            if self._writer_handle is not None:
                os.close(self._writer_handle)
                self._writer_handle = None

    @contextmanager
    def _store_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # the last of a message that repeats bad bytes
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise held_up(self.place, what, PATIENCE) from error
            raise StoreError(f"{self.place} {what}: {error}; see to the disk, then try again") from error


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def make_private(folder: Path) -> None:
    """Makes a folder for its owner alone, whatever the umask; one that is there stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
