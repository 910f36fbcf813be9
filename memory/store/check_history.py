"""The check of a journal: its tables agree with what its events say, in order, without gaps, to the last byte.

The events are a chain: each has a digest of itself and of the one before. Everything else in the tables must be what
the events say. Where text was erased, and only there, the event of the erasure says what has stood there since.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wise.errors import StoreError
from wise.memory.store.backends.base import Scan
from wise.memory.store.checked import Checked, pages
from wise.memory.store.edit_request import (
    BEGINNING,
    ERASED,
    ERASED_TEXT,
    FOLLOWS,
    LIVE,
    QUEUED,
    TRAINING,
    Event,
    Ticket,
    Version,
)
from wise.memory.store.rows import EVENT, TICKET, TICKETS, VERSION, event_of, ticket_of, version_of
from wise.progress import Progress

STATUS = list(TICKETS).index("status")
T = TypeVar("T")
Life = list[tuple[int, str, int | None, str]]
"""Of a ticket's events: number, kind, version and detail, as they lie in the table."""


@dataclass(kw_only=True)
class History:
    problems: list[str] = field(default_factory=list)
    events: int = 0
    tickets: int = 0
    live: set[int] = field(default_factory=set)
    """Numbers of the live tickets."""
    erased_events: dict[int, str] = field(default_factory=dict)
    """Event -> the digest that it has by now, since text of it was erased."""
    erased_tickets: dict[int, str] = field(default_factory=dict)
    """Ticket -> the digest of its content, likewise."""
    versions: list[Version] = field(default_factory=list)
    event_pages: list[str] = field(default_factory=list)
    ticket_pages: list[str] = field(default_factory=list)

    def sound(self, read: Callable[[Sequence[Any]], T], rows: Iterable[Sequence[Any]]) -> list[T]:
        """The rows that can be read; the others are problems."""
        sound = []
        for row in rows:
            try:
                sound.append(read(row))
            except StoreError as error:
                self.problems.append(str(error))
        return sound


def check_history(scan: Scan, before: Checked, progress: Progress) -> History:
    """Verifies all rows. What is the same as `before` is read, and not taken apart."""
    history = History()
    _read_erasures(scan, history)
    touched = _check_events(scan, history, before, progress)
    _check_tickets(scan, history, before, touched, progress)
    _check_versions(scan, history)
    there = "SELECT 1 FROM tickets WHERE tickets.number = events.ticket"
    strays = scan(f"SELECT DISTINCT ticket FROM events WHERE ticket IS NOT NULL AND NOT EXISTS ({there})")
    history.problems += [f"there are events of ticket {number!r:.20}, which is missing" for (number,) in strays]
    return history


def _read_erasures(scan: Scan, history: History) -> None:
    """Before the events that they are about; that they are themselves sound is checked with the others."""
    for ticket, detail in scan("SELECT ticket, detail FROM events WHERE kind = ? ORDER BY number", ERASED):
        try:
            erasure = json.loads(detail)
            history.erased_events |= {int(number): str(digest) for number, digest in erasure["events"].items()}
            history.erased_tickets[int(ticket)] = str(erasure["content"])
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
            continue  # its own row is found damaged


def _check_events(scan: Scan, history: History, before: Checked, progress: Progress) -> set[int]:
    """Returns the tickets that events are about which were not checked before."""
    touched: set[int] = set()
    total = _count(scan, "events")
    last = BEGINNING
    for place, (digest, page) in enumerate(pages(scan(f"SELECT {EVENT} ORDER BY number"))):
        history.event_pages.append(digest)
        history.events += len(page)
        progress("events", history.events, total)
        if history.event_pages == [*before.events[: place + 1]]:
            try:
                last = event_of(page[-1])
                continue
            except StoreError:
                pass  # it is taken apart, which names the row
        for event in history.sound(event_of, page):
            history.problems += _event_problems(event, last, history.erased_events)
            last = event
            if event.ticket is not None:
                touched.add(event.ticket)
    return touched


def _event_problems(event: Event, last: Event, erased: Mapping[int, str]) -> Iterator[str]:
    if event.number != last.number + 1:
        yield from _gap("event", last.number, event.number)
    linked = event.linked(last.digest)
    if linked != event.digest:
        says_erased = ERASED in event.detail or ERASED_TEXT in json.dumps([event.author, event.detail])
        if not says_erased or linked != erased.get(event.number):
            yield f"event {event.number} is not what was noted, or follows another than was noted"
    if event.at < last.at and not (event.jumped or 0) < 0:
        yield f"event {event.number} is dated before event {last.number}"


def _check_tickets(scan: Scan, history: History, before: Checked, touched: set[int], progress: Progress) -> None:
    total, last = _count(scan, "tickets"), 0
    for place, (digest, page) in enumerate(pages(scan(f"SELECT {TICKET} ORDER BY number"))):
        history.ticket_pages.append(digest)
        history.tickets += len(page)
        progress("tickets", history.tickets, total)
        is_unchanged, end = before.tickets[place : place + 1] == (digest,), page[-1][0]
        if is_unchanged:
            history.live |= {row[0] for row in page if row[STATUS] == LIVE}
            page = [row for row in page if row[0] in touched]
        sound = history.sound(ticket_of, page)
        lives = _lives(scan, sound)
        for ticket in sound:
            if not is_unchanged and ticket.number != last + 1:
                history.problems += _gap("ticket", last, ticket.number)
            last = ticket.number
            history.live |= {ticket.number} if ticket.status == LIVE else set()
            history.problems += _life_problems(ticket, lives[ticket.number], history.erased_tickets)
        last = end if is_unchanged else last


def _lives(scan: Scan, tickets: Sequence[Ticket]) -> dict[int, Life]:
    lives: dict[int, Life] = {ticket.number: [] for ticket in tickets}
    rows = scan(
        "SELECT ticket, number, kind, version, detail FROM events WHERE ticket >= ? AND ticket <= ? AND kind <> ? "
        "ORDER BY ticket, number",
        min(lives, default=0), max(lives, default=0), ERASED,
    )
    for ticket, *event in rows:
        if ticket in lives:
            lives[ticket].append(tuple(event))
    return lives


def _life_problems(ticket: Ticket, life: Life, erased: Mapping[int, str]) -> Iterator[str]:
    name = f"ticket {ticket.number}"
    queued = life[0][1] == QUEUED if life else False
    content = _object(life[0][3]).get("content") if queued else None
    if ticket.number in erased:
        content = erased[ticket.number] if ticket.erased else None
    if not queued or content != ticket.content:
        yield f"{name} is not what was enqueued"
        return
    outcome: dict[str, Any] = {"status": QUEUED, "live_in": None, "retired_in": None, "verified": None}
    for number, kind, version, detail in life[1:]:
        before, outcome["status"] = outcome["status"], kind
        if kind not in FOLLOWS.get(before, ()):
            yield f"{name} went from {before} to {kind} (event {number})"
        if kind == LIVE:
            outcome["live_in"] = version
        if before == LIVE:
            outcome["retired_in"] = version
        if before == TRAINING and kind != QUEUED and detail != "{}":
            outcome["verified"] = _object(detail)
    for field_, wanted in outcome.items():
        if getattr(ticket, field_) != wanted:
            yield f"{name}: {field_} is {getattr(ticket, field_)!r:.200}, and its events say {wanted!r:.200}"


def _check_versions(scan: Scan, history: History) -> None:
    made_by: dict[Any, tuple[Any, ...]] = {}
    collected = set()
    for kind, number, *row in scan(
        "SELECT kind, version, at, author, detail FROM events WHERE kind IN ('version', 'collected') ORDER BY number"
    ):
        if kind == "version":
            made_by[number] = tuple(row)
        else:
            collected.add(number)
    last = 0
    history.versions = history.sound(version_of, scan(f"SELECT {VERSION} ORDER BY number"))
    for version in history.versions:
        if version.number != last + 1:
            history.problems += _gap("version", last, version.number)
        last = version.number
        at, author, detail = made_by.pop(version.number, ("", None, "{}"))
        expected_row = {**_object(detail), "number": version.number, "at": at, "author": author}
        if {**expected_row, "collected": version.number in collected} != version.to_dict():
            history.problems.append(f"version {version.number} is not what its events say")
    history.problems += [f"version {number!r:.20} is missing" for number in made_by]


def _object(text: object) -> dict[str, Any]:
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _gap(name: str, before: int, number: int) -> Iterable[str]:
    if number <= before:
        return [f"{name} {number} is there twice"]
    first, last = before + 1, number - 1
    return [f"{name} {first} is missing" if first == last else f"{name} {first} to {last} are missing"]


def _count(scan: Scan, table: str) -> int:
    return int(next(scan(f"SELECT COUNT(*) FROM {table}"))[0])
