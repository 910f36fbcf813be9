"""`wise eval`: reliability, generalization and locality of an editor on a file of records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wise.cli.common import (
    MODEL_HELP,
    FormatOption,
    JsonOption,
    LayerOption,
    ProgressOption,
    SeedOption,
    ThreadsOption,
    load_model,
    make_config,
    progress_bars,
    settings,
    show_json,
    show_table,
)
from wise.errors import EditError
from wise.readers import read_records

if TYPE_CHECKING:
    from wise.edits import Record
    from wise.eval.editors import Evaluation


def evaluate(
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)],
    data: Annotated[Path, typer.Option("--data", help="File of edits with the prompts that measure them.")],
    format: FormatOption = "auto",
    editor: Annotated[
        str, typer.Option("--editor", help="wise-merge, wise-retrieve, or none for the unedited control.")
    ] = "wise-retrieve",
    edits: Annotated[
        int | None, typer.Option("--edits", min=1, help="Edits to take from the file. Left out: all.")
    ] = None,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Records of the file to leave out first.")] = 0,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Edits per call, as a stream. Left out: all at once.")
    ] = None,
    layer: LayerOption = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Apply a stream of edits, then measure all of them.

    Generated: the model must produce the answer and stop by itself. Teacher-forced: gold tokens are fed in,
    as papers do. Locality is what stays as the base has it; generalization asks only paraphrases that fitting
    never saw.
    """
    make_config(layer=layer, seed=seed)
    records = _records(data, format, skip, edits)
    from wise.eval.editors import evaluate as run
    from wise.eval.editors import find_editor

    find_editor(editor)
    base, tokenizer = load_model(model, threads=threads)
    with progress_bars(progress, "editing", "measuring") as [edited, measured]:
        result = run(
            base,
            tokenizer,
            records,
            editor=editor,
            settings=settings(layer=layer, seed=seed),
            batch=batch,
            edited=edited,
            measured=measured,
        )
    show_evaluation(result)
    if as_json:
        show_json(result.to_dict())


def show_evaluation(result: Evaluation) -> None:
    """The table of one run."""
    quality = result.quality
    rows = [
        (measure, quality.generated[measure], quality.teacher_forced[measure], quality.counts[measure])
        for measure in quality.generated
    ]
    show_table(
        f"{result.editor}, {result.edits} edits", ("measure", "generated", "teacher-forced", "prompts"), rows
    )
    typer.echo(
        f"{len(result.failed)} edits failed; {result.cpu_seconds / result.edits:.3f} CPU seconds and "
        f"{result.seconds / result.edits:.3f} seconds per edit"
    )


def _records(data: Path, format: str, skip: int, edits: int | None) -> list[Record]:
    records = read_records(data, format=format, limit=None if edits is None else skip + edits)[skip:]
    if len(records) < (edits or 1):
        raise EditError(
            f"{data}: {edits or 'some'} edits after the first {skip} were asked for, and there are "
            f"{len(records)}; ask for fewer, or skip fewer"
        )
    return records
