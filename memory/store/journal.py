"""The journal of a store: who asked for which edit, what became of it, and in which version.

Tickets are numbered in the order in which they were enqueued, events in the order in which they happened. Both are
counted under the one lock that every transaction takes, so there are no gaps, and a number is never seen before a
smaller one. Order comes from these numbers alone; whether an edit is valid is judged by the present time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from wise.edits import check_unique
from wise.errors import ConflictError, EditError, StoreError
from wise.memory.store.backends.base import Backend, Execute, digest_of
from wise.memory.store.clock import Clock
from wise.memory.store.edit_request import (
    BEGINNING,
    CLOCK,
    EXPIRED,
    FOLLOWS,
    LIVE,
    QUEUED,
    RETIRED,
    TRAINING,
    UNDER_WAY,
    EditRequest,
    Event,
    Ticket,
    Version,
    now,
)
from wise.memory.store.rows import (
    EVENT,
    LARGEST,
    TICKET,
    VERSION,
    event_of,
    insert,
    shown_event,
    shown_ticket,
    ticket_of,
    update,
    version_of,
)

ORIGIN = Version(
    number=0, manifest="", parent=0, kind="origin", at="", author=None, reason=None, edits=0, collected=False
)
AT_ONCE = 500
"""Tickets that one statement asks for by number."""
ERASED_KEY = "sha256:"
"""How the key of an erased ticket begins; its SHA-256 follows."""


class Move(NamedTuple):
    ticket: int
    to: str
    detail: Mapping[str, Any] = {}
    """Kept in the event, and as `Ticket.verified` where it says anything and the ticket goes live or fails."""


class Journal:
    """What the tables of a backend say, and how they may change."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._clock = Clock()
        self._time_was_over = True
        """Whether edits may be retired whose time is not over any more."""

    # -- reading ----------------------------------------------------------------------------------

    def tickets(
        self, *, numbers: Sequence[int] | None = None, status: str | Collection[str] | None = None,
        namespaces: Collection[str] | None = None, edit_id: str | None = None, key: str | None = None, since: int = 0,
        until: int | None = None, limit: int | None = None, newest: bool = False
    ) -> tuple[Ticket, ...]:
        """Those that meet every condition that is given, by number; `since` is the last number not wanted, `until` the
        last wanted one. newest: the highest numbers first.

        status, namespaces: those of one of several. A ticket that cannot be read says so: `Ticket.problem`.
        """
        with self._backend.reading() as execute:  # for no longer than it takes: it holds up who writes
            if numbers is not None:
                rows = _ticket_rows(execute, numbers)
            else:
                keys = None if key is None else (key, erased_key(key))
                condition, values = _conditions(status=status, namespace=namespaces, edit_id=edit_id, key=keys)
                if until is not None:
                    condition, values = condition + " AND number <= ?", (*values, until)
                order = "number DESC" if newest else "number"
                statement = f"SELECT {TICKET} WHERE number > ?{condition} ORDER BY {order}{_limit(limit)}"
                rows = execute(statement, since, *values)
        return tuple(map(shown_ticket, rows))

    def accepted_between(self, begin: str | None, end: str | None) -> tuple[int, int]:
        """The lowest and the highest number of the tickets that were accepted from `begin` on and before `end`.

        1 and 0 if there is none. The times are UTC, as `Ticket.accepted_at`. They may fall while numbers rise: a clock
        is set back. So others may lie between these two.
        """
        bounds = "SELECT COALESCE(MIN(number), 1), COALESCE(MAX(number), 0) FROM tickets"
        where = "WHERE accepted_at >= ? AND accepted_at < ?"
        [(first, last)] = self._read(f"{bounds} {where}", begin or "", end or "9999")
        return first, last

    def oldest_queued(self) -> str | None:
        """When the oldest ticket that is queued was accepted."""
        rows = self._read("SELECT accepted_at FROM tickets WHERE status = ? ORDER BY number LIMIT 1", QUEUED)
        return str(rows[0][0]) if rows else None

    def namespaces(self, status: Collection[str]) -> frozenset[str]:
        """Those of the tickets with one of these statuses."""
        condition, values = _conditions(status=status)
        rows = self._read(f"SELECT DISTINCT namespace FROM tickets WHERE 1 = 1{condition}", *values)
        return frozenset(str(namespace) for (namespace,) in rows)

    def counts(self, *, namespace: str | None = None, edit_id: str | None = None) -> Mapping[str, int]:
        """How many tickets have each status, in the order of the first of each."""
        condition, values = _conditions(namespace=namespace, edit_id=edit_id)
        grouped = "GROUP BY status ORDER BY MIN(number)"
        rows = self._read(f"SELECT status, COUNT(*) FROM tickets WHERE 1 = 1{condition} {grouped}", *values)
        return {str(status): count for status, count in rows}

    def events(
        self, *, since: int = 0, ticket: int | None = None, namespace: str | None = None, edit_id: str | None = None,
        limit: int | None = None
    ) -> tuple[Event, ...]:
        """What happened after event `since`, in order: all, or to one ticket, or to those of a namespace or an id."""
        condition, values = _conditions(ticket=ticket)
        of_tickets, named = _conditions(namespace=namespace, edit_id=edit_id)
        if named:
            condition += f" AND ticket IN (SELECT number FROM tickets WHERE number > 0{of_tickets})"
        statement = f"SELECT {EVENT} WHERE number > ?{condition} ORDER BY number{_limit(limit)}"
        rows = self._read(statement, since, *values, *named)
        return tuple(map(shown_event, rows))

    def versions(self, *, before: int | None = None, newest: int | None = None) -> tuple[Version, ...]:
        """All but version 0, by number; those before version `before`. newest: so many, the highest numbers first."""
        order = "number" if newest is None else f"number DESC{_limit(newest)}"
        rows = self._read(f"SELECT {VERSION} WHERE number < ? ORDER BY {order}", LARGEST if before is None else before)
        return tuple(map(version_of, rows))

    def version(self, number: int | None = None) -> Version:
        """Version `number`, or the current one. Raises StoreError where there is no such version."""
        with self._backend.reading() as execute:
            current = _current(execute)
            if number is None or number == current.number:
                return current
            rows = execute(f"SELECT {VERSION} WHERE number = ?", number)
        if number == 0:
            return ORIGIN
        if not rows:
            raise StoreError(f"{self._backend.place} has no version {number}; give one from 0 to {current.number}")
        return version_of(rows[0])

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._backend.reading() as execute:
            return execute(statement, *values)

    # -- writing ----------------------------------------------------------------------------------

    def enqueue(self, requests: Sequence[EditRequest], key: str | None) -> tuple[Ticket, ...]:
        check_unique([request.edit for request in requests])
        with self.writing() as (execute, events):
            if key is not None:
                if execute("SELECT number FROM tickets WHERE key = ?", erased_key(key)):
                    raise EditError(f"key {key!r} was used for edits that were erased since; use another key")
                if earlier := _tickets(execute, f"SELECT {TICKET} WHERE key = ? ORDER BY number", key):
                    if [ticket.request for ticket in earlier] == list(requests):
                        return tuple(earlier)
                    first = earlier[0].number
                    raise EditError(f"key {key!r} was used for other edits, from ticket {first} on; use another key")
            return tuple(self._accept(execute, events, request, key) for request in requests)

    def _accept(self, execute: Execute, events: EventWriter, request: EditRequest, key: str | None) -> Ticket:
        edit = request.edit
        for number, status in _under_way(execute, edit.id):
            raise EditError(
                f"field 'id': edit {edit.id!r} is {status} already, as ticket {number}; leave the edit out, or give it "
                "another id"
            )
        [(last,)] = execute("SELECT COALESCE(MAX(number), 0) FROM tickets")
        new: dict[str, Any] = {"number": last + 1, "key": key, "accepted_at": events.at, "status": QUEUED}
        new |= vars(request)
        ticket = Ticket(**new)
        columns = {"edit_id": edit.id, "namespace": edit.namespace, "edit": json.dumps(edit.to_dict())}
        insert(execute, "tickets", **new | columns)
        events.write(QUEUED, ticket=ticket.number, author=edit.author, detail={"content": ticket.content})
        return ticket

    def claim(self, limit: int) -> tuple[Ticket, ...]:
        wanted = "status = ? AND COALESCE(valid_from, '') <= ? AND number > ?"
        due = f"SELECT {TICKET} WHERE {wanted} ORDER BY number LIMIT ?"
        present, last, claimed = now(), 0, list[int]()
        with self.writing() as (execute, events):
            if self._time_was_over or events.jumped:
                _queue_again(execute, events, present)
            over = f"SELECT {TICKET} WHERE status = ? AND valid_until <= ? ORDER BY number"
            for ticket in _tickets(execute, over, QUEUED, present):
                events.move(Move(ticket.number, RETIRED, EXPIRED))
            while len(claimed) < limit and (rows := execute(due, QUEUED, present, last, limit)):
                last = rows[-1][0]
                claimed += [ticket.number for ticket in map(shown_ticket, rows) if not ticket.problem]
            del claimed[limit:]
            for number in claimed:
                events.move(Move(number, TRAINING))
            if events.jumped:
                events.write(CLOCK)
            tickets = tuple(ticket_of(_ticket_row(execute, number)) for number in claimed)
        self._time_was_over = False
        return tickets

    def expired(self) -> tuple[Ticket, ...]:
        """Live tickets whose time is over, or has not come by a clock that was set back."""
        over = f"SELECT {TICKET} WHERE status = ? AND {{}} ORDER BY number"
        present = now()
        with self._backend.reading() as execute:
            ended = execute(over.format("valid_until <= ?"), LIVE, present)
            early = execute(over.format("valid_from > ?"), LIVE, present)
        return tuple(ticket for ticket in map(shown_ticket, (*ended, *early)) if not ticket.problem)

    def move(self, moves: Sequence[Move], *, author: str | None = None) -> None:
        """Moves tickets while the memory stays what it is."""
        with self.writing() as (_, events):
            for move in moves:
                events.move(move, author=author)
        self._look_for_time_over(moves)

    def add_version(
        self, *, kind: str, manifest: str, parent: int, edits: int, moves: Sequence[Move], author: str | None,
        reason: str | None
    ) -> Version:
        """Makes a version current, and moves the tickets that it concerns. Retirements go first."""
        with self.writing() as (execute, events):
            current = _current(execute)
            if current.number != parent:
                raise StoreError(f"{self._backend.place}: version {current.number} came between; edit that one")
            number = parent + 1
            detail = {"kind": kind, "manifest": manifest, "parent": parent, "reason": reason, "edits": edits}
            insert(execute, "versions", number=number, at=events.at, author=author, collected=0, **detail)
            events.write("version", version=number, author=author, detail=detail)
            for move in sorted(moves, key=lambda move: move.to != RETIRED):
                events.move(move, version=number, author=author)
            new_version = _current(execute)
        self._look_for_time_over(moves)
        return new_version

    @contextmanager
    def writing(self) -> Iterator[tuple[Execute, EventWriter]]:
        """A transaction that adds events. A jump of the clock that no event of it says in the end is noticed again."""
        with self._clock.lock:
            last_reading, recorded = self._clock.last_reading, False
            try:
                with self._backend.transaction() as execute:
                    events = EventWriter(execute, self._clock)
                    yield execute, events
                recorded = events.jumped is None
            finally:
                if not recorded:
                    self._clock.last_reading = last_reading

    def _look_for_time_over(self, moves: Sequence[Move]) -> None:
        self._time_was_over |= any(move.detail == EXPIRED for move in moves)


class EventWriter:
    """Moves tickets and adds events within one transaction."""

    def __init__(self, execute: Execute, clock: Clock) -> None:
        rows = execute(f"SELECT {EVENT} ORDER BY number DESC LIMIT 1")
        self._execute, self._last = execute, event_of(rows[0]) if rows else BEGINNING
        self.at, self.jumped = clock.look(now(), self._last.at)

    def write(self, kind: str, **fields: Any) -> None:
        """fields: ticket, version, author and detail of the event, those that it has."""
        event = Event(number=self._last.number + 1, at=self.at, kind=kind, jumped=self.jumped, **fields)
        self.jumped = None
        self._last = replace(event, digest=event.linked(self._last.digest))
        insert(self._execute, "events", **vars(self._last) | {"detail": json.dumps(event.detail, sort_keys=True)})

    def collect(self, versions: Sequence[Version]) -> None:
        """Notes that these can no longer be read, and writes their events."""
        for version in versions:
            update(self._execute, "versions", version.number, collected=1)
            self.write("collected", version=version.number)

    def move(self, move: Move, *, version: int | None = None, author: str | None = None) -> None:
        """Gives a ticket its new status, and writes the event. Raises ConflictError where an edit would come back that
        is under way anew."""
        ticket = ticket_of(_ticket_row(self._execute, move.ticket))
        following = FOLLOWS.get(ticket.status, ())
        if move.to not in following:
            raise StoreError(
                f"ticket {ticket.number} (edit {ticket.edit.id!r}) is {ticket.status} and cannot become {move.to}; "
                f"from there: {', '.join(following) or 'nothing'}"
            )
        changed: dict[str, Any] = {"status": move.to}
        if move.to == LIVE:
            changed["live_in"] = version
            for number, status in _under_way(self._execute, ticket.edit.id):
                if number != ticket.number:
                    raise ConflictError(
                        f"edit {ticket.edit.id!r} would come back while it is {status} as ticket {number}; "
                        "wait until that is done, or delete it"
                    )
        if ticket.status == LIVE:
            changed["retired_in"] = version
        if move.detail and ticket.status == TRAINING and move.to != QUEUED:
            changed["verified"] = json.dumps(move.detail)
        update(self._execute, "tickets", ticket.number, **changed)
        self.write(move.to, ticket=ticket.number, version=version, author=author, detail=move.detail)


def _limit(limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {int(limit)}"


def _current(execute: Execute) -> Version:
    rows = execute(f"SELECT {VERSION} ORDER BY number DESC LIMIT 1")
    return version_of(rows[0]) if rows else ORIGIN


def _ticket_row(execute: Execute, number: int) -> tuple[Any, ...]:
    [row] = _ticket_rows(execute, [number])
    return row


def _ticket_rows(execute: Execute, numbers: Sequence[int]) -> list[tuple[Any, ...]]:
    """Those of these numbers, in their order. Raises StoreError where there is none."""
    rows: dict[int, tuple[Any, ...]] = {}
    for start in range(0, len(numbers), AT_ONCE):
        condition, values = _conditions(number=numbers[start : start + AT_ONCE])
        rows |= {row[0]: row for row in execute(f"SELECT {TICKET} WHERE 1 = 1{condition}", *values)}
    if missing := [number for number in numbers if number not in rows]:
        raise StoreError(f"there is no ticket {missing[0]}; `wise store log` names those that there are")
    return [rows[number] for number in numbers]


def _tickets(execute: Execute, statement: str, *values: Any) -> list[Ticket]:
    """Those that can be read. The others are skipped here; the check names them."""
    return [ticket for ticket in map(shown_ticket, execute(statement, *values)) if not ticket.problem]


def _under_way(execute: Execute, edit_id: str) -> list[tuple[Any, ...]]:
    """Number and status of the ticket of this edit that is under way: one, or none."""
    # the statuses are spelled out as the index spells them, or SQLite would not use it
    under_way = "SELECT number, status FROM tickets WHERE edit_id = ? AND status IN ('queued', 'training', 'live')"
    return execute(under_way, edit_id)


def _queue_again(execute: Execute, events: EventWriter, present: str) -> None:
    """Queues what was retired because its time was over, or had not come, if by now that is not so.

    It stays retired if its id is in use again, or a later edit of its prompt is.
    """
    outside = (
        f"SELECT {TICKET} WHERE status = ? AND (valid_until > ? OR valid_until IS NULL AND valid_from IS NOT NULL) "
        "ORDER BY number"
    )
    among, statuses = _conditions(status=UNDER_WAY)
    other = f"SELECT {TICKET} WHERE namespace = ?{among} AND (edit_id = ? OR number > ?)"
    for ticket in _tickets(execute, outside, RETIRED, present):
        last = execute("SELECT kind, detail FROM events WHERE ticket = ? ORDER BY number DESC LIMIT 1", ticket.number)
        if last != [(RETIRED, json.dumps(EXPIRED))]:
            continue
        edit = ticket.edit
        later = _tickets(execute, other, edit.namespace, *statuses, edit.id, ticket.number)
        if not any(one.edit.id == edit.id or one.edit.prompt == edit.prompt for one in later):
            events.move(Move(ticket.number, QUEUED, {"why": "the clock was set, and its time is not over"}))


def erased_key(key: str) -> str:
    """What stands for the key of an erased ticket, so that the call that is repeated queues nothing again."""
    return ERASED_KEY + digest_of(key.encode())


def _conditions(**wanted: object) -> tuple[str, tuple[object, ...]]:
    """SQL for the columns that must have a given value, or one of several, and the values."""
    condition, values = "", list[object]()
    for name, value in wanted.items():
        several = list(value) if isinstance(value, Collection) and not isinstance(value, str) else [value]
        if value is not None:
            condition += f" AND {name} IN ({', '.join('?' * len(several)) or 'NULL'})"
            values += several
    return condition, tuple(values)
