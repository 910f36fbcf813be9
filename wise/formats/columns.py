"""Columns that have other names than the fields that are read from them: one way for every reader of records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from wise.errors import EditError, check_known, checked_text
from wise.formats.tracked_row import TrackedRow

EXAMPLE = "such as prompt=question,target=answer"


def parsed_columns(text: str | None) -> dict[str, str]:
    """FIELD=COLUMN pairs with commas between them. Raises EditError for what is none, or a field given twice."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    columns = {field.strip(): column.strip() for field, _, column in pairs}
    if len(columns) < len(pairs) or not all(columns) or not all(columns.values()):
        raise EditError(f"columns {text}: FIELD=COLUMN was expected, {EXAMPLE}")
    return columns


class Columns:
    """The columns of the fields of a record, and which of them were seen.

    A field `test.NAME` goes into the object `test`. A text in the place of a list is a list of one.
    """

    def __init__(
        self, named: Mapping[str, str] | None, fields: Sequence[str], *, lists: Collection[str] = ()
    ) -> None:
        """named: field -> column, where they differ. fields: all that there are; lists: those that hold lists.

        Raises EditError for an unknown field, or a name that is no text.
        """
        check_known("columns.", named or {}, fields)
        self.named = {field: checked_text(f"columns.{field}", column) for field, column in (named or {}).items()}
        self._column_of = {field: self.named.get(field, field) for field in fields}
        self._lists = lists
        self._columns: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.named)

    def of(self, field: str) -> str:
        return self._column_of[field]

    def fields_of(self, row: TrackedRow, fields: Iterable[str] | None = None) -> TrackedRow:
        """The fields that a row has, of these or of all, under their own names; what else is in it is left out.

        Raises EditError where two columns say what one field is, or one that is left out has almost a field's name.
        """
        tracked = TrackedRow()
        for field in self._column_of if fields is None else fields:
            column = self.of(field)
            if column not in row:
                continue
            self._columns.add(column)
            value = [row[column]] if field in self._lists and isinstance(row[column], str) else row[column]
            outer, _, inner = field.partition(".")
            if inner:
                under = tracked.setdefault(outer, TrackedRow())
                if not isinstance(under, dict) or inner in under:
                    raise EditError(f"columns {outer!r} and {column!r}: both say what {field!r} is; leave one out")
                tracked[outer] = under = TrackedRow(under.items())
                under[inner] = value
            else:
                tracked[field] = value
        for column in row.keys() - self._column_of.values():
            field = column.strip().casefold()
            if column != field in self._column_of and field not in tracked:
                hint = f"rename it, or name it (--columns {field}={column})"
                raise EditError(f"column {column!r}: is it {field!r}? {hint}")
        return tracked

    def absent(self) -> str | None:
        """What is wrong with a column that was named and in which no record has a value, if there is one."""
        absent = min(set(self.named.values()) - self._columns, default=None)
        hint = "leave it out, or name another"
        return None if absent is None else f"columns: no record has a value in a column {absent!r}; {hint}"
