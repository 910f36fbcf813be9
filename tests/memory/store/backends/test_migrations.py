"""A journal of any earlier schema becomes one of today, loses nothing, and no other is touched."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from stores import digest, edits, in_a_process, learn, new_folder, statuses

from wise.errors import StoreError
from wise.memory.store import failpoints
from wise.memory.store.backends import migrations
from wise.memory.store.backends.migrations import MIGRATIONS, Migration
from wise.memory.store.store import Store

JOURNAL = "journal.sqlite3"
EARLIER = range(len(MIGRATIONS))
RELEASED = {1: ("journal", "e9f9a5e045b6"), 2: ("commands", "b873e1beace6"), 3: ("proofs", "510eaace525f"),
            4: ("acceptance", "03df4e1ad2d4")}


def steps(connection: sqlite3.Connection, count: int) -> None:
    """The first `count` steps, as the release of that time would have taken them."""
    connection.execute("CREATE TABLE migrations (number BIGINT PRIMARY KEY, name TEXT NOT NULL)")
    for number, step in enumerate(MIGRATIONS[:count], start=1):
        for statement in step.statements:
            connection.execute(statement)
        connection.execute("INSERT INTO migrations VALUES (?, ?)", (number, step.name))


def columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def downgrade(folder: Path, schema: int) -> None:
    """Makes a store what it would be had a release of that schema written it."""
    (folder / JOURNAL).rename(folder / "today")
    with closing(sqlite3.connect(folder / "today")) as today, closing(sqlite3.connect(folder / JOURNAL)) as old:
        steps(old, schema)
        for (table,) in old.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if table == "migrations":
                continue
            names = columns(old, table)
            places = ", ".join("?" * len(names))
            rows = today.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall()
            old.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places})", rows)
        old.commit()
    (folder / "today").unlink()
    (folder / f"{JOURNAL}-journal").unlink(missing_ok=True)


def alter(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A store with a history."""
    with new_folder() as parent:
        with Store.open(parent / "store") as store:
            learn(store, edits(1, 2), failing=["e2"])
            learn(store, edits(3))
            store.delete(["e1"])
            store.rollback(1)
            store.enqueue(edits(4))
        yield parent / "store"


@pytest.mark.parametrize("schema", EARLIER[1:])
def test_a_journal_of_an_earlier_schema_keeps_all_it_says(folder: Path, schema: int) -> None:
    with Store.open(folder) as store:
        before = statuses(store), store.log(), store.journal.versions(), digest(store.read().state)
    downgrade(folder, schema)
    with pytest.raises(StoreError, match=f"has schema {schema} and this release needs {len(MIGRATIONS)}; open it once"):
        Store.open(folder, writer=False)
    with Store.open(folder) as store:
        assert store.check().problems == ()
        assert (statuses(store), store.log(), store.journal.versions(), digest(store.read().state)) == before
        learn(store, [])
        assert statuses(store)["e4"] == "live" and store.check().problems == ()


@pytest.mark.parametrize("schema", EARLIER)
@pytest.mark.parametrize("point", ["transaction-begun", "transaction-filled", "transaction-durable"])
def test_killed_in_the_middle_of_a_migration_it_goes_on(
    folder: Path, schema: int, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if schema:
        downgrade(folder, schema)
    else:
        shutil.rmtree(folder)
    turn = 0
    while True:
        turn += 1
        copy = folder.with_name(f"copy {turn}")
        if schema:
            shutil.copytree(folder, copy)
        with monkeypatch.context() as patch:
            patch.setenv(failpoints.VARIABLE, f"{point}:kill:{turn}")
            ended = in_a_process(lambda copy=copy: Store.open(copy).close())  # type: ignore[misc]
        with Store.open(copy) as store:
            assert store.check().problems == () and len(statuses(store)) == (4 if schema else 0)
        if ended == 0:
            break
        assert ended == -9
    assert turn == 2 + len(MIGRATIONS) - schema


def test_a_journal_of_a_newer_release_or_of_another_program_is_refused(folder: Path) -> None:
    newer = (*MIGRATIONS, Migration("tomorrow", ()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", newer)
        Store.open(folder).close()
    said = f"has schema {len(newer)}, and this release reads up to {len(MIGRATIONS)}"
    for writer in (True, False):
        with pytest.raises(StoreError, match=said):
            Store.open(folder, writer=writer)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE migrations SET name = 'other' WHERE number = 1",
        "UPDATE migrations SET name = 'other' WHERE number = 2",
        "DELETE FROM migrations WHERE number = 1",
        "UPDATE migrations SET number = 3 - number + 10",
        "INSERT INTO migrations VALUES (0, 'journal')",
    ],
)
def test_steps_that_are_not_ours_in_our_order_are_refused_and_nothing_is_changed(folder: Path, statement: str) -> None:
    alter(folder, statement)
    before = (folder / JOURNAL).read_bytes()
    for writer in (True, False):
        with pytest.raises(StoreError, match="a journal of another program"):
            Store.open(folder, writer=writer)
    assert (folder / JOURNAL).read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE tickets SET edit = replace(edit, 'prompt 3', 'prompt 9')", "ticket 3 is not what was enqueued"),
        ("UPDATE events SET author = 'somebody' WHERE number = 4", "event 4 is not"),
        ("DELETE FROM events WHERE number = 4", "event 5"),
    ],
)
def test_what_was_altered_before_a_migration_is_found_after_it(folder: Path, statement: str, problem: str) -> None:
    downgrade(folder, 1)
    alter(folder, statement)
    with Store.open(folder) as store:
        assert any(found.startswith(problem) for found in store.check().problems), store.check().problems


def test_a_step_that_was_released_is_as_it_was() -> None:
    """By the SHA-256 of its statements: one that must change is followed by another instead."""
    digests = [hashlib.sha256("\n".join(step.statements).encode()).hexdigest()[:12] for step in MIGRATIONS]
    names = [step.name for step in MIGRATIONS]
    assert dict(enumerate(zip(names, digests, strict=True), start=1)) == RELEASED
