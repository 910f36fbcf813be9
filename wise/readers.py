"""Files of edits: our own JSON Lines and the published editing sets, plain or compressed.

All or nothing: either every record asked for was read and checked, or the first problem is
raised as an `EditError` that begins `FILE:LINE: field 'NAME': ...` and nothing was made. In
a file that holds one JSON list, the place is the number of the record, counted from 1; for
a list that is broken JSON, it is the line.

What the fields of each set mean stands in `wise.formats`.
"""

from __future__ import annotations

import gzip
import json
import logging
import lzma
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from wise.checks import given
from wise.edits import Edit, Record, content_id
from wise.errors import EditError, did_you_mean
from wise.formats import FORMATS, Form, Row, convert, recognise

__all__ = ["FORMATS", "read_edits", "read_records"]

logger = logging.getLogger(__name__)

_OPENERS: dict[str, Callable[[Path], AbstractContextManager[Iterable[bytes]]]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
}


def read_edits(path: str | PathLike[str], *, format: str = "auto", limit: int | None = None) -> list[Edit]:
    """The edits of a file, without what measures them; everything else as `read_records`."""
    return [record.edit for record in read_records(path, format=format, limit=limit)]


def read_records(
    path: str | PathLike[str], *, format: str = "auto", limit: int | None = None
) -> list[Record]:
    """Read a file of edits.

    A record of a published set that has no number of its own gets its content id, and where the
    set repeats an edit, `-2`, `-3` and so on after it. Defects that published sets are known for are
    stepped over (see `wise.formats`) and counted in the log.

    Args:
        path: one JSON object per line, or one JSON list of objects; `.gz` or `.xz` where compressed.
        format: one of `wise.formats.FORMATS`; `"auto"` goes by the fields of the first record.
        limit: read no more than this many records, and no more of the file than they need
            (a JSON list is read whole).

    Raises:
        EditError: the first problem in the file, or with the arguments.
    """
    path = Path(path)
    if format not in FORMATS:
        raise EditError(f"format {format!r} is not known; {did_you_mean(str(format), FORMATS)}")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise EditError(f"limit: {given(limit)} was given, a whole number of at least 1 or None was expected")
    reading = _Reading(path, format)
    with closing(_rows(path)) as rows:
        for line, row in rows:
            reading.add(line, row)
            if len(reading.records) == limit:
                break
    return reading.finish()


class _Reading:
    """What is known of a file half read."""

    def __init__(self, path: Path, format: str) -> None:
        self.path = path
        self.format = format
        self.form: Form | None = None
        self.records: list[Record] = []
        self.line_of: dict[str, int] = {}
        self.notes: dict[str, list[int]] = {}

    def add(self, line: int, row: Row) -> None:
        try:
            if self.form is None:
                self.form = recognise(row, self.format)
            record = convert(self.form, row, lambda note: self.notes.setdefault(note, []).append(line))
            if record is not None:
                source = f"{self.path.name}:{line}"
                record = replace(record, edit=self._with_own_id(record.edit), source=source)
        except EditError as error:
            raise EditError(f"{self.path}:{line}: {error}") from None
        if record is not None:
            self.line_of[record.edit.id] = line
            self.records.append(record)

    def _with_own_id(self, edit: Edit) -> Edit:
        if edit.id not in self.line_of:
            return edit
        if self.form is None or self.form.strict or edit.id != content_id(edit):
            raise EditError(
                f"field 'id': {edit.id!r} was already used in line {self.line_of[edit.id]}; "
                "give each edit its own, or leave one of the two out"
            )
        count = 2
        while f"{edit.id}-{count}" in self.line_of:
            count += 1
        return replace(edit, id=f"{edit.id}-{count}")

    def finish(self) -> list[Record]:
        if not self.records:
            for note, lines in self.notes.items():
                raise EditError(f"{self.path}:{lines[0]}: {note}; no record is left")
            raise EditError(f"{self.path}: holds no record; give a file with one JSON object per line")
        for note, lines in self.notes.items():
            logger.warning("%s: %s (%d times, first at %d)", self.path, note, len(lines), lines[0])
        return self.records


def _rows(path: Path) -> Generator[tuple[int, dict[str, Any]]]:
    """Each JSON object of a file with its line, or its number in the list.

    Raises:
        EditError: the file cannot be read, or what it holds is not that.
    """
    with closing(_lines(path)) as lines:
        blank: list[bytes] = []
        for line, content in lines:
            if not content.strip():
                blank.append(content)
            elif content.lstrip().startswith(b"[") and line == len(blank) + 1:
                yield from _listed(path, b"".join([*blank, content, *(rest for _, rest in lines)]))
            else:
                yield line, _object(path, line, _parsed(path, line, content))


def _listed(path: Path, content: bytes) -> Generator[tuple[int, dict[str, Any]]]:
    for number, value in enumerate(_parsed(path, 1, content), start=1):
        yield number, _object(path, number, value)


def _object(path: Path, line: int, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EditError(f"{path}:{line}: {given(value)} was given, a JSON object with an edit was expected")
    return value


def _parsed(path: Path, line: int, content: bytes) -> Any:
    """The JSON value that begins in `line`."""
    try:
        return json.loads(content.rstrip().decode())
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        problem = "not UTF-8 text; save the file as UTF-8 (or name it .gz or .xz where it is compressed)"
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        problem = f"broken JSON: {error.msg} at column {error.colno}; give one object per line, or one list"
    except (ValueError, RecursionError) as error:
        problem = f"JSON that cannot be held: {error}"
    raise EditError(f"{path}:{line}: {problem}")


def _open(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    return path.open("rb")


def _lines(path: Path) -> Generator[tuple[int, bytes]]:
    """Each line of a file, unpacked, with its number from 1."""
    if path.is_dir():
        raise EditError(f"{path}: a folder was given; name one file in it")
    line = 0
    try:
        with _OPENERS.get(path.suffix.lower(), _open)(path) as stream:
            for line, content in enumerate(stream, start=1):
                yield line, content.removeprefix(b"\xef\xbb\xbf") if line == 1 else content
    except FileNotFoundError:
        raise EditError(f"{path}: no such file; check the path") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        where = f"{path}:{line + 1}"
        raise EditError(f"{where}: cannot be read on: {error}; fetch or pack the file again") from error
