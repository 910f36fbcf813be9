"""The rows of a journal as records: which columns each table has, what may stand in them, and reading them strictly.

Whatever lies in a file may be read here. A row that is not what was written is never taken for one that was: it raises
StoreError, or, where it must be shown, becomes a ticket that says so (`Ticket.problem`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from wise.edits import Edit
from wise.errors import EditError, StoreError, checked_namespace, checked_text
from wise.memory.store.backends.base import Execute
from wise.memory.store.edit_request import FAILED, FOLLOWS, Event, Ticket, Version

LARGEST = 2**62
"""No count of ours is above it."""
TEXT, TEXT_OR_NONE, NUMBER, NUMBER_OR_NONE, OBJECT, OBJECT_OR_NONE = range(6)
"""What a column holds; an object is JSON."""

TICKETS: Mapping[str, int] = {
    "number": NUMBER, "edit_id": TEXT, "namespace": TEXT, "edit": OBJECT, "reason": TEXT_OR_NONE,
    "valid_from": TEXT_OR_NONE, "valid_until": TEXT_OR_NONE, "key": TEXT_OR_NONE, "accepted_at": TEXT, "status": TEXT,
    "live_in": NUMBER_OR_NONE, "retired_in": NUMBER_OR_NONE, "verified": OBJECT_OR_NONE,
}
EVENTS: Mapping[str, int] = {
    "number": NUMBER, "at": TEXT, "kind": TEXT, "ticket": NUMBER_OR_NONE, "version": NUMBER_OR_NONE,
    "author": TEXT_OR_NONE, "detail": OBJECT, "jumped": NUMBER_OR_NONE, "digest": TEXT,
}
VERSIONS: Mapping[str, int] = {
    "number": NUMBER, "manifest": TEXT, "parent": NUMBER, "kind": TEXT, "at": TEXT, "author": TEXT_OR_NONE,
    "reason": TEXT_OR_NONE, "edits": NUMBER, "collected": NUMBER,
}
TICKET, EVENT, VERSION = (
    f"{', '.join(columns)} FROM {table}"
    for table, columns in (("tickets", TICKETS), ("events", EVENTS), ("versions", VERSIONS))
)
"""What to put behind SELECT."""
UNREADABLE = "(this row of the journal cannot be read)"


def ticket_of(row: Sequence[Any]) -> Ticket:
    """Raises StoreError where the row is not one that was written."""
    fields = _fields("ticket", TICKETS, row)
    edit_id, namespace = fields.pop("edit_id"), fields.pop("namespace")
    try:
        edit = Edit.from_dict(fields["edit"])
    except (EditError, TypeError, ValueError) as error:
        raise _damaged("ticket", row, "its edit is none that was written") from error
    for name, column, wanted in (("edit_id", edit_id, edit.id), ("namespace", namespace, edit.namespace)):
        if column != wanted:
            raise _damaged("ticket", row, f"{name} is {column!r:.60} and its edit says {wanted!r:.60}")
    if fields["status"] not in FOLLOWS:
        raise _damaged("ticket", row, f"status is {fields['status']!r:.40}")
    return Ticket(**{**fields, "edit": edit})


def shown_ticket(row: Sequence[Any]) -> Ticket:
    """The same, to be shown: a row that cannot be read becomes a ticket that says why."""
    try:
        return ticket_of(row)
    except StoreError as error:
        fields: dict[str, Any] = {
            name: value if _holds(kind, value) else None
            for (name, kind), value in zip(TICKETS.items(), row, strict=True)
        }
        named: dict[str, Any] = {
            "id": _readable(partial(checked_text, "id"), fields.pop("edit_id")),
            "namespace": _readable(checked_namespace, fields.pop("namespace")),
        }
        fields |= {
            "number": fields["number"] or 0,
            "accepted_at": fields["accepted_at"] or "",
            "status": fields["status"] if fields["status"] in FOLLOWS else FAILED,
            "verified": None,
            "edit": Edit(**named, prompt=UNREADABLE, target=UNREADABLE),
        }
        return Ticket(**fields, problem=str(error))


def event_of(row: Sequence[Any]) -> Event:
    """Raises StoreError where the row is not one that was written."""
    return Event(**_fields("event", EVENTS, row))


def shown_event(row: Sequence[Any]) -> Event:
    """The same, to be shown: a row that cannot be read becomes an event of kind `damaged` that says why."""
    try:
        return event_of(row)
    except StoreError as error:
        number = row[0] if _holds(NUMBER, row[0]) else 0
        return Event(number=number, at="", kind="damaged", detail={"problem": str(error)})


def version_of(row: Sequence[Any]) -> Version:
    """Raises StoreError where the row is not one that was written."""
    fields = _fields("version", VERSIONS, row)
    if fields["collected"] not in (0, 1):
        raise _damaged("version", row, f"collected is {fields['collected']}")
    return Version(**{**fields, "collected": bool(fields["collected"])})


def insert(execute: Execute, table: str, **values: object) -> None:
    execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", *values.values())


def update(execute: Execute, table: str, number: int, **values: object) -> None:
    columns = ", ".join(f"{name} = ?" for name in values)
    execute(f"UPDATE {table} SET {columns} WHERE number = ?", *values.values(), number)


def _readable(check: Callable[[object], str], value: object) -> str:
    try:
        return check(value)
    except EditError:
        return UNREADABLE


def _holds(kind: int, value: object) -> bool:
    if value is None:
        return kind in (TEXT_OR_NONE, NUMBER_OR_NONE, OBJECT_OR_NONE)
    if kind in (NUMBER, NUMBER_OR_NONE):
        return type(value) is int and -LARGEST < value < LARGEST
    return isinstance(value, str) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:  # bytes that are not UTF-8, as a backend gives them
        return False


def _fields(what: str, columns: Mapping[str, int], row: Sequence[Any]) -> dict[str, Any]:
    fields = dict(zip(columns, row, strict=True))
    for name, kind in columns.items():
        if not _holds(kind, fields[name]):
            raise _damaged(what, row, f"{name} is of type {type(fields[name]).__name__}")
        if kind in (OBJECT, OBJECT_OR_NONE) and fields[name] is not None:
            fields[name] = _object(what, row, name, fields[name])
    return fields


def _object(what: str, row: Sequence[Any], name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(what, row, error) from error
    if not isinstance(value, dict):
        raise _damaged(what, row, f"{name} is of type {type(value).__name__}, not an object")
    if json.dumps(value) != text:
        raise _damaged(what, row, f"{name} is not spelled as it was written")
    return value


def _damaged(what: str, row: Sequence[Any], why: object) -> StoreError:
    """why: quotes no text of the row, since logs quote it."""
    return StoreError(f"the journal is damaged at {what} {row[0]!r:.20} ({why}); restore it from a backup")
