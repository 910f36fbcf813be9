"""A store in a folder of one machine.

    journal.sqlite3   tickets, events, versions
    blobs/SHA256      segments, key spaces and manifests, each under the SHA-256 of its bytes
    writer.lock       held by the one writer, and says who that is

Bytes: written beside their place, synced, renamed, folder synced; only then does a transaction name them. A name in
`blobs` is therefore whole or rotten, and never half written. Rows: SQLite with `synchronous=FULL` and a rollback
journal, since a write-ahead log can be corrupted by SQLite before 3.51.3; the journal persists, since one that is
deleted may come back after a power cut and undo the last commit. Only local disks of POSIX systems: the locks of
network file systems cannot be relied on.
"""

from __future__ import annotations

import os
import secrets
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from wise.errors import StoreError
from wise.memory.folder import synced
from wise.memory.store.backends.base import Backend, Execute, digest_of, lost, verified
from wise.memory.store.backends.migrations import create, opening
from wise.memory.store.failpoints import reach
from wise.memory.store.locks import Holds, claimed, free

JOURNAL_FILE = "journal.sqlite3"
BLOBS = "blobs"
LOCK_FILE = "writer.lock"
PATIENCE = 30.0
"""Seconds to wait for another process to end its transaction."""


class SqliteBackend(Backend):
    """See the head of this file."""

    def __init__(self, folder: Path, *, writer: bool) -> None:
        """Makes the store where there is none and `writer` is set.

        Raises StoreError where another process is its writer, there is no store, or the folder holds something else.
        """
        self.place, self.writer = str(folder), writer
        self._folder, self._blobs = folder, folder / BLOBS
        self._guard = RLock()
        self._holds = Holds()
        self._writer_handle: int | None = None
        self._connection: sqlite3.Connection | None = None
        with opening(self), self._told("cannot be opened"):
            self._check_folder()
            if writer:
                self._claim()
            self._connection = self._connect()

    def _check_folder(self) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise StoreError(f"{self.place} is a file; give the folder of a store")
        found = {file.name for file in self._folder.iterdir()} if self._folder.is_dir() else set()
        if LOCK_FILE not in found and (found or not self.writer):
            what = f"holds {', '.join(sorted(found)[:4])}" if found else "holds nothing"
            raise StoreError(f"{self.place} {what} and is no store; give the folder of a store, or a new one")

    def _claim(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / LOCK_FILE
        self._writer_handle = claimed(file)
        if self._writer_handle is None:
            raise StoreError(
                f"{self.place} has a writer already ({file.read_text().strip() or 'it does not say who'}); end it, or "
                "open the store with writer=False to read and to hand in edits"
            )
        os.ftruncate(self._writer_handle, 0)
        os.pwrite(self._writer_handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._blobs.mkdir(exist_ok=True)
        for folder in (self._folder, self._folder.parent):
            synced(folder)

    def _connect(self) -> sqlite3.Connection:
        file = self._folder / JOURNAL_FILE
        if not self.writer and not file.is_file():
            raise StoreError(f"{self.place} has no {JOURNAL_FILE}; open it once as its writer, or restore a backup")
        connection = sqlite3.connect(file, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA journal_mode=PERSIST")
        return connection

    # -- rows -----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._guard, self._told("could not be written, and nothing was changed"):
            connection = self._open
            connection.execute("BEGIN IMMEDIATE")
            try:
                reach("transaction-begun")
                yield self._execute
                reach("transaction-filled")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            reach("transaction-durable")

    @contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._guard, self._told("could not be read"):
            connection = self._open
            connection.execute("BEGIN")
            try:
                yield self._execute
            finally:
                connection.execute("ROLLBACK")

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.place} was closed; open it again")
        return self._connection

    def _execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._open.execute(statement, values).fetchall()

    def faults(self) -> list[str]:
        """What SQLite finds, and tables that are not those which the migrations make."""
        tables = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
        try:
            with self.reading() as execute:
                found = [text for (text,) in execute("PRAGMA integrity_check") if text != "ok"]
                rows = execute(tables)
        except StoreError as error:
            return [str(error)]
        with closing(sqlite3.connect(":memory:")) as fresh:
            create(lambda statement, *values: fresh.execute(statement, values).fetchall())
            wanted = fresh.execute(tables).fetchall()
        return found + [f"a table or an index was altered: {text:.80}" for (text,) in rows if (text,) not in wanted]

    # -- bytes ----------------------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        path = self._blobs / digest
        with self._told("could not be written, and nothing was changed"):
            if not (path.is_file() and digest_of(path.read_bytes()) == digest):
                self._write(path, data)
            synced(self._blobs)
            reach("blob-in-place")
        return digest

    def _write(self, path: Path, data: bytes) -> None:
        new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
        try:
            with new.open("xb") as stream:
                stream.write(data)
                stream.flush()
                reach("blob-written")
                os.fsync(stream.fileno())
            reach("blob-synced")
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        reach("blob-renamed")

    def get(self, digest: str) -> bytes:
        with self._told("could not be read"):
            try:
                data = (self._blobs / digest).read_bytes()
            except FileNotFoundError:
                raise lost(digest, self.place) from None
        return verified(data, digest, self.place)

    def sizes(self) -> dict[str, int]:
        with self._told("could not be read"):
            return {file.name: file.stat().st_size for file in self._blobs.iterdir()}

    def remove(self, digests: Iterable[str]) -> None:
        with self._told("could not be tidied up"):
            for digest in digests:
                (self._blobs / digest).unlink(missing_ok=True)
                reach("blob-removed")
            synced(self._blobs)

    # -- locks ----------------------------------------------------------------------------------

    def hold(self, digest: str) -> None:
        with self._told("could not be read"):
            if not self._holds.hold(self._blobs / digest):
                raise lost(digest, self.place)

    def release(self, digest: str) -> None:
        self._holds.release(self._blobs / digest)

    @contextmanager
    def unheld(self, digest: str) -> Iterator[bool]:
        with free(self._blobs / digest) as unheld:
            yield unheld

    def close(self) -> None:
        with self._guard:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._holds.release_all()
            if self._writer_handle is not None:
                os.close(self._writer_handle)
                self._writer_handle = None

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Says what the disk or the database said as a StoreError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.place} {what}: {error}; see to the disk, then try again") from error
