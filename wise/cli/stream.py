"""`wise stream`: hands a stream of edits in to a store, from which a service trains them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wise.cli.common import BAD_INPUT, JsonOption, show_json
from wise.errors import EditError

if TYPE_CHECKING:
    from wise.ingest import Line
    from wise.memory.store.store import Store


def stream(
    source: Annotated[str, typer.Argument(help="File of JSON lines, - for standard input, or an http(s) URL.")],
    store: Annotated[str, typer.Option("--store", help="Folder of the store, or a postgresql:// URL.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the stream, for going on with it; its path or URL if left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with lines that are appended, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hand in edits line by line; each is in the store when the next one is read.

    A line is an edit as in a file of edits, with 'aliases' of its subject and 'messages' where it has them, and may
    give 'reason', 'valid_from' and 'valid_until'. A stream that is read again changes nothing: lines are known by
    their place and content. A line that is no edit is reported on stderr and left out, and the exit code is then 2. A
    running `wise serve` on the same store trains what is handed in.
    """
    from wise.ingest import open_reader

    called = name or _name_of(source)
    counts: Counter[str] = Counter()
    with open_reader(store) as opened:
        _take_all(opened, called, source, follow, counts)
    taken, known, bad = (counts[kind] for kind in ("taken", "known", "refused"))
    typer.echo(f"{called}: {taken} edits taken in, {known} known already, {bad} lines refused")
    if as_json:
        show_json({"name": called, "taken": taken, "known": known, "refused": bad})
    if bad:
        raise typer.Exit(BAD_INPUT)


def _take_all(store: Store, name: str, source: str, follow: bool, counts: Counter[str]) -> None:
    from wise.ingest import ingest_line

    tickets = store.journal.tickets()
    known = tickets[-1].number if tickets else 0
    try:
        for line in _lines(store, name, source, follow):
            try:
                counts[ingest_line(store, name, line, known)] += 1
            except EditError as error:
                counts["refused"] += 1
                typer.echo(f"{name}: the line at byte {line.place}: {' '.join(str(error).split())}", err=True)
    except KeyboardInterrupt:
        typer.echo("stopped; give the same command to go on", err=True)


def _lines(store: Store, name: str, source: str, follow: bool) -> Iterator[Line]:
    from wise.ingest import last_ingested, lines_of_file, lines_of_stream, lines_of_url

    if source == "-":
        return lines_of_stream(sys.stdin.buffer)
    if source.startswith(("http://", "https://")):
        return lines_of_url(source)
    return lines_of_file(Path(source), name, last_ingested(store, name), follow=follow)


def _name_of(source: str) -> str:
    if source == "-":
        return "stdin"
    return source if source.startswith(("http://", "https://")) else str(Path(source).absolute())
