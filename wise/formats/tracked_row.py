"""An object of a file that records which of its fields were read, so that the others can be named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

from wise.errors import EditError

_NOTHING: tuple[object, ...] = (None, "", [], {})


class TrackedRow(dict[str, Any]):
    """A dictionary that records which of its keys were read."""

    def __init__(self, fields: Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__(fields)
        self.read_keys: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read_keys.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read_keys.add(key)
        return super().__getitem__(key)

    @classmethod
    def unique(cls, pairs: list[tuple[str, Any]]) -> TrackedRow:
        """The object of these fields. Raises EditError for a name that is there twice."""
        row = cls(pairs)
        if len(row) < len(pairs):
            twice = repeated(name for name, _ in pairs)
            raise EditError(f"field {twice!r}: given twice in one object; leave one of the two out")
        return row


def repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def tracked(value: Any) -> Any:
    """A value of a table: objects as `TrackedRow`, null fields left out, dates as ISO 8601 texts."""
    if isinstance(value, Mapping):
        return TrackedRow((name, tracked(inner)) for name, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return [tracked(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value


def unread(value: object, path: str = "") -> Iterator[str]:
    """The path of every field that has a value and was not read, outermost first."""
    if isinstance(value, TrackedRow):
        for name, inner in value.items():
            way = f"{path}.{name}" if path else name
            if name in value.read_keys:
                yield from unread(inner, way)
            elif inner not in _NOTHING:
                yield way
    elif isinstance(value, list):
        for inner in value:
            yield from unread(inner, path)


def peek(row: object, path: str) -> object:
    """What stands at a dotted path, None where nothing does; it does not count as read."""
    for name in path.split("."):
        row = dict.get(row, name) if isinstance(row, dict) else None
    return row
