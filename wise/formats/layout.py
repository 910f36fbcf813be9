"""The interface of a layout of published records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from wise.edits import Record
from wise.formats.fields import JsonRow, Note


def outermost(paths: Iterable[str]) -> frozenset[str]:
    """The names that dotted paths begin with."""
    return frozenset(path.partition(".")[0] for path in paths)


class Layout(Protocol):
    """One way in which records are written down. Several layouts may share a format."""

    @property
    def format(self) -> str: ...

    @property
    def fields(self) -> frozenset[str]:
        """The names a record may have, outermost level."""

    @property
    def required(self) -> tuple[str, ...]:
        """Paths that every record has."""

    @property
    def needed(self) -> frozenset[str]:
        """The outermost names of the required paths."""

    @property
    def subject(self) -> str:
        """Path of the subject; empty where each record takes its own."""

    @property
    def strict(self) -> bool:
        """The project's own format: nothing is stepped over."""

    def marked(self, row: JsonRow) -> bool:
        """The record holds what tells this layout from others with the same fields."""

    def read(self, row: JsonRow, place: int, note: Note) -> list[Record]:
        """The records that `row` holds, none where it asks for no edit.

        Args:
            row: the record as its file has it.
            place: its line, or number in the list, for records that have no number of their own.
            note: is told of every defect that was stepped over.

        Raises:
            EditError: naming the field as the file does.
        """


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A layout whose records are built by a function of their own."""

    format: str
    required: tuple[str, ...]
    """Paths that every record has."""
    optional: tuple[str, ...] = ()
    """Further names a record may have."""
    build: Callable[[JsonRow, int, Note], list[Record]]

    subject = ""
    strict = False

    @cached_property
    def fields(self) -> frozenset[str]:
        return self.needed | {*self.optional}

    @cached_property
    def needed(self) -> frozenset[str]:
        return outermost(self.required)

    def marked(self, row: JsonRow) -> bool:
        return False

    def read(self, row: JsonRow, place: int, note: Note) -> list[Record]:
        return self.build(row, place, note)
