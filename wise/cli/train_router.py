"""`wise train-router`: the two projections of mode 'hybrid', once per base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wise.cli.common import (
    MODEL_HELP,
    FormatOption,
    JsonOption,
    LayerOption,
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
from wise.errors import EditError
from wise.readers import read_records

TEXTS = 320
"""Running texts to read, each to its 128th token."""


def train_router(
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)],
    data: Annotated[Path, typer.Option("--data", help="File of edits with subjects. None of them is made.")],
    output: Annotated[Path, typer.Option("--output", help="File for the router, safetensors.")],
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

    Give records whose subjects are not those you will measure or edit; use the router with --set router=FILE.
    """
    config = make_config(mode="hybrid", layer=layer, seed=seed)
    check_file("--output", output)
    records = read_records(data, format=format_, limit=None if limit is None else skip + limit)
    measured = {r.edit.subject for file in apart or () for r in read_records(file)}
    measured |= {record.edit.subject for record in records[:skip]}
    chosen = [record for record in records[skip:] if record.edit.subject not in measured]
    if not chosen:
        raise EditError(f"{data}: no record is left behind the first {skip} whose subject is in none of the others")
    from wise.eval.routing.texts import read_texts
    from wise.lessons import lessons_of
    from wise.model import wrap
    from wise.training.router_file import save_router, training_record

    base, tokenizer = load_model(model, threads=threads)
    wrapped = wrap(base, tokenizer, config)
    with progress_bars(progress) as show:
        lessons = lessons_of(chosen, seed=config.seed)
        texts = [] if text is None else read_texts(text)[:TEXTS]
        learned = wrapped.learn_router(lessons, texts=texts, false_routes=false_routes, progress=show)
    save_router(output, learned, wrapped.fingerprint())
    typer.echo(
        f"{len(chosen)} records, {learned.facts} facts with {len(lessons)} questions; of the wordings of facts set "
        f"aside {learned.recall:.3f} reach both floors (relation {learned.relation.floor(1):.3f}, subject "
        f"{learned.subject.floor(learned.facts):.3f}), each set for a share of {false_routes} of false routes\n"
        f"router written to {output}"
    )
    if as_json:
        floors = {"relation_floors": learned.relation.floors, "subject_floors": learned.subject.floors}
        show_json(training_record(learned) | floors | {"data": file_facts(data), "questions": len(lessons)})
