"""The picture of a comparison: how reliability and locality of every editor fare as the stream grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wise.errors import ConfigError

PANELS = {
    "reliability": "reliability: the edit's prompt gives the target",
    "generalization": "generalization: unseen paraphrases do",
    "locality": "locality: neighbours answer as before",
}
"""Measure, generated -> title."""
OURS = "wise-"
MARKERS = "osD^vPX<>*ph"


def draw_comparison(runs: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draws runs of several editors and sizes to `path`, whose ending says the format.

    Raises ConfigError where matplotlib is not installed or the file cannot be written.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib: pip install 'wise-runtime[report]'") from error
    editors = list(dict.fromkeys(run["editor"] for run in runs))
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    sizes = sorted({run["edits"] for run in runs})
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for panel, (measure, name) in zip(axes, PANELS.items(), strict=True):
        for place, editor in enumerate(editors):
            known = [r for r in runs if r["editor"] == editor and r["generated"][measure] is not None]
            ours = editor.startswith(OURS)
            panel.plot(
                [run["edits"] for run in known],
                [run["generated"][measure] for run in known],
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
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
