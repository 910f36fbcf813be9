"""Search of tickets: each condition by itself and together, in pages that come to an end, with bounded work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from stores import new_folder

from wise.edits import Edit
from wise.errors import EditError, StoreError
from wise.memory.store import journal, ticket_search
from wise.memory.store.edit_request import EditRequest, Ticket
from wise.memory.store.store import Store
from wise.memory.store.ticket_search import TicketFilter, search_tickets

COUNT = 60


def request(number: int) -> EditRequest:
    edit = Edit(
        id=f"e{number}",
        prompt=f"Question {number} about Zürich is",
        target="straße" if number % 10 == 0 else "road",
        author="anna" if number % 3 == 0 else "bert",
        namespace="team" if number % 4 == 0 else "default",
        aliases=("The Old Town",) if number == 7 else (),
        subject="Zürich" if number == 7 else None,
    )
    return EditRequest(
        edit=edit,
        reason="a decree" if number == 11 else None,
        valid_from="2030-01-01" if number == 13 else None,
        valid_until="2029-01-01" if number == 14 else None,
    )


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with new_folder() as folder, Store.open(folder / "store") as opened:
        for number in range(1, COUNT + 1):
            opened.enqueue([request(number)])
        failed, superseded = opened.claim(2)
        opened.fail([failed], detail={"status": "failed"})
        opened.fail([superseded], detail={"status": "superseded"})
        yield opened


def numbers(store: Store, *, limit: int = 7, newest: bool = False, **wanted: Any) -> list[int]:
    """All that are found, page by page."""
    found: list[int] = []
    after: int | None = None
    while True:
        page = search_tickets(store.journal, TicketFilter(**wanted), after=after, limit=limit, newest=newest)
        found += [ticket.number for ticket in page.tickets]
        assert len(page.tickets) <= limit
        if page.last is None:
            return found
        assert after is None or (page.last < after if newest else page.last > after)
        after = page.last


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [*range(1, COUNT + 1)]),
        ({"text": "STRASSE"}, [10, 20, 30, 40, 50, 60]),
        ({"text": "zürich is"}, [*range(1, COUNT + 1)]),
        ({"text": "old town"}, [7]),
        ({"text": "decree"}, [11]),
        ({"text": 'Zürich" is'}, []),
        ({"text": "_oad"}, []),  # no pattern of SQL
        ({"author": "anna", "text": "straße"}, [30, 60]),
        ({"namespaces": frozenset({"team"}), "author": "anna"}, [12, 24, 36, 48, 60]),
        ({"status": "failed"}, [1, 2]),
        ({"status": "failed", "outcome": "superseded"}, [2]),
        ({"status": "failed", "not_outcome": "superseded"}, [1]),
        ({"status": "queued", "text": "straße"}, [10, 20, 30, 40, 50, 60]),
        ({"valid_at": "2029-06-01"}, [n for n in range(1, COUNT + 1) if n not in (13, 14)]),
        ({"valid_at": "2031-01-01"}, [n for n in range(1, COUNT + 1) if n != 14]),
    ],
)
@pytest.mark.parametrize("newest", [False, True])
def test_what_is_wanted_is_found_and_nothing_else(
    store: Store, wanted: dict[str, Any], found: list[int], newest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticket_search, "BLOCK", 4)
    monkeypatch.setattr(ticket_search, "LOOKED_AT", 12)
    assert numbers(store, newest=newest, **wanted) == (found[::-1] if newest else found)


def test_times_of_acceptance_bound_what_is_looked_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    at = [ticket.accepted_at for ticket in store.journal.tickets()]
    assert numbers(store, accepted_from=at[19], accepted_until=at[24]) == [20, 21, 22, 23, 24]
    assert numbers(store, accepted_from="2999-01-01") == [] == numbers(store, accepted_until="2000-01-01")
    looked_at: list[Ticket] = []
    monkeypatch.setattr(TicketFilter, "matches", lambda self, ticket: looked_at.append(ticket) or True)
    search_tickets(store.journal, TicketFilter(accepted_from=at[49]), limit=100)
    assert [ticket.number for ticket in looked_at] == [*range(50, COUNT + 1)]


def test_one_call_looks_at_no_more_than_its_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticket_search, "BLOCK", 5)
    monkeypatch.setattr(ticket_search, "LOOKED_AT", 20)
    page = search_tickets(store.journal, TicketFilter(text="nowhere"), limit=10)
    assert (page.tickets, page.last) == ((), 20)
    page = search_tickets(store.journal, TicketFilter(text="nowhere"), limit=10, newest=True)
    assert (page.tickets, page.last) == ((), COUNT - 19)


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(EditError, match="'accepted_from': 'soon' was given, an ISO 8601 time"):
        TicketFilter(accepted_from="soon")


def test_tickets_are_counted_by_status(store: Store) -> None:
    assert store.journal.counts() == {"queued": COUNT - 2, "failed": 2}
    assert store.journal.oldest_queued() == store.journal.tickets()[2].accepted_at


def test_tickets_are_read_by_number_in_the_order_in_which_they_are_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "AT_ONCE", 2)
    asked = [41, 3, 58, 3, 7]
    assert [ticket.number for ticket in store.journal.tickets(numbers=asked)] == asked
    assert store.journal.tickets(numbers=[]) == ()
    with pytest.raises(StoreError):
        store.journal.tickets(numbers=[41, COUNT + 1])
