"""The tables of a journal, made in numbered steps that also bring an older journal up to date.

A released step is never changed; a change is a further step. Statements are of the kind that SQLite and PostgreSQL both
understand. The journal itself records the steps that were taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from wise.errors import StoreError
from wise.memory.store.backends.base import Backend, closed_on_error

_STEPS_TAKEN = "CREATE TABLE IF NOT EXISTS migrations (number BIGINT PRIMARY KEY, name TEXT NOT NULL)"


class Migration(NamedTuple):
    name: str
    statements: tuple[str, ...]


_JOURNAL = (
    "CREATE TABLE tickets (number BIGINT PRIMARY KEY, edit_id TEXT NOT NULL, namespace TEXT NOT NULL, "
    "edit TEXT NOT NULL, reason TEXT, valid_from TEXT, valid_until TEXT, key TEXT, accepted_at TEXT NOT NULL, "
    "status TEXT NOT NULL, live_in BIGINT, retired_in BIGINT, verified TEXT)",
    "CREATE TABLE events (number BIGINT PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL, ticket BIGINT, "
    "version BIGINT, author TEXT, detail TEXT NOT NULL, digest TEXT NOT NULL)",
    "CREATE TABLE versions (number BIGINT PRIMARY KEY, manifest TEXT NOT NULL, parent BIGINT NOT NULL, "
    "kind TEXT NOT NULL, at TEXT NOT NULL, author TEXT, reason TEXT, edits BIGINT NOT NULL, "
    "collected BIGINT NOT NULL)",
    "CREATE INDEX tickets_by_status ON tickets (status, number)",
    "CREATE INDEX tickets_by_key ON tickets (key)",
    "CREATE INDEX events_by_ticket ON events (ticket, number)",
    # Two tickets of one edit cannot be under way at once.
    "CREATE UNIQUE INDEX tickets_under_way ON tickets (edit_id) WHERE status IN ('queued', 'training', 'live')",
)
_COMMANDS = (  # the queue of `wise.memory.store.command_queue`
    "CREATE TABLE commands (id TEXT PRIMARY KEY, number BIGINT NOT NULL, name TEXT NOT NULL, "
    "arguments TEXT NOT NULL, until TEXT NOT NULL, status TEXT NOT NULL, answer TEXT)",
)
_PROOFS = (  # commands have a digest, an event says if the clock was set, and indexes for what is asked of many tickets
    "DELETE FROM commands",
    "ALTER TABLE commands ADD COLUMN digest TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE events ADD COLUMN jumped BIGINT",
    "CREATE INDEX tickets_by_edit ON tickets (edit_id, number)",
    "CREATE INDEX tickets_by_namespace ON tickets (namespace, number)",
    "CREATE INDEX tickets_by_begin ON tickets (status, valid_from) WHERE valid_from IS NOT NULL",
    "CREATE INDEX tickets_by_end ON tickets (status, valid_until) WHERE valid_until IS NOT NULL",
)
MIGRATIONS = (
    Migration("journal", _JOURNAL),
    Migration("commands", _COMMANDS),
    Migration("proofs", _PROOFS),
    Migration("acceptance", ("CREATE INDEX tickets_by_acceptance ON tickets (accepted_at, number)",)),
)
"""Step i makes schema i + 1 of schema i."""


def all_statements() -> list[str]:
    """All steps at once: what makes the tables as they are to be."""
    return [_STEPS_TAKEN, *(statement for step in MIGRATIONS for statement in step.statements)]


@contextmanager
def opening(backend: Backend) -> Iterator[None]:
    """The block connects. Then a writer takes the steps that are left, each in a transaction of its own. What goes
    wrong closes it again. Raises StoreError where the schema is not ours, or not today's."""
    with closed_on_error(backend):
        yield
        if backend.writer:
            _migrate(backend)
        schema = _schema_of(backend)
        if schema != len(MIGRATIONS):
            needed = f"this release needs {len(MIGRATIONS)}; open it once as its writer"
            raise StoreError(f"{backend.place} has schema {schema} and {needed}")


def _migrate(backend: Backend) -> None:
    with backend.transaction() as execute:
        execute(_STEPS_TAKEN)
    schema = _schema_of(backend)
    for number, step in enumerate(MIGRATIONS[schema:], start=schema + 1):
        with backend.transaction() as execute:
            for statement in step.statements:
                execute(statement)
            execute("INSERT INTO migrations (number, name) VALUES (?, ?)", number, step.name)


def _schema_of(backend: Backend) -> int:
    """The number of the last step taken, 0 where none was."""
    with backend.reading() as execute:
        rows = execute("SELECT number, name FROM migrations ORDER BY number")
    ours = [(i, step.name) for i, step in enumerate(MIGRATIONS, start=1)]
    if len(rows) > len(ours) and rows[: len(ours)] == ours:
        raise StoreError(
            f"{backend.place} has schema {len(rows)}, and this release reads up to {len(ours)}; install a newer "
            "wise-runtime"
        )
    if rows != ours[: len(rows)]:
        raise StoreError(f"{backend.place} has a journal of another program: {rows[:4]}; give a store of ours")
    return len(rows)
