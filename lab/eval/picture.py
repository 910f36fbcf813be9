"""The picture of a run: ROC curves and evidence of its router by class of negatives, and retention along the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wise.demo.plotting import new_figure, save_figure
from wise.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
LOWEST = 1e-4
"""False-positive rate at which the axis begins."""
RETAINED = {"reliability": "all so far", "oldest": "oldest tenth", "teacher_forced": "all, teacher-forced"}


def draw_run(run: Mapping[str, Any], path: Path) -> None:
    """Draws what `wise eval --routing --retention` measured, or the part of it that there is, of a run as `read_run`
    gives it. Raises ConfigError where there is nothing to draw, or the file cannot be written."""
    routing, retention = run["routing"], run["retention"]
    if not routing and len(retention) < 2:
        raise ConfigError("nothing of this run can be drawn: measure with --routing, --retention, or both")
    classes = routing["classes"] if routing else {}
    rows = math.ceil(len(classes) / COLUMNS)
    figure = new_figure(14, 5 + 2.2 * rows)
    heights = [5, 2.2 * rows] if rows else [5]
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    above, *below = parts[:, 0]
    panels = list(above.subplots(1, bool(routing) + (len(retention) > 1), squeeze=False)[0])
    if len(retention) > 1:
        _retention(panels.pop(), retention)
    if routing:
        _roc(panels.pop(), routing)
        places = below[0].subplots(rows, COLUMNS, squeeze=False).flatten()
        for axes, (name, measured) in zip(places, classes.items(), strict=False):
            _evidence(axes, routing, name, measured)
        for axes in places[len(classes) :]:
            axes.set_visible(False)
    figure.suptitle(f"{run['editor']}, {run['edits']} edits")
    save_figure(figure, path)


def _roc(axes: Axes, routing: Mapping[str, Any]) -> None:
    for name, measured in routing["classes"].items():
        rates, result = zip(*((max(x, LOWEST), y) for x, y in measured["roc"]), strict=True)
        axes.step(rates, result, where="post", label=f"{name} (AUROC {measured['auroc']:.3f})")
    axes.set(xscale="log", xlim=(LOWEST, 1), ylim=(0, 1.02), title="ROC by class of negatives")
    axes.set(xlabel="share of the class that a threshold routes", ylabel=f"{routing['scored_against']} that it routes")
    axes.legend(fontsize=8)


def _evidence(axes: Axes, routing: Mapping[str, Any], name: str, measured: Mapping[str, Any]) -> None:
    edges = routing["bins"]
    against = routing["positives"][routing["scored_against"]]
    for label, histogram in ((routing["scored_against"], against["histogram"]), (name, measured["histogram"])):
        total = sum(histogram)
        axes.stairs([count / total for count in histogram], edges, fill=True, alpha=0.5, label=label)
    axes.axvline(1.0, color="black", linewidth=1, linestyle="--")
    axes.set_title(f"{name}: {measured['opened']:.1%} open", size=9)
    axes.legend(fontsize=7)


def _retention(axes: Axes, retention: Any) -> None:
    for key, label in RETAINED.items():
        points = [(stop["edits"], stop[key]) for stop in retention if stop[key] is not None]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", ylim=(0, 1.02), title="recall of the edits so far", xlabel="edits made", ylabel="recalled")
    axes.legend(fontsize=8)
