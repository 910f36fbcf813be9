"""`wise bench`: compares editors on the same records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from wise.cli import options
from wise.cli.common import check_writable, progress_bars, show_table
from wise.cli.eval import data_and_model
from wise.cli.terminal import echo, show_json

SIZES = [1, 10, 100, 500]

app = typer.Typer(help="Compare editors on the same records.", no_args_is_help=True)


@app.command("editors")
@options.with_options
def bench_editors(
    data: options.DataOption,
    output: Annotated[Path, Option(help="Folder of the runs; what is in it is not done again.")],
    *,
    form: options.FormatOptions,
    model: options.ModelOptions,
    editor: Annotated[list[str] | None, Option(help="An editor; repeat for more. Left out: all.")] = None,
    edits: Annotated[list[int] | None, Option(min=1, help="Edits of a stream, repeatable: 1, 10, 100, 500.")] = None,
    least: Annotated[int, Option(min=1, help="Edits measured at each size; short streams repeat, on others.")] = 20,
    skip: options.SkipOption = 0,
    trials: Annotated[int, Option(min=1, help="Settings tried per editor, the defaults among them.")] = 4,
    search_edits: Annotated[int, Option(min=1, help="Records a search edits; they are not measured.")] = 20,
    text: Annotated[Path | None, Option(help="Running text, for perplexity. Left out: some that ships.")] = None,
    statistics: options.LearningOptions,
    seed: options.SeedOption = None,
    as_json: options.JsonOption = False,
    progress: options.ProgressOption = False,
) -> None:
    """Edit the same records with every editor, at several lengths of the stream, and put the results side by side.

    Settings of each editor are found by the same small search, on records that are not measured. The folder then holds
    every search and every run, comparison.md and, with matplotlib, comparison.png. The same command goes on with what
    was interrupted; with another --editor it adds to the comparison.
    """
    check_writable("--output", output, output)
    sizes = sorted(set(edits or SIZES))
    from wise.lab.bench.benchmark import MEASURED, TRAINING, compare_editors, finished_runs, make_plan
    from wise.lab.bench.benchmark_table import HEAD, markdown, table
    from wise.lab.eval.candidates import find_editor
    from wise.lab.eval.routing.texts import running_text

    chosen = list(editor or MEASURED)
    for name in chosen:
        find_editor(name)
    plan = make_plan(
        form.read(data, skip + sizes[-1] + search_edits + TRAINING),
        edits=sizes[-1],
        searched=search_edits,
        skip=skip,
        least=least,
        trials=trials,
        seed=seed or 0,
        texts=tuple(running_text(text)),
        **statistics.arguments(),
    )
    about = data_and_model(data, form, skip, model)
    base, tokenizer = model.load()
    with progress_bars(progress) as show:
        compare_editors(base, tokenizer, plan, editors=chosen, sizes=sizes, folder=output, about=about, progress=show)
    groups = finished_runs(output)
    rows = table(groups)
    (output / "comparison.md").write_text(markdown(HEAD, rows), encoding="utf-8")
    show_table("editors, generated / teacher-forced", HEAD, rows)
    _draw(groups, output / "comparison.png", f"{data.name} in {model.called}")
    if as_json:
        show_json([{name: run[name] for name in run if name != "outcomes"} for group in groups for run in group])


def _draw(groups: Sequence[Sequence[Mapping[str, Any]]], file: Path, title: str) -> None:
    if find_spec("matplotlib") is None:
        echo("no picture was drawn: it needs matplotlib (pip install 'wise-runtime[report]')", err=True)
        return
    from wise.lab.bench.picture import draw_comparison

    draw_comparison(groups, file, title=title)
    echo(f"runs, table and picture are in {file.parent}")
