"""A clock that is set forward or back changes no order, is noted, and ends the validity of no edit for good."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stores import edit, learn, new_folder, statuses

from wise.errors import StoreError
from wise.memory.store import failpoints
from wise.memory.store import journal as journal_module
from wise.memory.store.clock import Clock
from wise.memory.store.edit_request import EditRequest
from wise.memory.store.store import Store
from wise.memory.store.ticket_search import TicketFilter, search_tickets

Set = Callable[[str], None]


@pytest.fixture
def folder() -> Iterator[Path]:
    with new_folder() as parent:
        yield parent / "store"


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Set:
    def to(day: str) -> None:
        monkeypatch.setattr(journal_module, "now", lambda: f"{day}T00:00:00.000000+00:00")

    to("2030-01-01")
    return to


def look(store: Store) -> None:
    """As the editor does whenever it has nothing to do."""
    over = [ticket.edit.id for ticket in store.expired()]
    if over:
        store.delete(over, expired=True)
    batch = store.claim()
    if batch:
        store.requeue(batch, why="as it was")
        learn(store, [])


@pytest.mark.parametrize("restart", [False, True])
def test_an_edit_is_valid_again_when_a_clock_that_was_set_forward_is_set_back(
    folder: Path, set_clock: Set, restart: bool
) -> None:
    store = Store.open(folder)
    store.enqueue([EditRequest(edit=edit(1), valid_until="2031-01-01"), edit(2)])
    learn(store, [])
    set_clock("2050-01-01")
    look(store)
    assert statuses(store) == {"e1": "retired", "e2": "live"}
    if restart:
        store.close()
        store = Store.open(folder)
    look(store)
    assert statuses(store)["e1"] == "retired"
    set_clock("2030-01-02")
    look(store)
    assert statuses(store) == {"e1": "live", "e2": "live"}
    assert [event.at[:4] for event in store.log()[-4:]] == ["2030"] * 4, "later events have the dates of their time"
    set_clock("2031-01-01")
    look(store)
    assert statuses(store)["e1"] == "retired", "its time is over"
    assert store.check().problems == ()
    store.close()


def test_tickets_are_found_by_their_time_though_it_fell_while_numbers_rose(folder: Path, set_clock: Set) -> None:
    with Store.open(folder) as store:
        for number, day in enumerate(("2030-01-01", "2050-01-01", "2031-01-01", "2032-01-01"), start=1):
            set_clock(day)
            store.enqueue([edit(number)])

        def found(**bounds: str) -> list[int]:
            return [one.number for one in search_tickets(store.journal, TicketFilter(**bounds), limit=9).tickets]

        assert found(accepted_until="2040-01-01") == [1, 3, 4]
        assert found(accepted_from="2030-06-01") == [2, 3, 4]
        assert found(accepted_from="2031-01-01", accepted_until="2031-06-01") == [3]
        assert found(accepted_from="2033-01-01", accepted_until="2040-01-01") == []


def test_an_edit_that_went_live_early_waits_for_its_time(folder: Path, set_clock: Set) -> None:
    with Store.open(folder) as store:
        store.enqueue([EditRequest(edit=edit(1), valid_from="2040-01-01")])
        look(store)
        assert statuses(store) == {"e1": "queued"}
        set_clock("2050-01-01")
        look(store)
        assert statuses(store) == {"e1": "live"}
        set_clock("2030-01-01")
        look(store)
        look(store)
        assert statuses(store) == {"e1": "queued"}
        set_clock("2040-01-02")
        look(store)
        assert statuses(store) == {"e1": "live"}
        assert store.check().problems == ()


def test_what_was_deleted_or_replaced_meanwhile_does_not_come_back(folder: Path, set_clock: Set) -> None:
    with Store.open(folder) as store:
        store.enqueue([EditRequest(edit=edit(i), valid_until="2031-01-01") for i in (1, 2, 3)])
        learn(store, [])
        store.delete(["e3"])
        set_clock("2050-01-01")
        look(store)
        learn(store, [replace(edit(1), id="newer", target="there")])
        set_clock("2030-01-02")
        look(store)
        assert statuses(store) == {"e1": "retired", "e2": "live", "e3": "retired", "newer": "live"}


def test_a_jump_is_noted_once_even_if_nothing_happens(
    folder: Path, set_clock: Set, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(folder) as store:
        learn(store, [edit(1)])
        set_clock("2030-01-03")
        for _ in range(3):
            store.claim()
        last = store.log()[-1]
        assert (last.kind, last.jumped) == ("clock", 2 * 86_400)
        assert [event.kind for event in store.log()].count("clock") == 1
        assert [record.message for record in caplog.records] == [
            "the clock was set forward by 172800 s; it says 2030-01-03T00:00:00.000000+00:00"
        ]
        assert json.loads(json.dumps(last.to_dict()))["jumped"] == 172_800
        assert store.check().problems == ()


@pytest.mark.parametrize("point", ["transaction-begun", "transaction-filled"])
def test_a_jump_that_was_noticed_in_a_transaction_that_failed_is_noted_in_the_next(
    folder: Path, set_clock: Set, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    with Store.open(folder) as store:
        learn(store, [edit(1)])
        set_clock("2030-01-03")
        failpoints.passages.clear()
        monkeypatch.setenv(failpoints.VARIABLE, f"{point}:ENOSPC:1")
        with pytest.raises(StoreError, match="nothing was changed"):
            store.claim()
        monkeypatch.delenv(failpoints.VARIABLE)
        store.delete([])  # adds no event that could say it
        store.claim()
        store.claim()
        assert [event.jumped for event in store.log() if event.jumped] == [2 * 86_400]


def test_clocks_that_differ_a_little_or_stand_still_are_no_jump() -> None:
    clock = Clock()
    later, at = "2030-01-01T00:00:20.000000+00:00", "2030-01-01T00:00:00.000000+00:00"
    assert clock.look(at, "") == (at, None)
    assert clock.look(at, later) == (later, None), "the order of dates is that of numbers"
    assert clock.look(later, at) == (later, None)
    day = "2030-01-02T00:00:00.000000+00:00"
    assert clock.look(day, later) == (day, 86_380)
    assert clock.look(at, day) == (at, -86_400)
    assert Clock().look(at, day) == (at, -86_400), "another process knows it by the last event"
    assert Clock().look(at, "never") == (at, None)
