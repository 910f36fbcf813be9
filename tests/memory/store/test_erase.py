"""What is erased is in no file any more: neither its words, however spelled, nor its tensors."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from secrets_told import SECRET, WORDS, found, secret_values, tell_a_secret
from stores import BASE, CONFIG, digest, edits, end, in_a_process, learn, new_folder, statuses, waiting, written

from wise.edits import Edit
from wise.errors import EditError, StoreError
from wise.memory.store import failpoints
from wise.memory.store.edit_request import EditRequest, Version
from wise.memory.store.rows import EVENT, event_of
from wise.memory.store.store import Store


@pytest.fixture
def folder() -> Iterator[Path]:
    """A store in which the edit was live in two versions, and was deleted."""
    with new_folder() as parent:
        with Store.open(parent / "store") as store:
            tell_a_secret(store)
        yield parent / "store"


def tensor(folder: Path) -> bytes:
    with Store.open(folder, writer=False) as store:
        return secret_values(store)


def test_no_file_holds_what_was_erased_and_the_store_stays_whole(folder: Path) -> None:
    values = tensor(folder)
    assert found(folder, WORDS, values) == {*WORDS, "values"}, "it would not be seen"
    with Store.open(folder) as store:
        kept = {number: digest(store.read(number).state) for number in (1, 4)}
        anchor = store.anchor()
        result = store.erase(["secret"], author="operator", reason="the law says so")
        assert result.tickets == (3,) and result.versions == (2, 3) and result.left == {}
        assert found(folder, WORDS, values) == set(), "also while the store is open"
    assert found(folder, WORDS, values) == set()
    with Store.open(folder) as store:
        findings = store.check(anchor=anchor)
        assert findings.problems == () and findings.erased == 1 and findings.unneeded == 0
        assert {number: digest(store.read(number).state) for number in (1, 4)} == kept
        [ticket] = store.journal.tickets(edit_id="secret")
        assert ticket.erased and (ticket.number, ticket.status) == (3, "retired")
        assert (ticket.live_in, ticket.retired_in) == (2, 4)
        last = store.log()[-1]
        assert (last.kind, last.ticket, last.author, last.detail["reason"]) == (
            "erased", 3, "operator", "the law says so"
        )
        for number in (2, 3):
            with pytest.raises(StoreError, match="held an edit that was erased"):
                store.rollback(number)
        store.rollback(1)
        learn(store, edits(5))
        assert store.check(anchor=anchor).problems == ()


def test_an_author_goes_if_that_is_asked(folder: Path) -> None:
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    with Store.open(folder) as store:
        store.erase(["secret"])
        assert [event.author for event in store.journal.events(ticket=3)][0] == "Wilhelmina"
    with Store.open(copy) as store:
        store.erase(["secret"], with_author=True)
        assert store.check().problems == ()
    assert found(copy, ("Wilhelmina",), b"no such bytes") == set() != found(folder, ("Wilhelmina",), b"no such bytes")


def test_an_edit_that_is_under_way_stays_until_it_is_deleted(folder: Path) -> None:
    with Store.open(folder) as store:
        store.enqueue(edits(9))
        before = store.log()
        for edit_id, status in (("e1", "live"), ("e9", "queued")):
            with pytest.raises(StoreError, match=f"edit '{edit_id}' is {status} and stays; delete it first"):
                store.erase([edit_id])
        with pytest.raises(StoreError, match="there is no edit 'secrets'; did you mean 'secret'"):
            store.erase(["secrets"])
        with pytest.raises(EditError, match="field 'reason': it repeats text"):
            store.erase(["secret"], reason="Quetzalcoatl was wrong")
        assert store.log() == before
    with Store.open(folder, writer=False) as reader, pytest.raises(StoreError, match="writer=False"):
        reader.erase(["secret"])


def test_what_other_edits_say_too_stays_with_them_and_is_told(folder: Path) -> None:
    with Store.open(folder) as store:
        learn(store, [Edit(id="other", prompt="Zanzibar's Émile is", target="Huitzilopochtli", subject="Zanzibar")])
        left = store.erase(["secret"]).left
        assert left == {"prompt": ("other",), "subject": ("other",)}
        assert store.journal.tickets(edit_id="other")[0].edit.subject == "Zanzibar"
        assert store.check().problems == ()
        assert found(folder, ("Quetzalcoatl", "Xylophonia"), b"no such bytes") == set()
        store.delete(["other"])
        assert store.erase(["other"]).left == {}
    assert found(folder, WORDS, b"no such bytes") == set()


def test_what_an_outcome_of_another_edit_repeats_goes_too(folder: Path) -> None:
    with Store.open(folder) as store:
        store.enqueue(edits(6))
        told = {"e6": {"status": "verified", "holds": {"Quetzalcoatl?": True, "more": False}, "tried": ["Émile"]}}
        batch, current = store.claim(), store.read()
        store.commit(
            batch, written(edits(6), current.state), parent=current.version, config=CONFIG, base=BASE, outcomes=told
        )
        store.erase(["secret"])
        verified = store.journal.tickets(edit_id="e6")[0].verified
        assert verified is not None and verified["status"] == "verified"
        assert verified["holds"] == {"(erased)": True, "more": False}
        assert store.check().problems == ()
    assert found(folder, ("Quetzalcoatl",), b"no such bytes") == set()


def test_a_call_that_is_repeated_after_the_erasure_brings_nothing_back(folder: Path) -> None:
    with Store.open(folder) as store:
        store.erase(["secret"])
        with pytest.raises(EditError, match="was used for edits that were erased since"):
            store.enqueue([EditRequest(edit=SECRET, reason="as Zebedee said")], key="call of Ypsilanti")
        assert len(store.journal.tickets(key="call of Ypsilanti")) == 1, "a stream that is read again knows it"


def test_a_pack_from_before_does_not_bring_it_back(folder: Path) -> None:
    with Store.open(folder) as store:
        store.export_pack(folder.with_name("pack"), version=2)
        store.erase(["secret"])
        with pytest.raises(StoreError, match="edit 'secret' of the pack was erased here"):
            store.import_pack(folder.with_name("pack"))


def test_nothing_is_erased_while_a_version_that_holds_it_is_read(folder: Path) -> None:
    def reader() -> object:
        store = Store.open(folder, writer=False)
        pin = store.pin(2)
        return store, pin, pin.__enter__()

    process = waiting(reader)
    try:
        with Store.open(folder) as store:
            before = store.log()
            with pytest.raises(StoreError, match="version 2 holds such an edit and is being read"):
                store.erase(["secret"])
            assert store.log() == before and store.read(3).state.edits
    finally:
        end(process)
    with Store.open(folder) as store:
        assert store.erase(["secret"]).versions == (2, 3)


@pytest.mark.parametrize("returns", [lambda store: store.rollback(1), lambda store: store.delete(["e1"])])
def test_what_several_equal_versions_hold_is_erased(place: str, returns: Callable[[Store], Version]) -> None:
    with Store.open(place) as store:
        learn(store, [SECRET])
        learn(store, edits(1))
        returns(store)
        assert store.journal.version(1).manifest == store.journal.version(3).manifest, "they would not be equal"
        store.delete(["secret"])
        assert store.erase(["secret"]).versions == (1, 2, 3)
        assert store.check().problems == ()


@pytest.mark.parametrize("point", ["transaction-filled", "transaction-durable", "blob-removed"])
def test_an_erasure_that_was_cut_off_is_completed_by_another(
    folder: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tensor(folder)

    def cut_off() -> None:
        os.environ[failpoints.VARIABLE] = f"{point}:kill:1"
        with Store.open(folder) as store:
            store.erase(["secret"])

    assert in_a_process(cut_off) == -9
    with Store.open(folder) as store:
        assert store.check().problems == ()
        assert statuses(store)["secret"] == "retired"
        store.erase(["secret"])
        assert store.check().problems == () and store.check().erased == 1
    assert found(folder, WORDS, values) == set()


def test_a_changed_event_is_accepted_only_as_the_erasure_left_it(folder: Path) -> None:
    with Store.open(folder) as store:
        store.erase(["secret"])
        changed = sorted(int(number) for number in store.log()[-1].detail["events"])
    assert changed
    for number in changed:
        copy = folder.with_name(f"copy {number}")
        shutil.copytree(folder, copy)
        with closing(sqlite3.connect(copy / "journal.sqlite3")) as connection:
            connection.execute("UPDATE events SET author = 'x' WHERE number = ?", (number,))
            connection.commit()
        with Store.open(copy, writer=False) as store:
            assert any(f"event {number} is not what was noted" in problem for problem in store.check().problems)


@pytest.mark.parametrize("author", ["somebody else", "(erased)"])
def test_a_forged_erasure_cannot_put_words_into_a_row_and_is_named_by_an_anchor(folder: Path, author: str) -> None:
    """Whoever can write the store writes an event that vouches for a row as they like it."""

    with Store.open(folder) as store:
        [ticket], anchor = store.journal.tickets(limit=1), store.anchor()
        assert store.check(anchor=anchor).erased_since == ()
        with store.journal.writing() as (execute, events):
            [row] = execute(f"SELECT {EVENT} WHERE number = 1")
            linked = event_of((*row[:5], author, *row[6:])).linked("")
            vouched = {"reason": None, "content": ticket.content, "events": {"1": linked}}
            execute("UPDATE events SET author = ? WHERE number = 1", author)
            events.write("erased", ticket=1, detail=vouched)
        found = store.check(anchor=anchor)
        assert found.erased_since == (store.log()[-1].number,)
        assert "ticket 1 is not what was enqueued" in found.problems, "it still has its text"
        told = any("event 1 is not what was noted" in problem for problem in found.problems)
        assert told == (author != "(erased)")


def test_an_anchor_names_the_erasures_since(folder: Path) -> None:
    with Store.open(folder) as store:
        before = store.anchor()
        store.erase(["secret"])
        assert store.check(anchor=before).erased_since == (store.log()[-1].number,)
        assert store.check(anchor=store.anchor()).erased_since == () == store.check().erased_since
