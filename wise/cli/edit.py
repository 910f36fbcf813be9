"""`wise edit`: writes edits into a memory and saves it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from wise.cli import options
from wise.cli.common import NOT_VERIFIED, ROWS, check_memory_folder, progress_bars, show_table
from wise.cli.terminal import echo, show_json
from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ConfigError

if TYPE_CHECKING:
    from wise.model import WiseModel
    from wise.training.report import EditReport


@options.with_options
def edit(
    output: Annotated[Path, Option(help="Folder to save the memory to.")],
    edits: Annotated[Path | None, Option(help="File or folder of edits.")] = None,
    *,
    form: options.FormatOptions,
    statement: Annotated[str | None, Option(help="A single edit in words: 'The capital of France is Lyon.'")] = None,
    prompt: Annotated[str | None, Option(help="A single edit: what is asked.")] = None,
    target: Annotated[str | None, Option(help="A single edit: the wanted answer.")] = None,
    subject: Annotated[str | None, Option(help="A single edit: what it is about.")] = None,
    alias: Annotated[list[str] | None, Option(help="A single edit: another name of its subject, repeatable.")] = None,
    memory: Annotated[Path | None, Option(help="Memory to edit further; brings its own settings.")] = None,
    edited: options.EditedModelOptions,
    memory_options: options.MemoryOptions,
    require: Annotated[str | None, Option(help="What must hold for a kept edit: prompt, listed or sisters.")] = None,
    seed: options.SeedOption = None,
    workers: Annotated[int | None, Option(min=1, help="Processes that fit edits, each with a model (hybrid).")] = None,
    as_json: options.JsonOption = False,
    progress: options.ProgressOption = False,
) -> None:
    """Edit a model: every edit is verified by generation, and those that keep what --require asks for are saved.

    Give a file with --edits, or a single edit with --statement, or with --prompt and --target. The exit code is 3
    where an edit is not among them; the others are saved all the same.
    """
    single = options.settings(prompt=prompt, target=target, subject=subject, aliases=alias)
    new_edits = _read_wanted_edits(edits, form, statement, single)
    check_memory_folder("--output", output)
    config = memory_options.config(memory, require=require, seed=seed)
    wrapped = edited.load(memory, progress=progress) if memory else _wrap(edited.base, config)
    with ExitStack() as stack:
        if workers is not None:
            from wise.workers import Workers

            load = partial(_wrap, edited.base, wrapped.wise_config)
            wrapped.use_workers(stack.enter_context(Workers(load, workers)))
        show = stack.enter_context(progress_bars(progress))
        report = wrapped.edit(new_edits, progress=lambda done: show("edits", done, len(new_edits)))
    wrapped.save_pretrained(output)
    _show(new_edits, report, output)
    if as_json:
        show_json(_summary(report) | {"output": str(output)} | report.to_dict())
    if report.failed or report.dropped:
        raise typer.Exit(NOT_VERIFIED)


def _wrap(base: options.ModelOptions, config: WiseConfig) -> WiseModel:
    from wise.model import WiseModel

    return WiseModel(*base.load(), config)


def _read_wanted_edits(
    file: Path | None, form: options.FormatOptions, statement: str | None, single: dict[str, Any]
) -> list[Edit]:
    if (file is None) == (statement is None and not single):
        raise ConfigError("give either --edits FILE, or --statement, or --prompt and --target of a single edit")
    if statement is not None and single.keys() & {"prompt", "target"}:
        raise ConfigError("--statement says what is asked and what is answered: leave --prompt and --target out")
    if file is None and form != options.FormatOptions():
        raise ConfigError("--format and --columns say how a file is read: give --edits FILE, or leave them out")
    if file is not None:
        return [record.edit for record in form.read(file)]
    return [Edit.from_dict(single) if statement is None else Edit.from_text(statement, **single)]


def _summary(report: EditReport) -> dict[str, Any]:
    from wise.training.report import PARTIAL, SUPERSEDED, VERIFIED

    count = len(report.outcomes)
    return {
        "edits": count, "verified_edits": report.count(VERIFIED), "partial_edits": report.count(PARTIAL),
        "failed_edits": len(report.failed), "superseded_edits": report.count(SUPERSEDED),
        "seconds_per_edit": report.seconds / count, "cpu_seconds_per_edit": report.cpu_seconds / count,
    }


def _show(edits: list[Edit], report: EditReport, output: Path) -> None:
    from wise.training.report import FAILED, PARTIAL

    rows = [
        (done.id, done.status, edit.target, done.answer, done.steps, done.loss, done.milliseconds)
        for edit, done in zip(edits, report.outcomes, strict=True)
    ]
    rows.sort(key=lambda row: row[0] not in report.failed)  # what did not work must not be cut off
    show_table("Edits", ("id", "status", "target", "answer", "steps", "loss", "ms"), rows, limit=ROWS)
    counts = ", ".join(
        f"{count} {name.removesuffix('_edits')}" for name, count in _summary(report).items() if name.endswith("_edits")
    )
    echo(f"{len(rows)} edits: {counts}; {report.seconds:.1f} s; saved to {output}")
    for done in [outcome for outcome in report.outcomes if outcome.status in (FAILED, PARTIAL)][:ROWS]:
        broken = [wording for wording, holds in done.holds.items() if not holds]
        if broken:
            served = " (served)" if done.status == PARTIAL else ""
            echo(f"{done.id}: not as promised{served}: {', '.join(broken)}")
        if done.status == FAILED and done.tried:
            echo(f"{done.id}: tried {'; then '.join(done.tried)}")
    for done in [outcome for outcome in report.outcomes if outcome.also_answers][:ROWS]:
        echo(f"{done.id}: may answer too, unless listed as locality: {' '.join(done.also_answers)}")
    if report.replaced:
        echo(f"replaced earlier edits of the same prompts: {', '.join(report.replaced)}")
    for conflict in report.conflicts:
        echo(f"asked in other words, the later edit stays: {conflict.superseded} superseded by {conflict.by}")
    if report.dropped:
        echo(f"no longer answered as edited, and dropped: {', '.join(report.dropped)}")
