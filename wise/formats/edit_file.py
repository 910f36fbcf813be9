"""Reads edits from files: our own layout and those of the published editing sets, in any file of `wise.formats.files`.

All or nothing: either every record asked for was read and checked, or the first problem is
raised as an `EditError` that begins `FILE:LINE: field 'NAME': ...` and nothing was made.

What the fields of each set mean stands in `wise.formats`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from wise.edits import COLUMNS, LIST_COLUMNS, Edit, Record, content_id
from wise.errors import EditError, did_you_mean, given
from wise.formats import FORMATS, Layout, recognise
from wise.formats.columns import Columns
from wise.formats.fields import Fields
from wise.formats.files import data_files, is_table, rows
from wise.formats.tracked_row import TrackedRow, peek, unread

__all__ = ["FORMATS", "RecordParser", "read_edits", "read_records"]

logger = logging.getLogger(__name__)


def _log(warning: str) -> None:
    logger.warning("%s", warning)


MAX_EDITS = 1_000_000
"""Edits of one file or folder."""
STORE_FIELDS = ("reason", "valid_from", "valid_until")
"""Fields of a line of a stream that are not of the edit."""
_MAX_NAMED = 60
"""Unused fields that a warning names."""


def read_edits(
    path: str | PathLike[str], *, format: str = "auto", columns: Mapping[str, str] | None = None,
    limit: int | None = None, warn: Callable[[str], None] = _log
) -> list[Edit]:
    """The edits of a file, without what measures them; all else as `read_records`."""
    return [record.edit for record in read_records(path, format=format, columns=columns, limit=limit, warn=warn)]


def read_records(
    path: str | PathLike[str], *, format: str = "auto", columns: Mapping[str, str] | None = None,
    limit: int | None = None, warn: Callable[[str], None] = _log
) -> list[Record]:
    """Reads a file or a folder of edits.

    A record of a published set without a number of its own gets its content id; where the set repeats an edit, `-2`,
    `-3` and so on follow it. Known defects of published sets are stepped over (see `wise.formats`) and counted in a
    warning; another one names the fields that were not used.

    Args:
        path: JSON lines, a JSON list, CSV or TSV (`.gz` or `.xz` where compressed), Parquet or Arrow; or a folder of
            such files, such as `datasets` saves. `FOLDER/SPLIT` names one of several splits.
        format: one of `wise.formats.FORMATS`; `"auto"` goes by the fields of each record.
        columns: field -> column that it is read from, for a file whose columns have other names. A field is one of
            `Edit`, or one of `Record` as `test.NAME`.
        limit: read this many records at most, and no more of the file than they need (a JSON list is read whole). A
            group that it cuts lacks its last records, and with them the probes that need all of its edits.
        warn: called with each warning, which may quote the file; by default the log has them.

    Raises:
        EditError: the first problem in the file, or with the arguments.
    """
    check_limit(limit)
    path, parser = Path(path), RecordParser(format, columns)
    records: list[Record] = []
    for file, line, row in each_row(path):
        records += parser.add(file, line, row)
        if limit is not None and len(records) >= limit:
            break
    for warning in parser.finish(path, whole=limit is None or len(records) < limit):
        warn(warning)
    return records[:limit]


def each_row(path: Path) -> Iterator[tuple[Path, int, TrackedRow]]:
    """Each row that a path names (`wise.formats.files.data_files`), with its file and its line or number there."""
    for file in data_files(path):
        with closing(rows(file)) as numbered:
            for line, row in numbered:
                yield file, line, row


def check_limit(limit: int | None) -> None:
    """Raises EditError for what is no whole number of at least 1 and not None."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise EditError(f"limit: {given(limit)} was given, a whole number of at least 1 or None was expected")


class RecordParser:
    """Makes records of rows, each by its own fields; counts defects that were skipped and fields that were not used.

    Raises EditError for an unknown format or field.
    """

    def __init__(self, format: str = "auto", columns: Mapping[str, str] | None = None) -> None:
        if format not in FORMATS:
            raise EditError(f"format {format!r} is not known; {did_you_mean(str(format), FORMATS)}")
        self.columns = Columns(columns, (*COLUMNS, *STORE_FIELDS), lists=LIST_COLUMNS)
        self.format = "wise" if columns else format
        self._rows = self._count = 0
        self._place_of: dict[str, tuple[Path, int]] = {}
        self._next_of: Counter[str] = Counter()
        self._subject_of: dict[str, str] = {}
        self._notes: dict[str, list[int]] = {}
        self._unread: Counter[str] = Counter()

    def add(self, file: Path, line: int, row: TrackedRow) -> list[Record]:
        """The records of one row of a file, each with an id of its own. Raises EditError, naming file and line."""
        self._rows += 1
        if self._count > MAX_EDITS:
            raise EditError(f"{file}:{line}: more than {MAX_EDITS:,} edits; give them in several files, or read fewer")
        try:
            layout, parsed = self.read(row, self._rows, table=is_table(file), line=line)
            edits = [self._with_own_id(record.edit, (file, line), strict=layout.strict) for record in parsed]
        except EditError as error:
            raise EditError(f"{file}:{line}: {error}") from None
        self._count += len(parsed)
        source = f"{file.name}:{line}"
        return [replace(record, edit=edit, source=source) for record, edit in zip(parsed, edits, strict=True)]

    def take_store_fields(self, row: TrackedRow) -> dict[str, Any]:
        """Takes what only a store keeps out of a row: reason and times of validity."""
        used = {column for field, column in self.columns.named.items() if field not in STORE_FIELDS}
        taken = self.columns.fields_of(row, [name for name in STORE_FIELDS if self.columns.of(name) not in used])
        for name in taken:
            del row[self.columns.of(name)]
        return taken

    def read(
        self, row: TrackedRow, place: int, *, table: bool = False, line: int | None = None
    ) -> tuple[Layout, list[Record]]:
        """The records of one row, and its layout.

        place: number of the row, for records without a number of their own. table: the row is one of a table; columns
        that are not ours are named and not refused. line: where the row is; `place` if left out.

        Raises EditError, naming the field.
        """
        try:
            return self._read_row(row, place, table, place if line is None else line)
        except RecursionError:
            raise EditError("the lists or objects are nested too deeply; give a record as its set has it") from None

    def _read_row(self, row: TrackedRow, place: int, table: bool, line: int) -> tuple[Layout, list[Record]]:
        layout = recognise(row, self.format)
        for name in STORE_FIELDS if layout.strict else ():
            if self.columns.of(name) in row and (name in self.columns.named or not table):
                raise EditError(f"field {name!r}: only a store keeps it; use `wise stream`, or leave the field out")
        mine = self._own_columns(row) if layout.strict and (table or self.columns) else row
        notes: set[str] = set()
        parsed = layout.read(Fields(mine, notes.add), place)
        for note in notes:
            self._notes.setdefault(note, [0, line])[0] += 1
        for record in parsed:
            self._check_template(record.edit, peek(mine, layout.subject))
        if parsed and (mine is not row or not layout.strict):
            self._unread.update(set(unread(row)))
        return layout, parsed

    def _check_template(self, edit: Edit, subject: object) -> None:
        """Refuses one prompt for different subjects that it does not name: a template that was not filled."""
        if edit.subject is None and isinstance(subject, str):
            other = self._subject_of.setdefault(edit.prompt, subject)
            if other != subject:
                raise EditError(
                    f"field 'prompt': {shortened(edit.prompt)} was given for the subject {other!r} and for "
                    f"{subject!r}, and names neither; write {{}} where the subject goes"
                )

    def _own_columns(self, row: TrackedRow) -> TrackedRow:
        """The fields of our own form, under the names that they have there."""
        for column in map(self.columns.of, ("prompt", "target")):
            if column not in row:
                raise Fields(row).lacking(column)
        mine = self.columns.fields_of(row, COLUMNS)
        if isinstance(number := mine.get("id"), int):  # in text it would be a text too
            mine["id"] = str(number)
        return mine

    def _with_own_id(self, edit: Edit, place: tuple[Path, int], *, strict: bool) -> Edit:
        if edit.id in self._place_of:
            if strict or edit.id != content_id(edit):
                file, line = self._place_of[edit.id]
                raise EditError(
                    f"field 'id': {edit.id!r} was already used in line {line}"
                    f"{'' if file == place[0] else f' of {file}'}; give each edit its own, or leave one of the two out"
                )
            edit_id = edit.id
            while edit.id in self._place_of:
                self._next_of[edit_id] += 1
                edit = replace(edit, id=f"{edit_id}-{self._next_of[edit_id] + 1}")
        self._place_of[edit.id] = place
        return edit

    def finish(self, path: Path, *, whole: bool) -> list[str]:
        """The warnings of a file. whole: it was read to its end. Raises EditError where no record was read, or none has
        a column that was named."""
        if not self._count:
            for note, (_, line) in self._notes.items():
                raise EditError(f"{path}:{line}: {note}; no record is left")
            hint = "give one JSON object per line, or a table whose first row names the columns"
            raise EditError(f"{path}: holds no record; {hint}")
        absent = self.columns.absent()
        if absent is not None and whole:
            raise EditError(f"{path}: {absent}")
        return self._warnings(str(path))

    def log_warnings(self, name: str) -> None:
        for warning in self._warnings(name):
            _log(warning)

    def _warnings(self, name: str) -> list[str]:
        absent = self.columns.absent()
        texts = [] if absent is None else [f"{name}: {absent}"]
        texts += [f"{name}: {note} ({count} times, first at {line})" for note, (count, line) in self._notes.items()]
        if self._unread:
            outer_first = sorted(self._unread.items(), key=lambda item: (item[0].count("."), -item[1]))
            named = ", ".join(f"{field!r} ({count})" for field, count in outer_first[:_MAX_NAMED])
            more = len(self._unread) - _MAX_NAMED
            rest = f" and {more} more" if more > 0 else ""
            texts.append(f"{name}: fields that are not used, and in how many records: {named}{rest}")
        return texts
