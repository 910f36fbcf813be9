"""Ingestion of a stream of edits into a store, each line once: growing files, standard input, URLs.

Every line has a key, made of the stream's name, its byte offset, and a digest of the line. A stream that is read again
from its beginning therefore changes nothing. A file is continued where the journal says that it was left. A line
is a record of a file of edits (`wise.formats.edit_file`), and may have a reason and times of validity besides.
"""

from __future__ import annotations

import hashlib
import json
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import IO
from unicodedata import normalize
from urllib.error import URLError
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from wise.edits import Edit, content_id
from wise.errors import ConfigError
from wise.formats.edit_file import RecordParser, each_row
from wise.formats.files import check_file, is_table, object_of
from wise.formats.tracked_row import TrackedRow
from wise.memory.store.edit_request import UNDER_WAY, EditRequest
from wise.memory.store.store import Store
from wise.safe_text import redacted

LONGEST_LINE = 1_048_576
"""Bytes."""
PAUSE = 0.2
"""Seconds between two looks at a file that may have grown."""
PATIENCE = 30.0
"""Seconds to wait for a silent server."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a stream, without its end."""

    place: int
    """Offset of its first byte."""
    data: bytes
    row: TrackedRow | None = None
    """What it holds, if that was not read as a line of JSON."""
    table: bool = False
    """It is a row of a table with named columns."""

    def key(self, name: str) -> str:
        return f"stream:{name}:{self.place}:{hashlib.sha256(self.data).hexdigest()[:16]}"


def last_ingested(store: Store, name: str) -> tuple[int, str] | None:
    """The offset and key of the last line of a stream that the store holds; None if it holds none."""
    prefix = f"stream:{name}:"
    places = {
        int(place): ticket.key
        for ticket in store.journal.tickets()
        if ticket.key and ticket.key.startswith(prefix)
        for place, _, digest in [ticket.key.removeprefix(prefix).partition(":")]
        if place.isdecimal() and len(digest) == 16
    }
    return (max(places), places[max(places)]) if places else None


def lines_of_file(file: Path, name: str, last: tuple[int, str] | None, *, follow: bool) -> Iterator[Line]:
    """Lines after the one that was taken in last. With `follow`, those that are appended later too, without end.

    Raises ConfigError where the file is not the one that was read before, or was cut.
    """
    check_file(file)
    with file.open("rb") as stream:
        place = 0
        if last is not None:
            stream.seek(last[0])
            again = stream.readline()
            if Line(place=last[0], data=again.rstrip(b"\r\n")).key(name) != last[1]:
                raise ConfigError(
                    f"{file}: byte {last[0]} is not what was taken in of {name!r}; give another stream its own --name"
                )
            place = last[0] + len(again)
        while True:
            yield from lines_of_stream(stream, place, at_end=not follow)
            place = stream.tell()
            if not follow:
                return
            time.sleep(PAUSE)
            if file.stat().st_size < place:
                raise ConfigError(f"{file}: was cut to less than the {place} bytes that were read; name it anew")


def rows_of(path: Path) -> Iterator[Line]:
    """The rows of a list, a table, a packed file or a folder, numbered from 1 in the place of an offset."""
    for number, (file, _, row) in enumerate(each_row(path), start=1):
        yield Line(place=number, data=json.dumps(row, default=str).encode(), row=row, table=is_table(file))


def lines_of_url(url: str) -> Iterator[Line]:
    """What a server sends, until it ends. A user and a password in the URL are sent to that server alone.

    Raises ConfigError, which names neither of them, where it cannot be reached.
    """
    try:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        request = Request(urlunsplit(parts._replace(netloc=host, fragment="")))
        if at:
            credentials = b64encode(unquote_to_bytes(user)).decode()
            request.add_unredirected_header("Authorization", f"Basic {credentials}")
        with urlopen(request, timeout=PATIENCE) as stream:
            yield from lines_of_stream(stream)
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise ConfigError(redacted(f"{url}: {error}; the address of JSON lines was expected")) from None


def lines_of_stream(stream: IO[bytes], place: int = 0, *, at_end: bool = True) -> Iterator[Line]:
    """Lines that are not blank, until the stream ends.

    place: offset of its next byte. at_end: its end is the end of its last line; else a line without an end is put back.

    Raises ConfigError for a line without end.
    """
    while data := stream.readline(LONGEST_LINE + 1):
        if len(data) > LONGEST_LINE:
            raise ConfigError(f"the line at byte {place} is longer than {LONGEST_LINE} bytes: JSON lines were expected")
        if not data.endswith(b"\n") and not at_end:
            stream.seek(place)
            return
        if data.strip():
            yield Line(place=place, data=data.rstrip(b"\r\n"))
        place += len(data)


class Ingestion:
    """Enqueues the edits of a stream in their order.

    A line that the store has already changes nothing. Neither does an edit that equals the latest one on its question,
    with the same reason and validity. Every other edit is enqueued. If its id is in use for the same question, because
    it repeats an edit that was replaced since or changes the validity or reason of one, it gets an id of its own.
    """

    def __init__(self, store: Store, name: str, parser: RecordParser) -> None:
        self._store, self._name, self._parser = store, name, parser
        self._rows = 0
        self._tickets_on: dict[tuple[str, str], list[int]] = {}
        """Question -> numbers of the tickets on it, up to ticket `_last`."""
        self._last = 0

    def ingest(self, line: Line) -> str:
        """`taken`, `known`, or `skipped` for a record that asks for no edit. Raises EditError for an unusable line."""
        key = line.key(self._name)
        if self._store.journal.tickets(key=key, limit=1):
            return "known"
        self._rows += 1
        row = object_of(line.data) if line.row is None else line.row
        store_fields = self._parser.take_store_fields(row)
        _, records = self._parser.read(row, self._rows, table=line.table)
        requests = [EditRequest(edit=record.edit, **store_fields) for record in records]
        new_requests = [self._with_own_id(request, key) for request in requests if not self._is_latest(request)]
        if new_requests:
            self._store.enqueue(new_requests, key=key)
        return "taken" if new_requests else "known" if requests else "skipped"

    def _is_latest(self, request: EditRequest) -> bool:
        """Whether the latest edit on its question that is queued, in training or live is the same in all but its id.

        An id that the line gives must be the same too.
        """
        for ticket in self._store.journal.tickets(since=self._last):
            self._tickets_on.setdefault(_question(ticket.edit), []).append(ticket.number)
            self._last = ticket.number
        for number in reversed(self._tickets_on.get(_question(request.edit), ())):
            [ticket] = self._store.journal.tickets(numbers=[number])
            if ticket.status in UNDER_WAY:
                ids = (ticket.edit.id, ticket.edit.id[: -len(_suffix(""))], content_id(request.edit))
                return request.edit.id in ids and _without_id(ticket.request) == _without_id(request)
        return False

    def _with_own_id(self, request: EditRequest, key: str) -> EditRequest:
        """The request under another id if its own is that of an edit under way on the same question."""
        edit = request.edit
        under_way = [t for t in self._store.journal.tickets(edit_id=edit.id) if t.status in UNDER_WAY]
        if not under_way or _question(under_way[-1].edit) != _question(edit):
            return request
        return replace(request, edit=replace(edit, id=edit.id + _suffix(key)))


def _question(edit: Edit) -> tuple[str, str]:
    return edit.namespace, normalize("NFC", edit.prompt)


def _suffix(key: str) -> str:
    """Distinguishes an edit from an earlier one of the same id."""
    return f"-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _without_id(request: EditRequest) -> EditRequest:
    return replace(request, edit=replace(request.edit, id=""))
