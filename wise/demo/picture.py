"""The demo's picture: where the routing scores of edits, paraphrases and neighbours lie around the threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from wise.demo.plotting import new_figure, save_figure

COLOURS = {"edits": "#1b7837", "paraphrases": "#5aae61", "neighbours": "#762a83"}
WIDEST = 2.0
BINS = 48


def draw(ratios: Mapping[str, Tensor], path: Path) -> None:
    """Draws densities of score over threshold to `path`, whose ending says the format (.png, .svg, .pdf).

    Raises ConfigError where matplotlib is not installed or cannot write this format.
    """
    figure = new_figure(8, 1.6 * len(ratios) + 0.6)
    rows = figure.subplots(len(ratios), sharex=True, squeeze=False)[:, 0]
    edges = [WIDEST * i / BINS for i in range(BINS + 1)]
    for axes, (kind, values) in zip(rows, ratios.items(), strict=True):
        shown = values.clamp(min=0, max=WIDEST).tolist()
        axes.hist(shown, bins=edges, weights=[100 / len(shown)] * len(shown), color=COLOURS.get(kind))
        axes.axvline(1.0, color="black", linewidth=1, linestyle="--")
        axes.set_title(f"{kind}: the gate opens for {sum(v >= 1 for v in shown)} of {len(shown)}", loc="left", size=10)
        axes.set_ylabel("% of prompts")
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlim(0, WIDEST)
    rows[-1].set_xlabel("evidence at the last token of the prompt (the gate opens from 1)")
    save_figure(figure, path)


def draw_decisions(decisions: Sequence[tuple[str, float, float, bool]], path: Path) -> None:
    """Draws of each question the score of the edit that came nearest beside its threshold.

    decisions: question, score, threshold (infinite where no edit was looked at), and whether it asks for an edit.

    Raises ConfigError where matplotlib is not installed or cannot write this format.
    """
    figure = new_figure(9, 0.4 * len(decisions) + 1)
    axes = figure.subplots()
    for row, (_, score, threshold, should_open) in enumerate(reversed(decisions)):
        axes.barh(row, score, color=COLOURS["edits"] if should_open else COLOURS["neighbours"])
        if threshold < float("inf"):
            axes.plot([threshold, threshold], [row - 0.4, row + 0.4], color="black", linewidth=2)
    axes.set_yticks(range(len(decisions)), [question for question, *_ in reversed(decisions)])
    axes.set_xlim(0, 1)
    axes.set_xlabel("score of the nearest edit; the black mark is its threshold (green: asks for an edit)")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
