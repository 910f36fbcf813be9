"""The picture of a comparison: reliability and locality of every editor by the number of edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wise.demo.plotting import new_figure, save_figure
from wise.lab.bench.benchmark_table import Group, figure_at, mean

PANELS = {
    "reliability": "reliability: the edit's prompt gives the target",
    "generalization": "generalization: unseen paraphrases do",
    "locality": "locality: neighbours answer as before",
}
"""Measure, generated -> title."""
OURS = "wise-"
MARKERS = "osD^vPX<>*ph"


def draw_comparison(groups: Sequence[Group], path: Path, *, title: str) -> None:
    """Draws the runs of several editors and sizes, means over streams, to `path`, whose ending says the format.

    Raises ConfigError where matplotlib is not installed or the file cannot be written.
    """
    figure = new_figure(15, 5.2)
    from matplotlib import colormaps

    by_editor: dict[str, list[Group]] = {}
    for group in groups:
        by_editor.setdefault(group[0]["editor"], []).append(group)
    sizes = sorted({group[0]["edits"] for group in groups})
    axes = figure.subplots(1, len(PANELS), sharey=True)
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for panel, (measure, name) in zip(axes, PANELS.items(), strict=True):
        for place, (editor, streams) in enumerate(by_editor.items()):
            means = {group[0]["edits"]: mean(group, figure_at("generated", measure)) for group in streams}
            known = {size: value for size, value in means.items() if value is not None}
            ours = editor.startswith(OURS)
            panel.plot(
                list(known),
                list(known.values()),
                label=editor,
                color=colours[place % len(colours)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=7 if ours else 5,
                linewidth=3 if ours else 1.4,
                zorder=3 if ours else 2,
            )
        panel.set_xscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.set(title=name, xlabel="edits in the stream", ylim=(-0.03, 1.03))
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share, generated")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title)
    save_figure(figure, path)
