"""Files of edits: our own JSON Lines and the published editing sets, plain or compressed.

All or nothing: either every record asked for was read and checked, or the first problem is
raised as an `EditError` that begins `FILE:LINE: field 'NAME': ...` (see `wise.lab.formats.jsonl`) and nothing was made.

What the fields of each set mean stands in `wise.lab.formats`.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from os import PathLike
from pathlib import Path

from wise.edits import Edit, Record, content_id
from wise.errors import EditError, did_you_mean, given
from wise.lab.formats import FORMATS, JsonRow, Layout, recognise
from wise.lab.formats.jsonl import rows as _rows

__all__ = ["FORMATS", "read_edits", "read_records"]

logger = logging.getLogger(__name__)


def read_edits(path: str | PathLike[str], *, format: str = "auto", limit: int | None = None) -> list[Edit]:
    """The edits of a file, without what measures them; everything else as `read_records`."""
    return [record.edit for record in read_records(path, format=format, limit=limit)]


def read_records(path: str | PathLike[str], *, format: str = "auto", limit: int | None = None) -> list[Record]:
    """Read a file of edits.

    A record of a published set that has no number of its own gets its content id, and where the
    set repeats an edit, `-2`, `-3` and so on after it. Defects that published sets are known for are
    stepped over (see `wise.lab.formats`) and counted in the log.

    Args:
        path: one JSON object per line, or one JSON list of objects; `.gz` or `.xz` where compressed.
        format: one of `wise.lab.formats.FORMATS`; `"auto"` goes by the fields of the first record.
        limit: read no more than this many records, and no more of the file than they need
            (a JSON list is read whole). A group that it cuts lacks its last records, and with them the
            probes that need all of its edits.

    Raises:
        EditError: the first problem in the file, or with the arguments.
    """
    path = Path(path)
    if format not in FORMATS:
        raise EditError(f"format {format!r} is not known; {did_you_mean(str(format), FORMATS)}")
    check_limit(limit)
    reading = Reading(path, format)
    with closing(_rows(path)) as rows:
        for line, row in rows:
            reading.add(line, row)
            if limit is not None and len(reading.records) >= limit:
                break
    return reading.finish()[:limit]


def check_limit(limit: int | None) -> None:
    """Raises EditError for what is no whole number of at least 1 and not None."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise EditError(f"limit: {given(limit)} was given, a whole number of at least 1 or None was expected")


class Reading:
    """What is known of a file half read."""

    def __init__(self, path: Path, format: str = "auto") -> None:
        self.path = path
        self.format = format
        self.layout: Layout | None = None
        self.records: list[Record] = []
        self.line_of: dict[str, int] = {}
        self.notes: dict[str, list[int]] = {}

    def add(self, line: int, row: JsonRow) -> list[Record]:
        """Keeps the records of one row, and returns them.

        Raises:
            EditError: beginning with the file and the line.
        """
        try:
            if self.layout is None:
                self.layout = recognise(row, self.format)
            found = self.layout.read(row, line, lambda note: self.notes.setdefault(note, []).append(line))
            source = f"{self.path.name}:{line}"
            records = [replace(record, edit=self._with_own_id(record.edit, line), source=source) for record in found]
        except EditError as error:
            raise EditError(f"{self.path}:{line}: {error}") from None
        self.records += records
        return records

    def _with_own_id(self, edit: Edit, line: int) -> Edit:
        if edit.id in self.line_of:
            if self.layout is None or self.layout.strict or edit.id != content_id(edit):
                raise EditError(
                    f"field 'id': {edit.id!r} was already used in line {self.line_of[edit.id]}; "
                    "give each edit its own, or leave one of the two out"
                )
            count = 2
            while f"{edit.id}-{count}" in self.line_of:
                count += 1
            edit = replace(edit, id=f"{edit.id}-{count}")
        self.line_of[edit.id] = line
        return edit

    def finish(self) -> list[Record]:
        """All records, after what was stepped over has been told to the log.

        Raises:
            EditError: there is none.
        """
        if not self.records:
            for note, lines in self.notes.items():
                raise EditError(f"{self.path}:{lines[0]}: {note}; no record is left")
            raise EditError(f"{self.path}: holds no record; give a file with one JSON object per line")
        for note, lines in self.notes.items():
            logger.warning("%s: %s (%d times, first at %d)", self.path, note, len(lines), lines[0])
        return self.records
