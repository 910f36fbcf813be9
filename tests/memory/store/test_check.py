"""A check finds whatever was changed: any byte of any file, any column, a history written anew or cut short."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from stores import digest, edit, edits, learn, new_folder, statuses

from wise.errors import ConfigError, StoreError
from wise.memory.artifact import digest_of_json
from wise.memory.store import checked as checked_module
from wise.memory.store.anchor import read_anchor, write_anchor
from wise.memory.store.checked import FILE
from wise.memory.store.edit_request import EditRequest, Event
from wise.memory.store.store import Store

JOURNAL = "journal.sqlite3"
FLIPS = 200


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    """A store with a history, a command that waits, and what a check noted. To be copied."""
    with new_folder() as parent:
        with Store.open(parent / "store") as store:
            store.enqueue([EditRequest(edit=edit(1, author="a", namespace="n"), reason="because")], key="k")
            learn(store, edits(2))
            learn(store, edits(3), failing=["e3"], without=["e2"])
            store.rollback(1, author="me", reason="it was better")
            store.enqueue(edits(4))
            store.delete(["e1"])
            store.gc(keep=2)
            store.commands.enqueue("delete", {"edit_ids": ["e2"]}, 3600)
            store.check(checked=store.checked_file)
        yield parent / "store"


@pytest.fixture
def folder(whole: Path) -> Iterator[Path]:
    with new_folder() as parent:
        shutil.copytree(whole, parent / "store")
        yield parent / "store"


def problems(folder: Path, **how: Any) -> tuple[str, ...]:
    """What a check finds, or why the store does not open."""
    try:
        with Store.open(folder, writer=False) as store:
            return store.check(**how).problems
    except StoreError as error:
        return (str(error),)


def rows(folder: Path) -> list[Any] | None:
    """All that the journal holds, with its schema; None where it cannot be read."""
    try:
        with closing(sqlite3.connect(folder / JOURNAL)) as connection:
            connection.text_factory = bytes
            tables = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
            names = [name.decode() for name, sql in tables if sql and sql.startswith(b"CREATE TABLE")]
            return [tables, *(connection.execute(f"SELECT * FROM {name}").fetchall() for name in names)]
    except (sqlite3.Error, UnicodeDecodeError):
        return None


def served(folder: Path) -> Any:
    with Store.open(folder, writer=False) as store:
        return digest(store.read().state), statuses(store)


def alter(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.slow
def test_any_byte_that_is_changed_is_found_or_of_no_account(whole: Path, folder: Path) -> None:
    assert problems(folder) == problems(folder, checked=folder / FILE) == ()
    wanted, wanted_rows = served(whole), rows(whole)
    files = sorted(file for file in whole.rglob("*") if file.is_file() and file.stat().st_size)
    rng = random.Random(0)
    noticed = 0
    for turn in range(FLIPS):
        file = files[turn % len(files)] if turn % 2 else whole / JOURNAL
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        changed = folder / file.relative_to(whole)
        changed.write_bytes(data)
        found = problems(folder)
        again = problems(folder, checked=folder / FILE)  # which did not see the damage when it was written
        assert bool(found) == bool(again), (file.name, turn)
        assert found or (served(folder) == wanted and rows(folder) == wanted_rows), (file.name, turn)
        noticed += bool(found)
        for name in (file.relative_to(whole), FILE):
            shutil.copy(whole / name, folder / name)
    assert noticed > FLIPS / 4


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE tickets SET namespace = 'other' WHERE number = 1", "namespace is 'other'"),
        ("UPDATE tickets SET edit_id = 'e9' WHERE number = 1", "edit_id is 'e9'"),
        ("UPDATE tickets SET key = 'other' WHERE number = 1", "ticket 1 is not what was enqueued"),
        ("UPDATE tickets SET reason = NULL WHERE number = 1", "ticket 1 is not what was enqueued"),
        ("UPDATE tickets SET status = 'forgotten' WHERE number = 1", "status is 'forgotten'"),
        ("UPDATE tickets SET verified = '\"x\"' WHERE number = 1", "verified is of type str, not an object"),
        ("UPDATE tickets SET verified = '[' WHERE number = 1", "the journal is damaged at ticket 1"),
        ("UPDATE tickets SET edit = edit || ' ' WHERE number = 1", "not spelled as it was written"),
        ("UPDATE tickets SET number = 4611686018427387900 WHERE number = 1", "ticket 1 is missing"),
        ("UPDATE tickets SET accepted_at = x'ff' WHERE number = 1", "accepted_at is of type bytes"),
        ("UPDATE tickets SET reason = CAST(x'ff' AS TEXT) WHERE number = 1", "reason is "),
        ("UPDATE events SET at = 7 WHERE number = 2", "event 2 is not what was noted"),
        ("UPDATE events SET jumped = 100 WHERE number = 2", "event 2 is not what was noted"),
        ("UPDATE events SET detail = '[]' WHERE number = 2", "detail is of type list, not an object"),
        ("UPDATE versions SET author = 'you' WHERE author = 'me'", "version 3 is not what its events say"),
        ("UPDATE versions SET collected = 2 WHERE number = 1", "collected is 2"),
        ("UPDATE commands SET arguments = replace(arguments, 'e2', 'e1')", "is not what was queued"),
        ("UPDATE commands SET name = 'rollback'", "is not what was queued"),
        ("DROP INDEX tickets_under_way", "an index is missing: index tickets_under_way"),
        ("DROP INDEX tickets_by_edit", "an index is missing"),
        ("CREATE TABLE more (x)", "a table or an index was altered"),
        ("DELETE FROM events WHERE number = 5", "event 5 is missing"),
        ("DELETE FROM tickets WHERE number = 2", "ticket 2"),
    ],
)
def test_what_is_changed_in_the_tables_is_named(folder: Path, statement: str, said: str) -> None:
    alter(folder, statement)
    for found in (problems(folder, checked=folder / FILE), problems(folder)):
        assert any(said in problem for problem in found), found


def test_a_command_that_was_damaged_is_not_run(folder: Path) -> None:
    with Store.open(folder) as store:
        store.commands.enqueue("rollback", {"version": 1}, 3600)
        alter(folder, "UPDATE commands SET arguments = replace(arguments, 'e2', 'e1')")
        command = store.commands.claim()
        assert command is not None and command.name == "rollback" and store.commands.claim() is None


def rechained(folder: Path) -> None:
    """Changes an author of the past, and makes the chain fit again, as whoever knows how it is made can."""
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        connection.execute("UPDATE events SET author = 'somebody else' WHERE number = 2")
        names = "number, at, kind, ticket, version, author, detail, jumped"
        before = ""
        for row in connection.execute(f"SELECT {names} FROM events ORDER BY number").fetchall():
            fields = dict(zip(names.split(", "), row, strict=True))
            before = Event(**{**fields, "detail": json.loads(fields["detail"])}).linked(before)
            connection.execute("UPDATE events SET digest = ? WHERE number = ?", (before, row[0]))
        connection.commit()


def test_a_history_that_is_written_anew_is_found_by_an_anchor_alone(folder: Path, tmp_path: Path) -> None:
    with Store.open(folder) as store:
        anchor = store.anchor()
        learn(store, edits(7))
        assert store.check(anchor=anchor).problems == ()
    rechained(folder)
    assert problems(folder) == ()
    assert ["the history was rewritten: " in found for found in problems(folder, anchor=anchor)] == [True]
    (tmp_path / "anchor").write_text(write_anchor(anchor))
    assert read_anchor(tmp_path / "anchor") == anchor


def test_a_history_that_was_cut_short_is_found_by_an_anchor(folder: Path, whole: Path) -> None:
    with Store.open(folder) as store:
        store.enqueue(edits(7))
        anchor = store.anchor()
    shutil.copy(whole / JOURNAL, folder / JOURNAL)  # as it was before
    assert problems(folder) == ()
    assert "the history was shortened: it ends at event" in problems(folder, anchor=anchor)[0]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("cryptography")
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


def test_a_signed_anchor_is_that_of_its_key_to_the_last_byte(
    folder: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    file = tmp_path / "anchor"
    with Store.open(folder, writer=False) as store:
        anchor = store.anchor()
    text = write_anchor(anchor, private)
    file.write_text(text)
    assert read_anchor(file, public).digest == read_anchor(file).digest == anchor.digest
    file.write_text(write_anchor(anchor))
    with pytest.raises(StoreError, match="is not signed; give the anchor that was signed with the key"):
        read_anchor(file, public)
    rng = random.Random(0)
    for _ in range(100):
        data = bytearray(text.encode())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with pytest.raises(StoreError):
            read_anchor(file, public)
    other = {**json.loads(text), "event": 1}
    file.write_text(json.dumps(other))
    with pytest.raises(StoreError, match="the signature is wrong"):
        read_anchor(file)
    for wrong in (file, tmp_path / "none", private):
        with pytest.raises(ConfigError):
            read_anchor(file, wrong)


def test_a_check_takes_apart_what_changed_and_reads_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_module, "PAGE", 4)
    with Store.open(folder) as store:
        for number in range(20, 30):
            learn(store, edits(number))
        file = folder / FILE
        assert store.check(checked=file).problems == ()
        read: list[int] = []
        linked = Event.linked
        monkeypatch.setattr(Event, "linked", lambda self, before: (read.append(self.number), linked(self, before))[1])
        assert store.check(checked=file).problems == () and read == []
        last = len(store.log())
        learn(store, edits(30))
        read.clear()
        assert store.check(checked=file).problems == ()
        assert read == list(range(last // 4 * 4 + 1, len(store.log()) + 1))
        read.clear()
        assert store.check().problems == () and len(read) == len(store.log())
        alter(folder, "UPDATE events SET author = 'x' WHERE number = 2")
        assert store.check(checked=file).problems


def test_what_a_check_noted_is_believed_only_as_it_was_written(folder: Path) -> None:
    data = json.loads((folder / FILE).read_text())
    for wrong in (b"", b"[]", b"{}", json.dumps(data | {"events": ["x"]}).encode(), json.dumps(data)[:-9].encode()):
        (folder / FILE).write_bytes(wrong)
        assert problems(folder, checked=folder / FILE) == ()
        assert json.loads((folder / FILE).read_text()) == data, "it was brought up to date"
    assert data.pop("sha256") == digest_of_json(data)


@pytest.mark.parametrize("how", [lambda store: store.gc(keep=1), lambda store: store.erase(["e2"])])
def test_what_is_collected_while_a_check_reads_it_is_no_damage(place: str, how: Callable[[Store], object]) -> None:
    """A service may do so at any time."""
    with Store.open(place) as store, Store.open(place, writer=False) as reader:
        learn(store, edits(1))
        learn(store, edits(2))
        store.delete(["e2"])

        def meanwhile(name: str, done: int, total: int) -> None:
            if (name, done) == ("versions", 1):
                how(store)

        found = reader.check(progress=meanwhile)
        collected = {number for number in (1, 2) if store.journal.version(number).collected}
        assert found.problems == () and collected and found.versions == 3 - len(collected)


def test_a_row_that_cannot_be_read_stops_nobody(folder: Path) -> None:
    """It is shown as such; what waits beside it is trained, and the writer opens the store."""
    with Store.open(folder) as store:
        store.enqueue(edits(8))
    alter(
        folder,
        "UPDATE tickets SET verified = '\"x\"' WHERE number = 1",
        "UPDATE tickets SET edit = '[1]', status = 'queued' WHERE number = 4",
        "UPDATE events SET detail = 'none' WHERE number = 1",
    )
    with Store.open(folder) as store:
        shown = {ticket.number: ticket.problem for ticket in store.journal.tickets()}
        assert "verified is of type str" in shown[1] and "edit is of type list" in shown[4] and not shown[2]
        assert store.log(limit=1)[0].kind == "damaged" and "event 1" in store.log(limit=1)[0].detail["problem"]
        assert [ticket.edit.id for ticket in store.claim(1)] == ["e8"], "ticket 4 is queued before it"
        assert len(store.check().problems) >= 3
