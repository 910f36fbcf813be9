"""What the commands share: their options, and where output goes.

Nothing heavy is imported before a command runs, so that `wise --help` answers at once.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from wise.cli.terminal import cell, echo, echo_json
from wise.config import WiseConfig
from wise.edits import check_one_namespace
from wise.errors import ConfigError
from wise.loading import DEVICE_MAPS, DTYPES, QUANTIZATIONS, Placement, load_model
from wise.training import cache

if TYPE_CHECKING:
    from wise.edits import Record
    from wise.model import WiseModel

BAD_INPUT = 2
NOT_VERIFIED = 3
NOT_WHOLE = 4
ROWS = 20
"""Rows of a table before the rest is only counted."""
PLAIN_WIDTH = 120
"""Columns of a table where stdout is no terminal."""
SECONDS_A_LINE = 10.0
"""Between two lines of progress about one thing, where stderr is no terminal."""
SLOT_STYLES = ("green", "cyan", "magenta", "yellow", "blue", "red")

MODEL_HELP = "Folder or hub id of a causal LM."
ModelOption = Annotated[
    str | None, typer.Option("--model", help=f"{MODEL_HELP} Left out: the demo model that ships with wise.")
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="merge: one side memory; retrieve: one per slot; hybrid (the default): values for each edit's answer.",
    ),
]
LayerOption = Annotated[
    int | None,
    typer.Option("--layer", help="Index of the edited block. Left out: at 85% of the depth, or 70% in hybrid."),
]
TargetModuleOption = Annotated[
    str | None,
    typer.Option(
        "--target-module",
        help="Path of the module to which the memory adds, {i} for the block. Left out: it is found (`wise info`).",
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of all that is random. Left out: 0.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads to use.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Device that the model runs on, such as cuda. Left out: the CPU.")
]
PLACEMENT_OPTIONS = {
    "device": DeviceOption,
    "dtype": Annotated[
        str | None,
        typer.Option("--dtype", help=f"Precision of the model: {', '.join(DTYPES)}. Left out: as its folder says."),
    ],
    "device_map": Annotated[
        str | None,
        typer.Option(
            "--device-map",
            help=f"Spreads the model over devices: {', '.join(DEVICE_MAPS)}, or a JSON object of modules and devices.",
        ),
    ],
    "quantization": Annotated[
        str | None,
        typer.Option(
            "--quantization",
            help=f"Quantizes the model while it is loaded: {', '.join(QUANTIZATIONS)}. "
            "A folder that is quantized already needs no option.",
        ),
    ],
}
"""The options that `with_placement` adds."""
AllowPrecisionOption = Annotated[
    bool,
    typer.Option(
        "--allow-precision",
        help="Take edits that were made on this base in another precision; each is asked again first.",
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option("--encoder", help="Folder or hub id of the sentence encoder (hybrid). Left out: the installed one."),
]
RelationsOption = Annotated[
    Path | None,
    typer.Option("--relations", help="File that `wise train-router` wrote (hybrid). Left out: what ships with wise."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object, in the last line of stdout.")]
ProgressOption = Annotated[
    bool, typer.Option("--progress", help="Report progress on stderr, in lines, even where it is no terminal.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the editor, NAME=VALUE, the value JSON or else text. Repeat for more."),
]
CorpusOption = Annotated[
    Path | None,
    typer.Option("--corpus", help="Texts that editors take statistics of. Left out: what the base says by itself."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder for statistics and hypernetworks. Left out: wise, in the user's folder of caches."
    ),
]
FormatOption = Annotated[str, typer.Option("--format", help="Format of the file; auto goes by its fields.")]
ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", help="Other names of columns: prompt=question,target=answer. Left out: those of edits."),
]


def with_placement(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the options of `PLACEMENT_OPTIONS` in the place of its parameter `placement`."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for own in signature.parameters.values():
        if own.name == "placement":
            parameters += [
                own.replace(name=name, annotation=option, default=None) for name, option in PLACEMENT_OPTIONS.items()
            ]
        else:
            parameters.append(own.replace(annotation=hints[own.name]))

    @wraps(command)
    def run(**given: Any) -> None:
        placement = Placement(**{name: given.pop(name) for name in PLACEMENT_OPTIONS})
        command(placement=placement, **given)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {own.name: own.annotation for own in parameters}
    return run


def memory_model(
    model: str | None,
    memory: Path,
    *,
    threads: int | None,
    placement: Placement,
    allow_precision: bool,
    progress: bool = False,
) -> WiseModel:
    """A model with a saved memory. How many edits of another precision hold is said on stderr.

    Raises ConfigError as `load_model` does, and ArtifactError as `WiseModel.from_pretrained` does.
    """
    base, tokenizer = load_model(model, threads=threads, placement=placement)
    from wise.model import WiseModel

    with progress_bars(progress) as show:
        wrapped = WiseModel.from_pretrained(
            memory,
            base,
            tokenizer,
            allow_precision=allow_precision,
            progress=lambda done, total: show("edits asked again", done, total),
        )
    report = wrapped.precision_report
    if report is not None and not report.lost:  # otherwise it is logged as a warning
        echo(str(report), err=True)
    return wrapped


def settings(**given: Any) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {name: value for name, value in given.items() if value is not None}


def parsed_settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs. Raises ConfigError for one that is none, or a name that is given twice."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set {pair}: NAME=VALUE was expected, such as learning_rate=0.1")
        if name in found:
            raise ConfigError(f"--set {pair}: {name} is given twice; leave one out")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def cache_folder(given: Path | None) -> Path | None:
    """Where to keep what takes long to compute; None where nothing is to be kept."""
    return given or cache.cache_folder()


def make_config(**given: Any) -> WiseConfig:
    """The configuration that the options ask for. Raises ConfigError for one out of range."""
    return WiseConfig(**settings(**given))


def absolute(file: Path | None) -> str | None:
    """A file as a memory must name it, which may be read in another folder. Raises ConfigError where there is none."""
    if file is not None and not file.is_file():
        raise ConfigError(f"{file}: no such file; `wise train-router` writes one")
    return None if file is None else str(file.resolve())


def model_name(given: str | None) -> str:
    """What a model is called in a report."""
    return "demo" if given is None else Path(given).name


@contextmanager
def progress_bars(wanted: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each thing that is being done, with the time it still takes.

    Where stderr is no terminal, lines if `wanted` and else nothing. Yields what to call with a name, how much of
    it is done, and of how much.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console) if wanted else lambda name, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name)
            progress.update(tasks[name], completed=done, total=total, visible=done < total)

        yield show


def _lines(console: Console) -> Callable[[str, int, int], None]:
    """Progress for a file: a line where a thing begins and ends, and one in `SECONDS_A_LINE` between."""
    begun: dict[str, float] = {}
    last_shown: dict[str, float] = {}

    def show(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and name in last_shown and now - last_shown[name] < SECONDS_A_LINE:
            return
        last_shown[name] = now
        spent = now - begun.setdefault(name, now)
        left = f", {spent * (total - done) / done:.0f} s left" if spent >= 1 and 0 < done < total else ""
        line = f"{name}: {done} of {total} after {spent:.0f} s{left}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return show


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout, of cells as `terminal.cell` shows them."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    console.print(table)
    console.print()


def check_file(option: str, file: Path | None) -> None:
    """Found out before the work and not after it. Raises ConfigError for a file that cannot be written."""
    if file is None:
        return
    if file.exists():
        raise ConfigError(f"{option} {file}: is there already; delete it, or give another name")
    if not file.parent.is_dir():
        raise ConfigError(f"{option} {file}: there is no folder {file.parent}; make it first")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{option} {file}: the folder {file.parent} cannot be written to; give another")


def read_data(file: Path, format: str, columns: str | None = None, limit: int | None = None) -> list[Record]:
    """The records of a file, all of one namespace. Raises EditError, as `wise.read_records` does."""
    from wise.formats.columns import parsed_columns
    from wise.formats.edit_file import read_records

    records = read_records(file, format=format, columns=parsed_columns(columns), limit=limit)
    check_one_namespace(record.edit for record in records)
    return records


def file_facts(file: Path) -> dict[str, Any]:
    """Which file it was, or which files of a folder, for whoever reads the figures."""
    from wise.formats.files import data_files

    digest = hashlib.sha256()
    for part in data_files(file):
        digest.update(part.read_bytes())
    return {"name": file.name, "sha256": digest.hexdigest()}


def show_json(value: Any) -> None:
    """The last line of stdout: compact JSON."""
    echo_json(value)


def finite(value: float) -> float | None:
    """A number that JSON has; a threshold that nothing reaches is none."""
    return value if math.isfinite(value) else None
