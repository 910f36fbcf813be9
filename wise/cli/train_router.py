"""`wise train-router`: the two projections of mode 'hybrid', once per base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wise.cli.common import (
    FormatOption,
    JsonOption,
    LayerOption,
    ModelOption,
    ProgressOption,
    SeedOption,
    ThreadsOption,
    check_file,
    file_facts,
    load_model,
    make_config,
    progress_bars,
    show_json,
)
from wise.errors import ConfigError, EditError
from wise.readers import read_records
from wise.training.lesson import Lesson

TEXTS = 320
"""Running texts to read, each to its 128th token."""


def train_router(
    output: Annotated[Path, typer.Option("--output", help="File for the router, safetensors.")],
    model: ModelOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="File of edits with subjects, none of them made. Without it: questions that ship with wise."
        ),
    ] = None,
    format_: FormatOption = "auto",
    skip: Annotated[int, typer.Option("--skip", min=0, help="Records to leave out, from the start of the file.")] = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Records to read behind them.")] = None,
    apart: Annotated[
        list[Path] | None,
        typer.Option("--apart", help="File of edits whose subjects are left out: those to measure. Repeat for more."),
    ] = None,
    false_routes: Annotated[
        float, typer.Option("--false-routes", help="Share of unlike questions that each floor may let pass.")
    ] = 0.05,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            exists=True,
            dir_okay=False,
            help=f"Running text that asks for nothing, paragraphs or JSON lines; its first {TEXTS} are read.",
        ),
    ] = None,
    layer: LayerOption = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Learn from questions about facts that are not edited what is asked and of whom.

    Give records whose subjects are not those you will measure or edit; use the router with --set router=FILE. Without
    records it learns from questions that ship with wise, which any base can be asked, and reaches fewer wordings.
    """
    config = make_config(mode="hybrid", layer=layer, seed=seed)
    check_file("--output", output)
    if data is None and (skip or limit is not None or format_ != "auto"):
        raise ConfigError("--skip, --limit and --format say which records to read: give them with --data")
    measured = {r.edit.subject for file in apart or () for r in read_records(file)}
    lessons, source = (
        _shipped(measured, config.seed)
        if data is None
        else _of_records(data, format_, skip, limit, measured, config.seed)
    )
    from wise.eval.routing.texts import read_texts
    from wise.model import wrap
    from wise.training.router_file import save_router, training_record

    base, tokenizer = load_model(model, threads=threads)
    wrapped = wrap(base, tokenizer, config)
    with progress_bars(progress) as show:
        texts = [] if text is None else read_texts(text)[:TEXTS]
        learned = wrapped.learn_router(lessons, texts=texts, false_routes=false_routes, progress=show)
    save_router(output, learned, wrapped.fingerprint())
    typer.echo(
        f"{source}, {learned.facts} facts with {len(lessons)} questions; of the wordings of facts set "
        f"aside {learned.recall:.3f} reach both floors (relation {learned.relation.floor(1):.3f}, subject "
        f"{learned.subject.floor(learned.facts):.3f}), each set for a share of {false_routes} of false routes\n"
        f"router written to {output}"
    )
    if as_json:
        floors = {"relation_floors": learned.relation.floors, "subject_floors": learned.subject.floors}
        read = None if data is None else file_facts(data)
        show_json(training_record(learned) | floors | {"data": read, "questions": len(lessons)})


def _of_records(
    data: Path, format_: str, skip: int, limit: int | None, measured: set[str | None], seed: int
) -> tuple[list[Lesson], str]:
    """What the chosen records hold, and what they are called."""
    from wise.lessons import lessons_of

    records = read_records(data, format=format_, limit=None if limit is None else skip + limit)
    measured |= {record.edit.subject for record in records[:skip]}
    chosen = [record for record in records[skip:] if record.edit.subject not in measured]
    if not chosen:
        raise EditError(f"{data}: no record is left behind the first {skip} whose subject is in none of the others")
    return lessons_of(chosen, seed=seed), f"{len(chosen)} records"


def _shipped(measured: set[str | None], seed: int) -> tuple[list[Lesson], str]:
    from wise.questions import shipped_lessons

    apart = {subject.casefold() for subject in measured if subject}
    lessons = [each for each in shipped_lessons(seed=seed) if (each.subject or "").casefold() not in apart]
    return lessons, "no records given, so questions that ship with wise"
