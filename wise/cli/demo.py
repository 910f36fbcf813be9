"""`wise demo`: the whole of wise on the model that ships with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Option

from wise.cli.common import check_output, check_picture, progress_bars, show_table
from wise.cli.eval import show_evaluation
from wise.cli.options import JsonOption, PlacementOptions, ProgressOption, ThreadsOption, with_options
from wise.cli.terminal import echo, show_json
from wise.loading import prepare

if TYPE_CHECKING:
    from wise.lab.demo import DemoResult


@with_options
def demo(
    edits: Annotated[int, Option(min=1, help="Counterfactual edits to make.")] = 100,
    mode: Annotated[
        str, Option(help="merge: one side memory; retrieve: one per slot; hybrid: values for each answer.")
    ] = "hybrid",
    seed: Annotated[int, Option(min=0, help="Seed of all that is random.")] = 0,
    picture: Annotated[Path | None, Option(help="File to draw the routing scores to, such as routing.png.")] = None,
    records: Annotated[
        Path | None, Option(help="File to write all its facts to, JSON lines, those edited first: for wise eval.")
    ] = None,
    threads: ThreadsOption = None,
    *,
    placement: PlacementOptions,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Edit the model that ships with wise, and measure what became of it. Nothing is downloaded."""
    check_output("--records", records)
    check_picture(picture)
    prepare(threads)
    from wise.demo.picture import draw
    from wise.demo.records import write_records
    from wise.lab.demo import run_demo

    with progress_bars(progress) as show:
        result = run_demo(edits=edits, seed=seed, mode=mode, placement=placement, progress=show)
    _show(result)
    if records is not None:
        write_records(records, edits, seed=seed)
        echo(f"records written to {records}")
    if picture is not None:
        draw(result.ratios, picture)
        echo(f"routing scores drawn to {picture}")
    if as_json:
        show_json(result.to_dict())


def _show(result: DemoResult) -> None:
    rows = [
        (row.kind, row.prompt, row.before, Text(row.after, style="green" if row.after == row.wanted else "red"))
        for row in result.shown
    ]
    show_table("before and after", ("", "prompt", "before", "after"), rows)
    show_evaluation(result.evaluation)
    opened = ", ".join(f"{float((v >= 1).float().mean()):.1%} of {kind}" for kind, v in result.ratios.items())
    echo(
        f"the base answered {result.base_recall:.1%} of its facts before\n"
        f"the gate opens for {opened}; AUROC of paraphrases against neighbours {result.auroc:.3f}\n"
        f"{result.seconds:.1f} seconds in all"
    )
