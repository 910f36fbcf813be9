"""`wise bench routers`: ways of finding an edit again side by side, on the same prompts and calibrated alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wise.cli.common import (
    FormatOption,
    JsonOption,
    ModelOption,
    ProgressOption,
    SeedOption,
    ThreadsOption,
    check_file,
    file_facts,
    model_name,
    progress_bars,
    show_json,
    show_table,
)
from wise.errors import ConfigError
from wise.loading import load_model

if TYPE_CHECKING:
    from wise.lab.editors.embedding import Embedder

SIZES = [100]
RATES = [0.01, 0.05]


def bench_routers(
    data: Annotated[Path, typer.Option("--data", help="File of edits with the prompts that measure them.")],
    model: ModelOption = None,
    format: FormatOption = "auto",
    edits: Annotated[
        list[int] | None, typer.Option("--edits", min=1, help="Edits in the memory; repeat for more sizes. 100.")
    ] = None,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Records of the file to leave out first.")] = 0,
    calibrate_from: Annotated[
        int | None,
        typer.Option(
            "--calibrate-from",
            min=0,
            help="Place in the file, from 0, from which on as many records are for finding thresholds. Left out: right "
            "behind the measured ones.",
        ),
    ] = None,
    false_routes: Annotated[
        list[float] | None,
        typer.Option("--false-routes", help="Share of hard negatives that may open a gate; repeat. 0.01 and 0.05."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Running text, for false routes. Left out: some that ships.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File for the tables, Markdown.")] = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Ask every router for the same edits on the same prompts, each with a threshold found in the same way.

    The hybrid router; WISE's activation; the nearest key of mode retrieve; an epsilon-ball and cosines on activations;
    and the nearest sentence embedding, where that is installed (wise-runtime[encoder]). Thresholds are for a memory of
    as many other edits.
    """
    check_file("--output", output)
    from wise.lab.eval.routers.contest import Ground, compare_routers, make_rounds
    from wise.lab.eval.routers.table import gates, markdown, separation
    from wise.lab.eval.routing.texts import read_texts
    from wise.lab.formats.files import read_records

    records = read_records(data, format=format)
    sizes = sorted(set(edits or SIZES))
    rounds = [make_rounds(records, edits=size, skip=skip, calibrate_from=calibrate_from) for size in sizes]
    ground = Ground(
        rates=tuple(false_routes or RATES), text=None if text is None else read_texts(text), seed=seed or 0
    )
    base, tokenizer = load_model(model, threads=threads)
    embedder = _embedder()
    compared = []
    with progress_bars(progress) as show:
        for each in rounds:
            found = compare_routers(base, tokenizer, each, ground, embedder=embedder, progress=show)
            compared.append(found)
    for one in compared:
        show_table(f"{one['edits']} edits, AUROC of paraphrases against", *separation(one))
        rates = ", ".join(f"{rate:g}" for rate in ground.rates)
        show_table(f"{one['edits']} edits, gates for a share of {rates} of hard negatives", *gates(one))
    if output is not None:
        output.write_text("\n".join(map(markdown, compared)), encoding="utf-8")
        typer.echo(f"tables written to {output}")
    if as_json:
        about = {"data": file_facts(data) | {"format": format, "skip": skip}, "model": {"name": model_name(model)}}
        show_json(about | {"compared": compared})


def _embedder() -> Embedder | None:
    """Sentence embeddings, or none where their package is not installed, which is said."""
    from wise.lab.editors.embedding import MiniLM, packaged_model

    try:
        packaged_model()
    except ConfigError as error:
        typer.echo(f"left out: {error}", err=True)
        return None
    return MiniLM()
