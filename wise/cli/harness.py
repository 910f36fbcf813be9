"""`wise harness`: runs tasks of lm-evaluation-harness on a base and on its edited model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from wise.cli.common import show_table
from wise.cli.compare import shown_p
from wise.cli.options import EditedModelOptions, JsonOption, ProgressOption, SeedOption, with_options
from wise.cli.terminal import show_json

COLUMNS = ("task", "metric", "documents", "base", "edited", "difference", "changed", "p")


@with_options
def harness(
    memory: Annotated[Path, Option(help="Folder of a saved memory.")],
    tasks: Annotated[str, Option(help="Names of tasks, groups or tags, with commas between them.")],
    include_path: Annotated[
        Path | None, Option(help="Folder of further task files (YAML); Python that they name is run.")
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="Documents of each task, the first ones. Left out: all.")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Requests at once.")] = None,
    seed: SeedOption = None,
    *,
    edited: EditedModelOptions,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Run tasks of lm-evaluation-harness before and after the edits.

    Figures stand with their standard errors. changed: documents that came out otherwise. p: paired permutation test
    over documents. With --progress the harness shows its own bars and notes on stderr.
    """
    from wise.lab.eval.harness import BATCH, check_request, evaluate_harness

    names = [name.strip() for name in tasks.split(",")]
    check_request(names, include_path)
    wrapped = edited.load(memory, progress=progress)
    results = evaluate_harness(
        wrapped, names, limit=limit, include_path=include_path, batch_size=batch_size or BATCH, seed=seed or 0,
        verbose=progress,
    )
    show_table(f"lm-evaluation-harness, {results['edits']} edits", COLUMNS, map(_cells, results["results"]))
    if as_json:
        show_json({"memory": str(memory), **results})


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    difference = None if row["difference"] is None else f"{row['difference']:+.3f}"
    figures = [_with_error(row[name], row[f"{name}_stderr"]) for name in ("base", "edited")]
    p = None if row["p"] is None else shown_p(row["p"])
    return row["task"], row["metric"], row["documents"], *figures, difference, row["changed"], p


def _with_error(value: float | None, error: float | None) -> str | None:
    return None if value is None else f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")
