"""`wise eval`: edits a model with the records of a file, and measures the editor and its router on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from wise.cli import options
from wise.cli.common import check_output, check_picture, file_facts, progress_bars, show_table, write_figures
from wise.cli.terminal import cell, echo, show_json
from wise.errors import ConfigError, EditError

if TYPE_CHECKING:
    from wise.edits import Record
    from wise.lab.eval.run import Evaluation

POOL = 1000
"""Further records of the file, which are not edited: for negatives of routing, and to train hypernetworks."""


@options.with_options
def eval_(
    data: options.DataOption,
    *,
    form: options.FormatOptions,
    model: options.ModelOptions,
    editor: Annotated[
        str,
        Option(
            help="wise-merge, wise-retrieve, wise-hybrid; ft-l, ft-m, ft-ewc, rome, memit, alphaedit, mend, ke, kn, "
            "grace, memoir, icl; or none for the unedited control.",
        ),
    ] = "wise-hybrid",
    edits: Annotated[int | None, Option(min=1, help="Edits to take from the file. Left out: all.")] = None,
    skip: options.SkipOption = 0,
    batch: Annotated[int | None, Option(min=1, help="Edits per call. Left out: as in the editor's paper.")] = None,
    routing: Annotated[
        bool, Option("--routing", help="Measure the router on classes of prompts, and with perfect routing.")
    ] = False,
    retention: Annotated[bool, Option("--retention", help="Measure all so far after 1, 2, 5, 10, ... edits.")] = False,
    text: Annotated[
        Path | None, Option(help="Running text, for false routes and perplexity. Left out: some that ships.")
    ] = None,
    set_: options.SetOption = None,
    statistics: options.LearningOptions,
    output: Annotated[Path | None, Option(help="JSON file for the whole run.")] = None,
    picture: Annotated[Path | None, Option(help="File to draw routing and retention to, such as run.png.")] = None,
    seed: options.SeedOption = None,
    as_json: options.JsonOption = False,
    progress: options.ProgressOption = False,
) -> None:
    """Apply a stream of edits, then measure all of them.

    Generated: the model must generate the answer and then stop. Teacher-forced: the right tokens are fed in, as
    papers do. Locality: prompts whose answer is still that of the base. Generalization: paraphrases that were not
    used in fitting.
    """
    check_output("--output", output)
    check_picture(picture, output)
    if picture is not None and not (routing or retention):
        raise ConfigError("--picture draws routing and retention: give --routing, --retention, or both")
    records, pool = _records(data, form, skip, edits)
    about = data_and_model(data, form, skip, model)
    from wise.lab.eval.candidates import Learning, all_settings
    from wise.lab.eval.picture import draw_run
    from wise.lab.eval.prompting import apart
    from wise.lab.eval.results_file import with_source
    from wise.lab.eval.routing.texts import running_text
    from wise.lab.eval.run import Scope, evaluate

    chosen = options.parsed_settings(set_) | options.settings(seed=seed)
    all_settings(editor, chosen)
    learning = Learning(training=tuple(apart(pool, records)), **statistics.arguments())
    scope = Scope(routing=routing, pool=pool if routing else (), retention=retention, texts=running_text(text))
    scope.check(editor)
    if picture is not None and not routing and len(records) < 2:
        raise ConfigError("--picture draws retention as a curve, and there is one edit: take more, or give --routing")
    base, tokenizer = model.load()
    with progress_bars(progress) as show:
        result = evaluate(
            base, tokenizer, records, editor=editor, settings=chosen, batch=batch, scope=scope, learning=learning,
            progress=show,
        )
    whole = with_source(result.to_dict(outcomes=True), about)
    show_evaluation(result)
    write_figures(whole, output, picture, draw_run)
    if as_json:
        show_json(with_source(result.to_dict(), about))


def show_evaluation(result: Evaluation) -> None:
    """The tables of one run."""
    quality = result.quality
    rows = [
        (measure, quality.generated[measure], quality.teacher_forced[measure], quality.counts[measure])
        for measure in quality.generated
    ]
    show_table(f"{result.editor}, {result.edits} edits", ("measure", "generated", "teacher-forced", "prompts"), rows)
    if result.routing is not None:
        _show_routing(result.routing.to_dict())
    count = result.edits
    echo(
        f"{len(result.failed)} edits failed; per edit {result.cpu_seconds / count:.3f} CPU seconds, "
        f"{result.seconds / count:.3f} seconds and {result.stored_bytes / count / 1024:.1f} KiB to keep"
    )


def _show_routing(routing: Mapping[str, Any]) -> None:
    columns = {
        "n": "n", "auroc": "AUROC", "average_precision": "AP", "fpr_at_95_tpr": "FPR@95TPR",
        "tpr_at_fpr_0.01": "TPR@1e-2", "tpr_at_fpr_0.001": "TPR@1e-3", "opened": "opened",
    }
    rows = [(name, *(measures[field] for field in columns)) for name, measures in routing["classes"].items()]
    show_table(f"routing: {routing['scored_against']} against", ("negatives", *columns.values()), rows)
    for name, why in routing["skipped"].items():
        echo(f"{name}: not measured, {why}")
    oracle = routing["oracle"]
    echo(
        f"false routes per million tokens of running text: {cell(routing['false_routes_per_million'])} "
        f"({routing['running_text_tokens']} tokens)\n"
        f"with an oracle for a router: reliability {cell(oracle['reliability'])}, "
        f"generalization {cell(oracle['generalization'])}, free wordings {cell(oracle['free_generalization'])}"
    )


def _records(
    data: Path, form: options.FormatOptions, skip: int, edits: int | None
) -> tuple[list[Record], list[Record]]:
    limit = None if edits is None else skip + edits + POOL
    records = form.read(data, limit)
    chosen = records[skip:] if edits is None else records[skip : skip + edits]
    if len(chosen) < (edits or 1):
        raise EditError(
            f"{data}: {edits or 'some'} edits after the first {skip} were asked for, and there are "
            f"{len(chosen)}; ask for fewer, or skip fewer"
        )
    return chosen, [*records[skip + len(chosen) :], *records[:skip]][:POOL]


def data_and_model(data: Path, form: options.FormatOptions, skip: int, model: options.ModelOptions) -> dict[str, Any]:
    """What goes into the file of a run beside its figures: which records, and which model."""
    return {"data": file_facts(data) | {"format": form.format, "skip": skip}, "model": {"name": model.called}}
