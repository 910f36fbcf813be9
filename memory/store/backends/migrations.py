"""The tables of a journal, made in numbered steps that also bring an older journal up to date.

A released step is never changed; a change is a further step. Statements are of the kind that SQLite and PostgreSQL both
understand. The journal itself records the steps that were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wise.errors import StoreError
from wise.memory.store.backends.base import Backend, Execute

_STEPS_TAKEN = "CREATE TABLE IF NOT EXISTS migrations (number BIGINT PRIMARY KEY, name TEXT NOT NULL)"


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One step."""

    name: str
    apply: Callable[[Execute], None]


def _journal(execute: Execute) -> None:
    execute(
        "CREATE TABLE tickets (number BIGINT PRIMARY KEY, edit_id TEXT NOT NULL, namespace TEXT NOT NULL, "
        "edit TEXT NOT NULL, reason TEXT, valid_from TEXT, valid_until TEXT, key TEXT, accepted_at TEXT NOT NULL, "
        "status TEXT NOT NULL, live_in BIGINT, retired_in BIGINT, verified TEXT)"
    )
    execute(
        "CREATE TABLE events (number BIGINT PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL, ticket BIGINT, "
        "version BIGINT, author TEXT, detail TEXT NOT NULL, digest TEXT NOT NULL)"
    )
    execute(
        "CREATE TABLE versions (number BIGINT PRIMARY KEY, manifest TEXT NOT NULL, parent BIGINT NOT NULL, "
        "kind TEXT NOT NULL, at TEXT NOT NULL, author TEXT, reason TEXT, edits BIGINT NOT NULL, "
        "collected BIGINT NOT NULL)"
    )
    execute("CREATE INDEX tickets_by_status ON tickets (status, number)")
    execute("CREATE INDEX tickets_by_key ON tickets (key)")
    execute("CREATE INDEX events_by_ticket ON events (ticket, number)")
    # Two tickets of one edit cannot be under way at once.
    execute("CREATE UNIQUE INDEX tickets_under_way ON tickets (edit_id) WHERE status IN ('queued', 'training', 'live')")


def _commands(execute: Execute) -> None:
    """The queue of `wise.memory.store.command_queue`."""
    execute(
        "CREATE TABLE commands (id TEXT PRIMARY KEY, number BIGINT NOT NULL, name TEXT NOT NULL, "
        "arguments TEXT NOT NULL, until TEXT NOT NULL, status TEXT NOT NULL, answer TEXT)"
    )


def _proofs(execute: Execute) -> None:
    """Commands have a digest, an event says if the clock was set, and what is asked of many tickets has an index."""
    execute("DELETE FROM commands")
    execute("ALTER TABLE commands ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
    execute("ALTER TABLE events ADD COLUMN jumped BIGINT")
    execute("CREATE INDEX tickets_by_edit ON tickets (edit_id, number)")
    execute("CREATE INDEX tickets_by_namespace ON tickets (namespace, number)")
    execute("CREATE INDEX tickets_by_begin ON tickets (status, valid_from) WHERE valid_from IS NOT NULL")
    execute("CREATE INDEX tickets_by_end ON tickets (status, valid_until) WHERE valid_until IS NOT NULL")


def _acceptance(execute: Execute) -> None:
    """Tickets are found by the time at which they were accepted."""
    execute("CREATE INDEX tickets_by_acceptance ON tickets (accepted_at, number)")


MIGRATIONS: tuple[Migration, ...] = (
    Migration(name="journal", apply=_journal),
    Migration(name="commands", apply=_commands),
    Migration(name="proofs", apply=_proofs),
    Migration(name="acceptance", apply=_acceptance),
)
"""Step i makes schema i + 1 of schema i."""


def create(execute: Execute) -> None:
    """All steps at once: the tables as they are to be."""
    execute(_STEPS_TAKEN)
    for step in MIGRATIONS:
        step.apply(execute)


@contextmanager
def opening(backend: Backend) -> Iterator[None]:
    """The block connects. Then a writer takes the steps that are left, and the schema must be today's.

    What goes wrong closes it again. Raises StoreError as `migrate` and `check_schema` do.
    """
    try:
        yield
        if backend.writer:
            migrate(backend)
        check_schema(backend)
    except BaseException:
        backend.close()
        raise


def migrate(backend: Backend) -> None:
    """Takes the steps that a journal has not taken yet, each in a transaction of its own."""
    with backend.transaction() as execute:
        execute(_STEPS_TAKEN)
    for number in range(schema_of(backend) + 1, len(MIGRATIONS) + 1):
        step = MIGRATIONS[number - 1]
        with backend.transaction() as execute:
            step.apply(execute)
            execute("INSERT INTO migrations (number, name) VALUES (?, ?)", number, step.name)


def schema_of(backend: Backend) -> int:
    """The number of the last step taken, 0 where none was. Raises StoreError where the steps are not ours."""
    with backend.reading() as execute:
        taken = execute("SELECT number, name FROM migrations ORDER BY number")
    ours = [(i, step.name) for i, step in enumerate(MIGRATIONS, start=1)]
    if len(taken) > len(ours) and taken[: len(ours)] == ours:
        raise StoreError(
            f"{backend.place} has schema {len(taken)}, and this release reads up to {len(ours)}; install a newer "
            "wise-runtime"
        )
    if taken != ours[: len(taken)]:
        raise StoreError(f"{backend.place} has a journal of another program: {taken[:4]}; give a store of ours")
    return len(taken)


def check_schema(backend: Backend) -> None:
    """Raises StoreError where the journal is not of today's schema."""
    found = schema_of(backend)
    if found != len(MIGRATIONS):
        raise StoreError(
            f"{backend.place} has schema {found} and this release needs {len(MIGRATIONS)}; open it once as its writer"
        )
