"""What every layout of published records has, and those whose records a function of their own builds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from wise.edits import Record
from wise.formats.fields import JsonRow, Note


def outermost(paths: Iterable[str]) -> frozenset[str]:
    """The names that dotted paths begin with."""
    return frozenset(path.partition(".")[0] for path in paths)


class Layout(ABC):
    """One way in which records are written down. Several layouts may share a format."""

    format: str
    subject: str = ""
    """Path of the subject; empty where each record takes its own."""
    strict: bool = False
    """The project's own format: nothing is stepped over."""

    @property
    @abstractmethod
    def paths(self) -> tuple[str, ...]:
        """Paths that every record has."""

    @cached_property
    @abstractmethod
    def fields(self) -> frozenset[str]:
        """The names a record may have, outermost level."""

    @cached_property
    def needed(self) -> frozenset[str]:
        """The outermost names of the paths that every record has."""
        return outermost(self.paths)

    def marked(self, row: JsonRow) -> bool:
        """The record holds what tells this layout from others with the same fields."""
        return False

    @abstractmethod
    def read(self, row: JsonRow, place: int, note: Note) -> list[Record]:
        """The records that `row` holds, none where it asks for no edit.

        place: its line, or number in the list, for records that have no number of their own. note: is told of every
        defect that was stepped over.

        Raises EditError, naming the field as the file does.
        """


@dataclass(frozen=True, kw_only=True)
class Structure(Layout):
    """A layout whose records are built by a function, which takes and raises what `Layout.read` does."""

    format: str
    required: tuple[str, ...]
    """Paths that every record has."""
    optional: tuple[str, ...] = ()
    """Further names a record may have."""
    build: Callable[[JsonRow, int, Note], list[Record]]

    @property
    def paths(self) -> tuple[str, ...]:
        return self.required

    @cached_property
    def fields(self) -> frozenset[str]:
        return self.needed | {*self.optional}

    def read(self, row: JsonRow, place: int, note: Note) -> list[Record]:
        return self.build(row, place, note)
