"""The demo's picture: where the routing scores of edits, paraphrases and neighbours lie around the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from wise.errors import ConfigError

COLOURS = {"edits": "#1b7837", "paraphrases": "#5aae61", "neighbours": "#762a83"}
WIDEST = 2.0
BINS = 48


def draw(ratios: Mapping[str, Tensor], path: Path) -> None:
    """Draws densities of score over threshold to `path`, whose ending says the format (.png, .svg, .pdf).

    Raises ConfigError where matplotlib is not installed or cannot write this format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib: pip install 'wise-runtime[report]'") from error
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    edges = [WIDEST * i / BINS for i in range(BINS + 1)]
    for kind, values in ratios.items():
        shown = values.clamp(max=WIDEST).tolist()
        share = [1 / len(shown)] * len(shown)
        label = f"{kind}: {sum(v >= 1 for v in shown)} of {len(shown)} open"
        axes.hist(shown, bins=edges, weights=share, color=COLOURS.get(kind), alpha=0.55, label=label)
    axes.axvline(1.0, color="black", linewidth=1.2, linestyle="--")
    axes.annotate("threshold", (1.0, 0.98), (4, 0), ("data", "axes fraction"), "offset points", va="top")
    axes.set_xlim(0, WIDEST)
    axes.set_xlabel("routing score / threshold, at the last token of the prompt")
    axes.set_ylabel("share of prompts")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--picture {path}: {error}") from error
