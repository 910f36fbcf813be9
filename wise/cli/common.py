"""What the commands share: tables, progress and JSON, and the files that they read and write."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table

from wise.cli.terminal import cell, echo
from wise.demo.plotting import new_figure
from wise.errors import ConfigError
from wise.progress import SECONDS_A_LINE, Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNEXPECTED, BAD_INPUT = 1, 2
NOT_VERIFIED = 3
NOT_WHOLE = 4
ROWS = 20
"""Rows of a table before the rest is only counted."""
PLAIN_WIDTH = 120
"""Columns of a table where stdout is no terminal."""


@contextmanager
def progress_bars(lines: bool) -> Iterator[Progress]:
    """A bar on stderr for each thing that is being done, with the time it still takes.

    Where stderr is no terminal: lines of text, or nothing if `lines` is false. Yields the function to call.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console) if lines else silent
        return
    done_so_far = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn())
    times = (bars.TimeElapsedColumn(), bars.TextColumn("eta"), bars.TimeRemainingColumn())
    tasks: dict[str, bars.TaskID] = {}
    with bars.Progress(*done_so_far, *times, console=console, transient=True) as progress:

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name)
            progress.update(tasks[name], completed=done, total=total, visible=done < total)

        yield show


def _lines(console: Console) -> Progress:
    """Progress for a file: a line where a thing begins and ends, and one in `SECONDS_A_LINE` between."""
    started_at: dict[str, float] = {}
    last_shown: dict[str, float] = {}

    def show(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and name in last_shown and now - last_shown[name] < SECONDS_A_LINE:
            return
        last_shown[name] = now
        spent = now - started_at.setdefault(name, now)
        left = f", {spent * (total - done) / done:.0f} s left" if spent >= 1 and 0 < done < total else ""
        line = f"{name}: {done} of {total} after {spent:.0f} s{left}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return show


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, limit: int | None = None) -> None:
    """A table on stdout, of cells as `terminal.cell` shows them. limit: rows that are shown; more are only counted."""
    rows = list(rows)
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows[:limit]:
        table.add_row(*map(cell, row))
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    console.print(table)
    console.print()
    if limit is not None and len(rows) > limit:
        echo(f"... and {len(rows) - limit} more")


def check_output(option: str, file: Path | None) -> None:
    """Found out before the work and not after it. Raises ConfigError for a file that cannot be written."""
    if file is None:
        return
    if file.exists():
        raise ConfigError(f"{option} {file}: is there already; delete it, or give another name")
    if not file.parent.is_dir():
        raise ConfigError(f"{option} {file}: there is no folder {file.parent}; make it first")
    check_writable(option, file, file.parent)


def check_writable(option: str, path: Path, folder: Path) -> None:
    """The same of a folder, or of the one in which it is to be made. It is tried out, and nothing is left of that:
    rights do not tell of a disk that takes nothing. Raises ConfigError."""
    folder = folder.resolve()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        TemporaryFile(dir=there).close()
    except OSError as error:
        problem = f"{there} cannot be written to ({error.strerror}); give another place"
        raise ConfigError(f"{option} {path}: {problem}") from None


def check_memory_folder(option: str, folder: Path | None) -> None:
    """The same of a folder for a memory. Raises ConfigError or ArtifactError."""
    if folder is None:
        return
    from wise.memory.artifact import CONFIG_FILE, WRITTEN
    from wise.memory.folder import check_replaceable

    check_replaceable(folder, WRITTEN)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{option} {folder}: holds other things than a memory; name a folder of its own")
    check_writable(option, folder, folder.resolve().parent)


def check_picture(file: Path | None, figures: Path | None = None) -> None:
    """The same of a picture. Raises ConfigError also without matplotlib, for an ending that it does not write, or for
    the file of the figures."""
    check_output("--picture", file)
    if file is None:
        return
    if figures is not None and file.resolve() == figures.resolve():
        raise ConfigError(f"--picture {file}: would be written over the figures; give another name")
    known = new_figure(1, 1).canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in known:
        raise ConfigError(f"--picture {file}: its ending says no format; give one of .{', .'.join(sorted(known))}")


def check_chats(tokenizer: PreTrainedTokenizerBase, remedy: str) -> None:
    """Raises ConfigError for a tokenizer with which nothing can be asked in a chat. remedy: what to do about it."""
    from wise.router.chat_template import ChatTemplate

    if ChatTemplate.learn(tokenizer) is None:
        raise ConfigError(f"this model has no chat template that can be used; {remedy}")


def write_figures(
    figures: Mapping[str, Any],
    output: Path | None,
    picture: Path | None,
    draw: Callable[[Mapping[str, Any], Path], None],
) -> None:
    """Writes the figures of a run, and then draws them, each if a file is named for it. So figures that took long to
    measure are kept also where they cannot be drawn."""
    from wise.lab.eval.results_file import write_json

    if output is not None:
        write_json(output, figures)
        echo(f"figures written to {output}")
    if picture is not None:
        draw(figures, picture)
        echo(f"picture drawn to {picture}")


def file_facts(file: Path) -> dict[str, Any]:
    """Name and digest of a file, or of the files of a folder, to be kept with the figures."""
    from wise.formats.files import data_files

    digest = hashlib.sha256()
    for part in data_files(file):
        digest.update(part.read_bytes())
    return {"name": file.name, "sha256": digest.hexdigest()}
