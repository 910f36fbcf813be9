"""Ingestion of a stream of edits into a store, each line once: growing files, standard input, URLs.

Every line has a key, made of the stream's name, its byte offset, and a digest of the line. A stream that is read again
from its beginning therefore changes nothing. A file is continued where the journal says that it was left.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError
from urllib.request import urlopen

from wise.edits import Record
from wise.errors import ConfigError, EditError, StoreError
from wise.memory.store.edit_request import LIVE, QUEUED, TRAINING, EditRequest
from wise.memory.store.store import Store

LONGEST_LINE = 1_048_576
"""Bytes."""
PAUSE = 0.2
"""Seconds between two looks at a file that may have grown."""
PATIENCE = 30.0
"""Seconds to wait for a silent server."""
_REQUEST_FIELDS = ("reason", "valid_from", "valid_until")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a stream, without its end."""

    place: int
    """Offset of its first byte."""
    data: bytes

    def key(self, name: str) -> str:
        return f"stream:{name}:{self.place}:{hashlib.sha256(self.data).hexdigest()[:16]}"


def open_reader(place: str) -> Store:
    """The store, opened to read and to queue edits; created if there is none. Raises StoreError."""
    try:
        return Store.open(place, writer=False)
    except StoreError:
        Store.open(place).close()
        return Store.open(place, writer=False)


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
            yield from _whole_lines(stream, place, at_end=not follow)
            place = stream.tell()
            if not follow:
                return
            time.sleep(PAUSE)
            if file.stat().st_size < place:
                raise ConfigError(f"{file}: was cut to less than the {place} bytes that were read; name it anew")


def lines_of_url(url: str) -> Iterator[Line]:
    """What a server sends, until it ends. Raises ConfigError where it cannot be reached."""
    try:
        with urlopen(url, timeout=PATIENCE) as stream:
            yield from _whole_lines(stream, 0, at_end=True)
    except (URLError, OSError, ValueError) as error:
        raise ConfigError(f"{url}: {error}; the address of JSON lines was expected") from error


def lines_of_stream(stream: IO[bytes]) -> Iterator[Line]:
    """Until it ends."""
    yield from _whole_lines(stream, 0, at_end=True)


def ingest_line(store: Store, name: str, line: Line, known: int) -> str:
    """Takes one line in. `taken`, or `known` where the store has it already, up to ticket `known` at the start.

    Raises EditError for a line that is none of ours.
    """
    request = _request(line)
    key = line.key(name)
    try:
        [ticket] = store.enqueue([request], key=key)
    except EditError:
        under_way = [t for t in store.journal.tickets(edit_id=request.edit.id) if t.status in (QUEUED, TRAINING, LIVE)]
        if not under_way or under_way[-1].edit != request.edit:
            raise
        return "known"
    return "taken" if ticket.number > known else "known"


def _request(line: Line) -> EditRequest:
    try:
        fields = json.loads(line.data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EditError(f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise EditError(f"is a {type(fields).__name__}: an object with 'prompt' and 'target' was expected")
    kept: dict[str, Any] = {name: fields.pop(name) for name in _REQUEST_FIELDS if name in fields}
    return EditRequest(edit=Record.from_dict(fields).edit, **kept)


def _whole_lines(stream: IO[bytes], place: int, *, at_end: bool) -> Iterator[Line]:
    """Lines that are not blank. One without its end is whole only where the stream is at its end; else it is put back.

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
