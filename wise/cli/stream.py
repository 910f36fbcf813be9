"""`wise stream`: hands a stream of edits in to a store, from which a service trains them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from wise.cli.common import BAD_INPUT, progress_bars
from wise.cli.options import FormatOptions, JsonOption, ProgressOption, with_options
from wise.cli.terminal import echo, show_json
from wise.errors import ConfigError, EditError, WiseError
from wise.progress import Progress
from wise.safe_text import redacted

if TYPE_CHECKING:
    from wise.formats.edit_file import RecordParser
    from wise.memory.store.store import Store


@with_options
def stream(
    source: Annotated[str, Argument(help="File or folder of edits, - for JSON lines on stdin, or their URL.")],
    store: Annotated[str, Option(help="Folder of the store, or a postgresql:// URL.")],
    name: Annotated[str | None, Option(help="Of the stream, to go on with it; its path or URL if left out.")] = None,
    follow: Annotated[bool, Option("--follow", help="Go on with lines that are appended, until Ctrl-C.")] = False,
    *,
    form: FormatOptions,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Hand in edits line by line; each is in the store when the next one is read.

    A line is an edit as in a file of edits, and may give 'reason', 'valid_from' and 'valid_until'. A stream that is
    read again changes nothing: lines are known by their place and content. What a later line says of a question
    counts, also if it was said before. A line that is no edit is reported on stderr and left out, and the exit code is
    then 2. A running `wise serve` on the same store trains what is handed in.
    """
    from wise.formats.edit_file import RecordParser
    from wise.formats.files import is_lines
    from wise.memory.store.store import open_reader

    is_url = source.startswith(("http://", "https://"))
    path = redacted(source) if is_url else str(Path(source).absolute())  # the journal keeps it
    called = name or ("stdin" if source == "-" else path)
    try:
        called.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{called}: is not UTF-8, and the journal keeps it; name the stream with --name") from None
    if source != "-" and not is_url:
        is_lines(Path(source))  # what cannot be read makes no store
    counts: Counter[str] = Counter()
    try:
        with open_reader(store) as opened, progress_bars(progress) as show:
            _take_all(opened, called, source, follow, RecordParser(form.format, form.named_columns()), counts, show)
    except WiseError:
        if counts:  # what was taken in before stays in the store
            _show(called, counts, as_json)
        raise
    _show(called, counts, as_json)
    if counts["refused"]:
        raise typer.Exit(BAD_INPUT)


def _show(called: str, counts: Counter[str], as_json: bool) -> None:
    numbers = {kind: counts[kind] for kind in ("taken", "known", "refused")}
    echo("{}: edits taken in: {taken}, known already: {known}, lines refused: {refused}".format(called, **numbers))
    if as_json:
        show_json({"name": called, **numbers})


def _take_all(
    store: Store, name: str, source: str, follow: bool, parser: RecordParser, counts: Counter[str],
    show: Progress,
) -> None:
    """show: called with the number of bytes of the file that have been read."""
    from wise.formats.files import is_lines
    from wise.ingest import Ingestion, last_ingested, lines_of_file, lines_of_stream, lines_of_url, rows_of

    place, size = "the line at byte", 0
    if source == "-":
        lines = lines_of_stream(sys.stdin.buffer)
    elif source.startswith(("http://", "https://")):
        lines = lines_of_url(source)
    elif is_lines(Path(source)):
        lines = lines_of_file(Path(source), name, last_ingested(store, name), follow=follow)
        size = 0 if follow else Path(source).stat().st_size
    elif follow:
        raise ConfigError(f"--follow {source}: only a plain file of JSON lines can grow; leave --follow out")
    else:
        place, lines = "record", rows_of(Path(source))
    ingestion = Ingestion(store, name, parser)
    try:
        for line in lines:
            try:
                counts[ingestion.ingest(line)] += 1
            except EditError as error:
                counts["refused"] += 1
                echo(f"{name}: {place} {line.place}: {' '.join(str(error).split())}", err=True)
            if size:
                show("bytes read", line.place + len(line.data), size)
    except KeyboardInterrupt:
        echo("stopped; give the same command to go on", err=True)
    parser.log_warnings(name)
