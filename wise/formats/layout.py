"""What every layout of published records has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from wise.edits import Record
from wise.formats.fields import Fields, JsonRow
from wise.formats.tracked_row import peek


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which records are written down. Several layouts may share a format."""

    format: str
    required: tuple[str, ...]
    """Paths that every record has."""
    optional: tuple[str, ...] = ()
    """Further paths or names that a record may have."""
    read: Callable[[Fields, int], list[Record]]
    """The records that a row holds, none where it asks for no edit; also given is the row's line, or number in the
    list, for records without a number of their own. Raises EditError, naming the field as the file does."""
    subject: str = ""
    """Path of the subject; empty where each record takes its own."""
    mark: tuple[str, str] = ("", "")
    """A path, and what its text begins with in this layout alone."""
    strict: bool = False
    """The project's own format: nothing is stepped over."""

    @cached_property
    def needed(self) -> frozenset[str]:
        """The outermost names of the paths that every record has."""
        return _outermost(self.required)

    @cached_property
    def fields(self) -> frozenset[str]:
        """The outermost names that a record may have."""
        return _outermost((*self.required, *self.optional))

    def marked(self, row: JsonRow) -> bool:
        """The text at the mark, or the first one there, begins as in this layout alone."""
        path, beginning = self.mark
        value = peek(row, path) if path else None
        first = value[0] if isinstance(value, list) and value else value
        return isinstance(first, str) and first.startswith(beginning)


def _outermost(paths: Iterable[str]) -> frozenset[str]:
    return frozenset(path.partition(".")[0] for path in paths if path)
