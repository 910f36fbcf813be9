"""Draws a trace: effects by role of token and by layer, and what edits at each layer gave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wise.demo.plotting import new_figure, save_figure
from wise.lab.locate.sites import ATTENTION, FFN, KINDS, STATE, TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {STATE: "Purples", FFN: "Greens", ATTENTION: "Reds"}
FIGURES = {"reliability": "#08519c", "generalization": "#6baed6", "locality": "#d94801", "success": "black"}
WRITTEN = 12
"""Layers up to which the cells hold their numbers."""
DARK = 0.55
"""Share of the scale from which a number is written in white."""


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draws `Location.to_dict()` to `path`, whose ending says the format (.png, .svg, .pdf).

    Raises ConfigError where matplotlib is not installed or the file cannot be written.
    """
    swept = bool(result["sweep"])
    figure = new_figure(max(14.0, 0.9 * result["layers"]), 7.5 if swept else 4.0)
    parts: Any = figure.subfigures(1 + swept, 1, squeeze=False)
    maps = parts[0, 0].subplots(1, len(KINDS), sharey=True)
    for axes, kind in zip(maps, KINDS, strict=True):
        _heat_map(axes, result, kind)
    if swept:
        _success(parts[1, 0].subplots(), result)
    name = result["model"].get("name") or result["model"].get("type", "")
    figure.suptitle(
        f"{name}: causal tracing of {result['facts']} facts. Probability of the answer {result['high_score']:.2f} "
        f"clean, {result['low_score']:.2f} with noise on the subject; an effect is what comes back of it",
        size=12,
    )
    save_figure(figure, path)


def _heat_map(axes: Axes, result: Mapping[str, Any], kind: str) -> None:
    effects = result["effects"][kind]
    table = [[float("nan") if value is None else value for value in row] for row in effects["mean"]]
    finite = [value for row in effects["mean"] for value in row if value is not None]
    low, high = min(0.0, *finite), max(0.01, *finite)
    image = axes.imshow(table, cmap=COLOURS[kind], vmin=low, vmax=high, aspect="auto")
    if result["layers"] <= WRITTEN:
        for row, values in enumerate(effects["mean"]):
            for layer, value in enumerate(values):
                if value is not None:
                    dark = (value - low) / (high - low) > DARK
                    shown = f"{value:.2f}".replace("-0.00", "0.00")
                    axes.text(layer, row, shown, ha="center", va="center", size=8.5, color="white" if dark else "black")
    width = "" if kind == "state" or result["window"] == 1 else f", {result['window']} layers around"
    axes.set_title(f"{TITLES[kind]}{width}", size=11)
    labels = [f"{role} ({count})" for role, count in zip(result["roles"], effects["n"], strict=True)]
    axes.set_yticks(range(len(result["roles"])), labels)
    axes.set_xlabel("layer restored")
    _layers(axes, result["layers"])
    axes.figure.colorbar(image, ax=axes, pad=0.02)


def _success(axes: Axes, result: Mapping[str, Any]) -> None:
    rows = result["sweep"]
    layers = [row["layer"] for row in rows]
    axes.bar(layers, [row["trace_effect"] or 0.0 for row in rows], color="#dadaeb", label="trace effect of the state")
    for name, colour in FIGURES.items():
        values = [float("nan") if row[name] is None else row[name] for row in rows]
        if all(map(math.isnan, values)):
            continue  # no prompt measures it
        label = "mean of these" if name == "success" else f"{name}, generated"
        axes.plot(layers, values, color=colour, marker="o", linewidth=2.2 if name == "success" else 1.4, label=label)
    advice = result["recommendation"]
    axes.axvline(advice["layer"], color="black", linewidth=1, linestyle=":")
    agreement = advice["correlations"]["trace_effect"]
    rank = "" if agreement is None else f"; rank correlation with the trace {agreement:.2f}"
    edits = result["sweep_records"]["count"]
    axes.set_title(f"{edits} edits at each layer: layer {advice['layer']} is best{rank}", size=11)
    axes.set_xlabel("layer edited")
    axes.set_ylim(min(0.0, *(row["trace_effect"] or 0.0 for row in rows)), 1.05)
    _layers(axes, result["layers"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _layers(axes: Axes, layers: int) -> None:
    step = max(1, layers // WRITTEN)
    axes.set_xticks(range(0, layers, step))
