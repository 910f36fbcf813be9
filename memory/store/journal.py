"""The journal of a store: who asked for which edit, what became of it, and in which version.

Tickets are numbered in the order in which they were enqueued, events in the order in which they happened. Both are
counted under the one lock that every transaction takes, so there are no gaps, and a number is never seen before a
smaller one. No clock is trusted: a time is recorded, but never one before the last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wise.edits import Edit, check_unique
from wise.errors import EditError, StoreError
from wise.memory.store.backends.base import Backend, Execute
from wise.memory.store.edit_request import (
    FOLLOWS,
    LIVE,
    QUEUED,
    RETIRED,
    TRAINING,
    EditRequest,
    Event,
    Ticket,
    Version,
    now,
)

_TICKET = (
    "number, edit, reason, valid_from, valid_until, key, accepted_at, status, live_in, retired_in, verified "
    "FROM tickets"
)
_EVENT = "number, at, kind, ticket, version, author, detail, digest FROM events"
_VERSION = "number, manifest, parent, kind, at, author, reason, edits, collected FROM versions"
ORIGIN = Version(
    number=0, manifest="", parent=0, kind="origin", at="", author=None, reason=None, edits=0, collected=False
)
_BEGINNING = Event(number=0, at="", kind="beginning", ticket=None, version=None, author=None, detail={})
_NUMBERS = {"number", "ticket", "version", "live_in", "retired_in", "parent", "edits", "collected"}


@dataclass(frozen=True, kw_only=True)
class Move:
    """A ticket takes another status."""

    ticket: int
    to: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Kept in the event, and as `Ticket.verified` where it says anything and the ticket goes live or fails."""


class Journal:
    """What the tables of a backend say, and how they may change."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # -- reading ----------------------------------------------------------------------------------

    def tickets(
        self,
        *,
        numbers: Sequence[int] | None = None,
        status: str | None = None,
        namespace: str | None = None,
        edit_id: str | None = None,
        key: str | None = None,
        since: int = 0,
        limit: int | None = None,
    ) -> tuple[Ticket, ...]:
        """Those that meet every condition that is given, by number; `since` is the last number not wanted."""
        wanted = {"status": status, "namespace": namespace, "edit_id": edit_id, "key": key}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        conditions = "".join(f" AND {name} = ?" for name in wanted)
        statement = f"SELECT {_TICKET} WHERE number > ?{conditions} ORDER BY number{_limit(limit)}"
        with self._backend.reading() as execute:
            if numbers is None:
                return _tickets(execute, statement, since, *wanted.values())
            return tuple(_ticket_of(execute, number) for number in numbers)

    def events(self, *, since: int = 0, ticket: int | None = None, limit: int | None = None) -> tuple[Event, ...]:
        """What happened after event `since`, in order."""
        condition, values = ("", ()) if ticket is None else (" AND ticket = ?", (ticket,))
        statement = f"SELECT {_EVENT} WHERE number > ?{condition} ORDER BY number{_limit(limit)}"
        with self._backend.reading() as execute:
            return tuple(_event(row) for row in execute(statement, since, *values))

    def versions(self) -> tuple[Version, ...]:
        """All but version 0, by number."""
        with self._backend.reading() as execute:
            return tuple(_version(row) for row in execute(f"SELECT {_VERSION} ORDER BY number"))

    def version(self, number: int | None = None) -> Version:
        """Version `number`, or the current one. Raises StoreError where there is no such version."""
        with self._backend.reading() as execute:
            current = _current(execute)
            if number is None or number == current.number:
                return current
            rows = execute(f"SELECT {_VERSION} WHERE number = ?", number)
        if number == 0:
            return ORIGIN
        if not rows:
            raise StoreError(f"{self._backend.place} has no version {number}; give one from 0 to {current.number}")
        return _version(rows[0])

    # -- writing ----------------------------------------------------------------------------------

    def enqueue(self, requests: Sequence[EditRequest], key: str | None) -> tuple[Ticket, ...]:
        """See `Store.enqueue`."""
        check_unique([request.edit for request in requests])
        with self._backend.transaction() as execute:
            earlier = () if key is None else _tickets(execute, f"SELECT {_TICKET} WHERE key = ? ORDER BY number", key)
            if earlier:
                if [ticket.request for ticket in earlier] != list(requests):
                    first = earlier[0].number
                    raise EditError(f"key {key!r} was used for other edits, from ticket {first} on; use another key")
                return earlier
            events = _EventWriter(execute)
            return tuple(self._accept(execute, events, request, key) for request in requests)

    def _accept(self, execute: Execute, events: _EventWriter, request: EditRequest, key: str | None) -> Ticket:
        edit = request.edit
        under_way = execute(
            # spelled out as the index spells it, or SQLite would not use it
            "SELECT number, status FROM tickets WHERE edit_id = ? AND status IN ('queued', 'training', 'live')",
            edit.id,
        )
        if under_way:
            number, status = under_way[0]
            raise EditError(
                f"field 'id': edit {edit.id!r} is {status} already, as ticket {number}; leave it out, or give a new id"
            )
        [(last,)] = execute("SELECT COALESCE(MAX(number), 0) FROM tickets")
        ticket = Ticket(
            number=last + 1,
            key=key,
            accepted_at=events.at,
            status=QUEUED,
            live_in=None,
            retired_in=None,
            verified=None,
            **vars(request),
        )
        execute(
            "INSERT INTO tickets (number, edit_id, namespace, edit, reason, valid_from, valid_until, key, accepted_at, "
            "status) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ticket.number, edit.id, edit.namespace, json.dumps(edit.to_dict()), ticket.reason, ticket.valid_from,
            ticket.valid_until, key, ticket.accepted_at, QUEUED,
        )
        events.write(QUEUED, ticket=ticket.number, author=edit.author, detail={"content": ticket.content})
        return ticket

    def claim(self, limit: int) -> tuple[Ticket, ...]:
        """See `Store.claim`."""
        due = f"SELECT {_TICKET} WHERE status = ? AND COALESCE(valid_from, '') <= ? ORDER BY number LIMIT ?"
        with self._backend.transaction() as execute:
            events = _EventWriter(execute)
            late = execute(
                "SELECT number FROM tickets WHERE status = ? AND valid_until <= ? ORDER BY number", QUEUED, events.at
            )
            for (number,) in late:
                _move(execute, events, Move(ticket=number, to=RETIRED, detail={"why": "expired"}))
            claimed = [ticket.number for ticket in _tickets(execute, due, QUEUED, events.at, limit)]
            for number in claimed:
                _move(execute, events, Move(ticket=number, to=TRAINING))
            return tuple(_ticket_of(execute, number) for number in claimed)

    def expired(self) -> tuple[Ticket, ...]:
        """Live tickets whose time is over."""
        over = f"SELECT {_TICKET} WHERE status = ? AND valid_until <= ? ORDER BY number"
        with self._backend.reading() as execute:
            return _tickets(execute, over, LIVE, max(now(), _last_event(execute).at))

    def move(self, moves: Sequence[Move], *, author: str | None = None) -> None:
        """Tickets take another status while the memory stays what it is."""
        with self._backend.transaction() as execute:
            events = _EventWriter(execute)
            for move in moves:
                _move(execute, events, move, author=author)

    def add_version(
        self,
        *,
        kind: str,
        manifest: str,
        parent: int,
        edits: int,
        moves: Sequence[Move],
        author: str | None,
        reason: str | None,
    ) -> Version:
        """Makes a version current, and moves the tickets that it concerns. Retirements go first."""
        with self._backend.transaction() as execute:
            current = _current(execute)
            if current.number != parent:
                raise StoreError(
                    f"{self._backend.place}: version {current.number} came between; read it, then edit it again"
                )
            events = _EventWriter(execute)
            number = parent + 1
            execute(
                "INSERT INTO versions (number, manifest, parent, kind, at, author, reason, edits, collected) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
                number, manifest, parent, kind, events.at, author, reason, edits,
            )
            detail = {"kind": kind, "manifest": manifest, "parent": parent, "reason": reason, "edits": edits}
            events.write("version", version=number, author=author, detail=detail)
            for move in sorted(moves, key=lambda move: move.to != RETIRED):
                _move(execute, events, move, version=number, author=author)
            return _current(execute)

    def collect(self, version: int) -> None:
        """Records that a version can no longer be read."""
        with self._backend.transaction() as execute:
            execute("UPDATE versions SET collected = 1 WHERE number = ?", version)
            _EventWriter(execute).write("collected", version=version)


class _EventWriter:
    """Adds events within one transaction."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._last = _last_event(execute)
        self.at = max(now(), self._last.at)

    def write(
        self,
        kind: str,
        *,
        ticket: int | None = None,
        version: int | None = None,
        author: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        event = Event(
            number=self._last.number + 1,
            at=self.at,
            kind=kind,
            ticket=ticket,
            version=version,
            author=author,
            detail=detail or {},
        )
        self._last = replace(event, digest=event.linked(self._last.digest))
        values = {**vars(self._last), "detail": json.dumps(event.detail, sort_keys=True)}
        self._execute(
            "INSERT INTO events (number, at, kind, ticket, version, author, detail, digest) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *values.values(),
        )


def _move(
    execute: Execute, events: _EventWriter, move: Move, *, version: int | None = None, author: str | None = None
) -> None:
    ticket = _ticket_of(execute, move.ticket)
    following = FOLLOWS.get(ticket.status, ())
    if move.to not in following:
        raise StoreError(
            f"ticket {ticket.number} (edit {ticket.edit.id!r}) is {ticket.status} and cannot become {move.to}; "
            f"from there: {', '.join(following) or 'nothing'}"
        )
    changed: dict[str, Any] = {"status": move.to}
    if move.to == LIVE:
        changed["live_in"] = version
    if ticket.status == LIVE:
        changed["retired_in"] = version
    if move.detail and ticket.status == TRAINING and move.to != QUEUED:
        changed["verified"] = json.dumps(move.detail)
    columns = ", ".join(f"{name} = ?" for name in changed)
    execute(f"UPDATE tickets SET {columns} WHERE number = ?", *changed.values(), ticket.number)
    events.write(move.to, ticket=ticket.number, version=version, author=author, detail=move.detail)


def _limit(limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {int(limit)}"


def _current(execute: Execute) -> Version:
    rows = execute(f"SELECT {_VERSION} ORDER BY number DESC LIMIT 1")
    return _version(rows[0]) if rows else ORIGIN


def _last_event(execute: Execute) -> Event:
    rows = execute(f"SELECT {_EVENT} ORDER BY number DESC LIMIT 1")
    return _event(rows[0]) if rows else _BEGINNING


def _ticket_of(execute: Execute, number: int) -> Ticket:
    rows = _tickets(execute, f"SELECT {_TICKET} WHERE number = ?", number)
    if not rows:
        raise StoreError(f"there is no ticket {number}; `wise store log` names those that there are")
    return rows[0]


def _tickets(execute: Execute, statement: str, *values: Any) -> tuple[Ticket, ...]:
    return tuple(_ticket(row) for row in execute(statement, *values))


def _ticket(row: tuple[Any, ...]) -> Ticket:
    fields = _fields("ticket", _TICKET, row, json_in=("edit", "verified"))
    try:
        return Ticket(**{**fields, "edit": Edit.from_dict(fields["edit"])})
    except EditError as error:
        raise _damaged("ticket", row, error) from error


def _event(row: tuple[Any, ...]) -> Event:
    return Event(**_fields("event", _EVENT, row, json_in=("detail",)))


def _version(row: tuple[Any, ...]) -> Version:
    fields = _fields("version", _VERSION, row)
    return Version(**{**fields, "collected": bool(fields["collected"])})


def _fields(what: str, columns: str, row: tuple[Any, ...], json_in: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of a row by name. Raises StoreError where they are not what was written."""
    names = columns.partition(" FROM ")[0].split(", ")
    fields = dict(zip(names, row, strict=True))
    for name in _NUMBERS & fields.keys():
        if fields[name] is not None and not isinstance(fields[name], int):
            raise _damaged(what, row, f"{name} is {fields[name]!r:.40}")
    try:
        return fields | {name: json.loads(fields[name]) for name in json_in if fields[name] is not None}
    except (TypeError, ValueError) as error:
        raise _damaged(what, row, error) from error


def _damaged(what: str, row: tuple[Any, ...], why: object) -> StoreError:
    return StoreError(f"the journal is damaged at {what} {row[0]!r:.20} ({why}); restore it from a backup")
