"""`wise compare`: compares runs, and tests whether their differences are significant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from wise.cli.common import show_table
from wise.cli.options import JsonOption, SeedOption
from wise.cli.terminal import echo, show_json

if TYPE_CHECKING:
    from wise.lab.bench.run_comparison import Comparison, Contrast, Difference

SIGNIFICANT = 0.05
SMALLEST = 0.001
"""A p below it is shown as below it."""
COLUMNS = ("measure", "mode", "records", "ref.", "run", "difference [95 %]", "p", "p Holm")


def compare(
    runs: Annotated[list[Path], Argument(help="Files of 'wise eval --output'; the first is the reference.")],
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs on the same records: every measure, its difference, and whether that is more than chance.

    p: paired permutation test over records. p Holm: the same, adjusted for all tests shown. [95 %]: bootstrap
    over records.
    """
    from wise.lab.bench.run_comparison import compare_runs
    from wise.lab.eval.results_file import read_run

    stems = [path.stem for path in runs]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in runs]
    files = zip(names, runs, strict=True)
    comparison = compare_runs([(name, read_run(path)) for name, path in files], seed=seed or 0)
    for contrast in comparison.contrasts:
        for warning in contrast.warnings:
            echo(f"WARNING: {contrast.run}: {warning}", err=True)
    for contrast in comparison.contrasts:
        _show(comparison, contrast)
    if as_json:
        show_json(comparison.to_dict())


def _show(comparison: Comparison, contrast: Contrast) -> None:
    show_table(f"{contrast.run} against {comparison.reference}", COLUMNS, map(_row, contrast.differences))
    figures = [
        (f.name, _with_interval(f.reference, f.reference_interval), _with_interval(f.value, f.interval),
         f"{f.difference:+.3f}")
        for f in contrast.figures
    ]
    if figures:
        show_table("not tested", ("figure", "reference", "run", "difference"), figures)
    significant = sum(difference.p_holm <= SIGNIFICANT for difference in contrast.differences)
    echo(
        f"{significant} of {len(contrast.differences)} differences are significant at {SIGNIFICANT} (Holm); "
        f"{contrast.matched} outcomes compared, {contrast.only_reference} of {comparison.reference} and "
        f"{contrast.only_run} of {contrast.run} without a partner"
    )


def _row(difference: Difference) -> tuple[Any, ...]:
    bounds = "" if difference.interval is None else " [{:+.3f}, {:+.3f}]".format(*difference.interval)
    return (
        difference.measure, difference.mode.replace("_", "-"), difference.records,
        difference.reference, difference.value,
        f"{difference.difference:+.3f}{bounds}", shown_p(difference.p),
        shown_p(difference.p_holm) + ("*" if difference.p_holm <= SIGNIFICANT else ""),
    )


def shown_p(value: float) -> str:
    """A p-value in a cell."""
    return f"<{SMALLEST}" if value < SMALLEST else f"{value:.3f}"


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3f}" if interval is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
