"""`wise eval`: edits a model with the records of a file, and measures the editor and its router on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wise.cli.common import (
    CacheOption,
    ColumnsOption,
    CorpusOption,
    FormatOption,
    JsonOption,
    ModelOption,
    ProgressOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    cache_folder,
    check_file,
    file_facts,
    model_name,
    parsed_settings,
    progress_bars,
    read_data,
    settings,
    show_json,
    show_table,
    with_placement,
)
from wise.cli.terminal import echo
from wise.demo.plotting import check_picture
from wise.errors import ConfigError, EditError
from wise.loading import DEFAULT_PLACEMENT, Placement, load_model

if TYPE_CHECKING:
    from wise.edits import Record
    from wise.lab.eval.run import Evaluation, Scope

POOL = 1000
"""Further records of the file, which are not edited: for negatives of routing, and to train hypernetworks."""


@with_placement
def evaluate(
    data: Annotated[Path, typer.Option("--data", help="File or folder of edits with the prompts that measure them.")],
    model: ModelOption = None,
    format: FormatOption = "auto",
    columns: ColumnsOption = None,
    editor: Annotated[
        str,
        typer.Option(
            "--editor",
            help="wise-merge, wise-retrieve, wise-hybrid; ft-l, ft-m, ft-ewc, rome, memit, alphaedit, mend, ke, kn, "
            "grace, memoir, icl; or none for the unedited control.",
        ),
    ] = "wise-hybrid",
    edits: Annotated[
        int | None, typer.Option("--edits", min=1, help="Edits to take from the file. Left out: all.")
    ] = None,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Records of the file to leave out first.")] = 0,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Edits per call. Left out: as the editor's paper applies them.")
    ] = None,
    routing: Annotated[
        bool, typer.Option("--routing", help="Measure the router on classes of prompts, and with perfect routing.")
    ] = False,
    retention: Annotated[
        bool, typer.Option("--retention", help="Measure all edits so far after 1, 2, 5, 10, ... edits.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="Running text, for false routes and perplexity. Left out: some that ships."),
    ] = None,
    set_: SetOption = None,
    corpus: CorpusOption = None,
    cache: CacheOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="JSON file for the whole run."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="File to draw routing and retention to, such as run.png.")
    ] = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    placement: Placement = DEFAULT_PLACEMENT,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Apply a stream of edits, then measure all of them.

    Generated: the model must generate the answer and then stop. Teacher-forced: the right tokens are fed in, as
    papers do. Locality: prompts whose answer is still that of the base. Generalization: paraphrases that were not
    used in fitting.
    """
    for name, file in (("--output", output), ("--picture", picture)):
        check_file(name, file)
    if picture is not None:
        if not (routing or retention):
            raise ConfigError("--picture draws routing and retention: give --routing, --retention, or both")
        check_picture(picture)
    records, pool = _records(data, format, columns, skip, edits)
    about = {"data": file_facts(data) | {"format": format, "skip": skip}, "model": {"name": model_name(model)}}
    scope = _scope(routing, retention, pool, text)
    from wise.lab.eval.candidates import Learning, all_settings
    from wise.lab.eval.results_file import write_json
    from wise.lab.eval.run import evaluate as run

    chosen = parsed_settings(set_) | settings(seed=seed)
    all_settings(editor, chosen)
    texts = None if corpus is None else read_corpus(corpus)
    learning = Learning(corpus=texts, training=tuple(pool), cache=cache_folder(cache))
    base, tokenizer = load_model(model, threads=threads, placement=placement)
    with progress_bars(progress) as show:
        result = run(
            base,
            tokenizer,
            records,
            editor=editor,
            settings=chosen,
            batch=batch,
            scope=scope,
            learning=learning,
            progress=show,
        )
    whole = _merged(result.to_dict(outcomes=True), about)
    show_evaluation(result)
    if output is not None:
        write_json(output, whole)
        echo(f"run written to {output}")
    if picture is not None:
        from wise.lab.eval.picture import draw_run

        draw_run(whole, picture)
        echo(f"picture drawn to {picture}")
    if as_json:
        show_json(_merged(result.to_dict(), about))


def show_evaluation(result: Evaluation) -> None:
    """The tables of one run."""
    quality = result.quality
    rows = [
        (measure, quality.generated[measure], quality.teacher_forced[measure], quality.counts[measure])
        for measure in quality.generated
    ]
    show_table(
        f"{result.editor}, {result.edits} edits", ("measure", "generated", "teacher-forced", "prompts"), rows
    )
    if result.routing is not None:
        _show_routing(result.routing.to_dict())
    count = result.edits
    echo(
        f"{len(result.failed)} edits failed; per edit {result.cpu_seconds / count:.3f} CPU seconds, "
        f"{result.seconds / count:.3f} seconds and {result.stored_bytes / count / 1024:.1f} KiB to keep"
    )


def _show_routing(routing: Mapping[str, Any]) -> None:
    rows = [
        (
            name,
            found["n"],
            found["auroc"],
            found["average_precision"],
            found["fpr_at_95_tpr"],
            found["tpr_at_fpr_0.01"],
            found["tpr_at_fpr_0.001"],
            found["opened"],
        )
        for name, found in routing["classes"].items()
    ]
    columns = ("negatives", "n", "AUROC", "AP", "FPR@95TPR", "TPR@1e-2", "TPR@1e-3", "opened")
    show_table(f"routing: {routing['scored_against']} against", columns, rows)
    for name, why in routing["skipped"].items():
        echo(f"{name}: not measured, {why}")
    oracle = routing["oracle"]
    echo(
        f"false routes per million tokens of running text: {_short(routing['false_routes_per_million'])} "
        f"({routing['running_text_tokens']} tokens)\n"
        f"with an oracle for a router: reliability {_short(oracle['reliability'])}, "
        f"generalization {_short(oracle['generalization'])}, free wordings {_short(oracle['free_generalization'])}"
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _records(
    data: Path, format: str, columns: str | None, skip: int, edits: int | None
) -> tuple[list[Record], list[Record]]:
    """The records to edit, and others of the file."""
    limit = None if edits is None else skip + edits + POOL
    records = read_data(data, format, columns, limit)
    chosen = records[skip:] if edits is None else records[skip : skip + edits]
    if len(chosen) < (edits or 1):
        raise EditError(
            f"{data}: {edits or 'some'} edits after the first {skip} were asked for, and there are "
            f"{len(chosen)}; ask for fewer, or skip fewer"
        )
    return chosen, [*records[skip + len(chosen) :], *records[:skip]][:POOL]


def read_corpus(file: Path) -> tuple[str, ...]:
    """Texts of a file. Raises what `read_texts` raises."""
    from wise.lab.eval.routing.texts import read_texts

    return tuple(read_texts(file))


def _scope(
    routing: bool,
    retention: bool,
    pool: Sequence[Record],
    text: Path | None,
) -> Scope:
    from wise.lab.eval.routing.texts import read_texts, shipped_passages
    from wise.lab.eval.run import Scope

    return Scope(
        routing=routing,
        pool=pool if routing else (),
        retention=retention,
        texts=shipped_passages() if text is None else read_texts(text),
    )


def _merged(run: dict[str, Any], about: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return run | {name: {**found, **run.get(name, {})} for name, found in about.items()}
