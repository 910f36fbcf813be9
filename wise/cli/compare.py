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
    found = compare_runs([(name, read_run(path)) for name, path in zip(names, runs, strict=True)], seed=seed or 0)
    for contrast in found.contrasts:
        for warning in contrast.warnings:
            echo(f"WARNING: {contrast.run}: {warning}", err=True)
    for contrast in found.contrasts:
        _show(found, contrast)
    if as_json:
        show_json(found.to_dict())


def _show(comparison: Comparison, contrast: Contrast) -> None:
    show_table(f"{contrast.run} against {comparison.reference}", COLUMNS, map(_row, contrast.differences))
    figures = [
        (f.name, _with_interval(f.reference, f.reference_interval), _with_interval(f.value, f.interval),
         f"{f.difference:+.3f}")
        for f in contrast.figures
    ]
    if figures:
        show_table("not tested", ("figure", "reference", "run", "difference"), figures)
    found = sum(difference.p_holm <= SIGNIFICANT for difference in contrast.differences)
    echo(
        f"{found} of {len(contrast.differences)} differences are significant at {SIGNIFICANT} (Holm); "
        f"{contrast.matched} outcomes compared, {contrast.only_reference} of {comparison.reference} and "
        f"{contrast.only_run} of {contrast.run} without a partner"
    )


def _row(found: Difference) -> tuple[Any, ...]:
    bounds = "" if found.interval is None else " [{:+.3f}, {:+.3f}]".format(*found.interval)
    return (
        found.measure, found.mode.replace("_", "-"), found.records, found.reference, found.value,
        f"{found.difference:+.3f}{bounds}", shown_p(found.p),
        shown_p(found.p_holm) + ("*" if found.p_holm <= SIGNIFICANT else ""),
    )


def shown_p(value: float) -> str:
    """A p-value in a cell."""
    return f"<{SMALLEST}" if value < SMALLEST else f"{value:.3f}"


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3f}" if interval is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
