"""A store in a PostgreSQL database, for replicas on several machines: everything in its schema `wise`.

Rows are in the tables of the journal, bytes in a table of their own. The writer, transactions and holds are advisory
locks, which the server releases when a session ends, however it ends. The writer's lock and its transactions belong to
one session: when that is lost nothing can be written any more, so there are never two writers. A reader whose session
is lost begins another one with its next call.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any

from wise.errors import ConfigError, MissingError, StoreError
from wise.memory.store.backends.base import (
    Backend,
    Execute,
    Scan,
    closed_on_error,
    digest_of,
    held_up,
    lost_blob,
    verified_blob,
)
from wise.memory.store.backends.migrations import all_statements, opening
from wise.memory.store.failpoints import reach
from wise.safe_text import redacted

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger(__name__)

_PREPARE = (
    "CREATE SCHEMA IF NOT EXISTS wise",
    "CREATE TABLE IF NOT EXISTS wise.blobs (digest TEXT PRIMARY KEY, data BYTEA NOT NULL)",
)
_WRITER, _TRANSACTION = 7_165_001, 7_165_002
"""Advisory locks: of the one writer, and of the process that is writing rows."""
_MADE = re.compile(r"CREATE (?:TABLE|UNIQUE INDEX|INDEX)(?: IF NOT EXISTS)? (\w+)")
_SAID = {
    "tickets": ("edit", "reason", "key", "verified"), "events": ("author", "detail"), "versions": ("author", "reason"),
    "commands": ("arguments", "answer"), "blobs": ("data",),
}
"""By table, the columns that hold what users say. The server samples no values of them for its planner: it would keep
them in its catalogue, where an erasure does not reach."""
_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""Both ends notice within a minute that the other machine is gone without a word; by default it takes them hours, in
which the server keeps the locks of a writer that is gone. Seconds, and milliseconds. A URL may say otherwise of its own
end."""
_LOCK_TIMEOUT = "55P03"
"""What the server calls a lock that it waited for too long."""
PATIENCE = 2.0
"""Seconds to wait for a writer to end: the server notices the end of a process that was killed a little later."""
LOCK_PATIENCE = 10.0
"""Seconds to wait for another session to end its transaction."""
FROZEN = 300.0
"""Seconds after which the server ends a session that does nothing within a transaction that writes: its process may
be stopped or out of reach, and no other process can write. An erasure from a long journal works for many of them."""
_OLDER = (
    "SELECT virtualxid FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'virtualxid' AND pid <> "
    "pg_backend_pid() AND datname = current_database() AND backend_type IS DISTINCT FROM 'autovacuum worker'"
)
"""The transactions of other sessions that may still see rows which were changed or removed meanwhile."""


class PostgresBackend(Backend):
    def __init__(self, url: str, *, writer: bool, create: bool) -> None:
        """Makes the tables where there are none and both `writer` and `create` are set.

        Raises StoreError where another session is the writer, there is no store, or the server cannot be reached;
        ConfigError where psycopg is not installed.
        """
        try:
            import psycopg
        except ImportError:
            raise ConfigError("a store at a URL needs psycopg: pip install 'wise-runtime[postgres]'") from None
        self._error, self._url = psycopg.Error, url
        self.writer = writer
        self._guard = RLock()
        self._collecting = RLock()
        """Held while this session may remove what it locked, since it could lock that a second time. Taken before the
        guard, which is free meanwhile: another thread that waits for it may hold what the collector waits for."""
        self._connection: psycopg.Connection[Any] | None = None
        self.place = "the database"
        with opening(self), self._store_errors("cannot be opened"):
            self._connection = self._connect()
            info = self._connection.info
            self.place = f"the database {info.dbname} at {info.host}:{info.port}"
            may_create = writer and create
            if not may_create and not self._scalar("SELECT to_regclass('wise.migrations') IS NOT NULL"):
                raise MissingError(f"{self.place} holds no store; open it once as its writer")
            if writer:
                self._claim()
        if writer:
            with closed_on_error(self):
                self._end_sampling()

    def _connect(self) -> psycopg.Connection[Any]:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        wanted = make_conninfo("", **{**_KEEPALIVES, **conninfo_to_dict(self._url)})
        connection = psycopg.connect(wanted, autocommit=True)
        for name, value in _KEEPALIVES.items():
            connection.execute(f"SET {name.replace('keepalives', 'tcp_keepalives')} TO {value}".encode())
        connection.execute("SET search_path TO wise")
        # A transaction waits for its lock first, and must then see what was committed meanwhile.
        connection.execute("SET default_transaction_isolation TO 'read committed'")
        connection.execute("SET synchronous_commit TO on")
        connection.execute(f"SET lock_timeout TO '{LOCK_PATIENCE}s'".encode())
        return connection

    def _end_sampling(self) -> None:
        sampled = (
            "SELECT count(*) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s AND attstattarget IS "
            "DISTINCT FROM 0"
        )
        with self._guard, self._store_errors("cannot be opened"):
            for table, column in ((table, column) for table, columns in _SAID.items() for column in columns):
                if self._scalar(sampled, f"wise.{table}", column):
                    alter = f"ALTER TABLE wise.{table} ALTER COLUMN {column} SET STATISTICS 0"
                    self._open.execute(alter.encode())

    def _claim(self) -> None:
        start = time.monotonic()
        while not self._scalar("SELECT pg_try_advisory_lock(%s)", _WRITER):
            if time.monotonic() - start < PATIENCE:
                time.sleep(0.05)
                continue
            raise StoreError(
                f"{self.place} has a writer already (a session with advisory lock {_WRITER}); end it, or open the "
                "store with writer=False to read and to hand in edits"
            )
        for statement in _PREPARE:
            self._open.execute(statement.encode())

    @property
    def _open(self) -> psycopg.Connection[Any]:
        """The session; for a reader whose session was lost, another one."""
        if self._connection is None:
            raise StoreError(f"{self.place} was closed; open it again")
        if self._connection.closed and not self.writer:
            self._connection = self._connect()
        return self._connection

    def _scalar(self, statement: str, *values: Any) -> Any:
        rows = self._open.execute(statement.encode(), values).fetchall()
        return rows[0][0] if rows else None

    # -- rows -----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._guard, self._store_errors("could not be written, and nothing was changed"):
            connection = self._open
            with connection.transaction():
                connection.execute(f"SET LOCAL idle_in_transaction_session_timeout TO '{FROZEN}s'".encode())
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_TRANSACTION,))
                reach("transaction-begun")
                yield partial(_execute, connection)
                reach("transaction-filled")
            reach("transaction-durable")

    @contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._guard, self._store_errors("could not be read"):
            connection = self._open
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                yield partial(_execute, connection)

    @contextmanager
    def snapshot(self) -> Iterator[Scan]:
        with self.reading() as execute:
            yield lambda statement, *values: iter(execute(statement, *values))

    def faults(self, scan: Scan) -> list[str]:
        """Tables and indexes that are missing; a server looks after its own files."""
        wanted = {match[1] for text in all_statements() if (match := _MADE.match(text))}
        rows = scan("SELECT relname FROM pg_class WHERE relnamespace = 'wise'::regnamespace")
        return [f"a table or an index is missing: {name}" for name in sorted(wanted - {name for (name,) in rows})]

    # -- bytes ----------------------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        with self._guard, self._store_errors("could not be written, and nothing was changed"):
            reach("blob-written")
            self._open.execute(
                b"INSERT INTO wise.blobs (digest, data) VALUES (%s, %s) "
                b"ON CONFLICT (digest) DO UPDATE SET data = EXCLUDED.data WHERE wise.blobs.data <> EXCLUDED.data",
                (digest, data),
            )
            reach("blob-in-place")
        return digest

    def get(self, digest: str) -> bytes:
        with self._guard, self._store_errors("could not be read"):
            data = self._scalar("SELECT data FROM wise.blobs WHERE digest = %s", digest)
        if data is None:
            raise lost_blob(digest, self.place)
        return verified_blob(bytes(data), digest, self.place)

    def sizes(self) -> dict[str, int]:
        with self._guard, self._store_errors("could not be read"):
            return dict(self._open.execute(b"SELECT digest, length(data) FROM wise.blobs").fetchall())

    def remove(self, digests: Iterable[str]) -> None:
        with self._guard, self._store_errors("could not be tidied up"):
            for digest in digests:
                self._open.execute(b"DELETE FROM wise.blobs WHERE digest = %s", (digest,))
                reach("blob-removed")

    # -- locks ----------------------------------------------------------------------------------

    def hold(self, digest: str) -> None:
        with self._collecting, self._guard, self._store_errors("could not be read"):
            self._scalar("SELECT pg_advisory_lock_shared(%s)", _number(digest))
            if not self._scalar("SELECT count(*) FROM wise.blobs WHERE digest = %s", digest):
                self.release(digest)
                raise lost_blob(digest, self.place)

    def release(self, digest: str) -> None:
        with self._guard:
            if self._connection is not None and not self._connection.closed:  # a session that ended holds nothing
                with self._store_errors("could not be read"):
                    self._scalar("SELECT pg_advisory_unlock_shared(%s)", _number(digest))

    @contextmanager
    def unheld(self, digest: str) -> Iterator[bool]:
        with self._collecting, self._store_errors("could not be tidied up"):
            with self._guard:
                unheld = not self._mine(digest) and self._scalar("SELECT pg_try_advisory_lock(%s)", _number(digest))
            try:
                yield bool(unheld)
            finally:
                if unheld:
                    with self._guard:
                        self._scalar("SELECT pg_advisory_unlock(%s)", _number(digest))

    def _mine(self, digest: str) -> bool:
        """Whether this session holds it, which would not keep it from locking it a second time."""
        own = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND "
            "classid::bigint << 32 | objid::bigint = %s"
        )
        return bool(self._scalar(own, _number(digest)))

    def scrub(self) -> None:
        """Writes the tables anew. The server's log of changes (WAL) holds the rows until it is recycled.

        The server keeps a row as long as a transaction from before its end may read it, of whatever tables. So it waits
        for these transactions first.
        """
        what = "could not be scrubbed; do it again"
        with self._guard, self._store_errors(what):
            older, start = self._older_transactions(), time.monotonic()
            while older & self._older_transactions():
                if time.monotonic() - start > LOCK_PATIENCE:
                    raise held_up(self.place, what, LOCK_PATIENCE)
                time.sleep(0.05)
            for table in _SAID:
                self._open.execute(f"VACUUM FULL wise.{table}".encode())

    def _older_transactions(self) -> set[str]:
        return {str(number) for (number,) in self._open.execute(_OLDER.encode()).fetchall()}

    def close(self) -> None:
        with self._guard:
            self.is_lost = True
            if self._connection is None:
                return
            try:
                if not self._connection.closed:  # or the server would give them back some time after the session
                    self._connection.execute(b"SELECT pg_advisory_unlock_all()")
            except self._error:
                logger.debug("the session ended by itself", exc_info=True)
            self._connection.close()
            self._connection = None

    @contextmanager
    def _store_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._error, OSError) as error:
            if getattr(error, "sqlstate", None) == _LOCK_TIMEOUT:
                raise held_up(self.place, what, LOCK_PATIENCE) from error
            if self._connection is not None and self._connection.broken:
                self.is_lost, again = self.writer, "open it" if self.writer else "try"
                what = f"lost the connection; {again} again, which shows whether what was under way was still done"
            primary = getattr(getattr(error, "diag", None), "message_primary", None)  # the details may quote a row
            message = redacted(" ".join((primary or str(error)).split()))
            raise StoreError(f"{self.place} {what}: {message}; see to the server") from error


def _execute(connection: psycopg.Connection[Any], statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Runs a statement in this session alone: a transaction that was cut off does not go on in another one."""
    cursor = connection.execute(statement.replace("?", "%s").encode(), values)
    return cursor.fetchall() if cursor.description else []


def _number(digest: str) -> int:
    """The advisory lock of a digest: its first 63 bits."""
    return int(digest[:16], 16) >> 1
