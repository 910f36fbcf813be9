"""The charts of a causal trace: which tokens and layers a fact passes through, and how edits at each layer fare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wise.lab.report.axes import fitted, named, shares
from wise.lab.report.charts import Series, bars, lines
from wise.lab.report.heatmap import heat_map
from wise.lab.report.svg import Markup

EFFECTS = {
    "state": "the hidden state after a block",
    "ffn": "the feed-forward output of a block",
    "attention": "the attention output of a block",
}
SEVERED = {"state": "as it is", "no_ffn": "feed-forward cut", "no_attention": "attention cut"}
SWEPT = ("reliability", "generalization", "locality")
RIGHT = 124.0
"""Room for names at the ends of lines; the bars under them keep it free, so that layers stand above each other."""


def maps(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is restored, and the heat map of its effects by role of the token and by layer; one scale for all."""
    columns = [str(layer) for layer in range(result["layers"])]
    effects = {kind: result["effects"][kind]["mean"] for kind in EFFECTS if kind in result["effects"]}
    known = [value for mean in effects.values() for row in mean for value in row if value is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    return [
        (
            EFFECTS[kind],
            heat_map(
                mean,
                _roles(result, kind),
                columns,
                f"Indirect effect of {EFFECTS[kind]}, by token and layer",
                column_title="layer",
                low=low,
                high=high,
            ),
        )
        for kind, mean in effects.items()
    ]


def _roles(result: Mapping[str, Any], kind: str) -> list[str]:
    """The roles, with how many facts have each where that is known."""
    n = result["effects"][kind].get("n")
    return [f"{role} ({count})" for role, count in zip(result["roles"], n, strict=True)] if n else result["roles"]


def severed(result: Mapping[str, Any]) -> Markup | None:
    """The effect of the state at the last subject token with the parts above it cut off."""
    paths = {key: result["severed"][key] for key in SEVERED if (result.get("severed") or {}).get(key)}
    if not paths:
        return None
    series = [
        Series(name=SEVERED[key], style=i, points=list(enumerate(values)))
        for i, (key, values) in enumerate(paths.items(), start=1)
    ]
    layers = named("layer of the restored state", [str(layer) for layer in range(result["layers"])])
    effect = fitted("indirect effect", [v for values in paths.values() for v in values])
    return lines("Indirect effect at the last subject token with later parts cut", layers, effect, series, right=148)


def swept(result: Mapping[str, Any]) -> tuple[Markup, Markup | None] | None:
    """What edits at each layer reach, and under it the trace's effect at that layer."""
    stops = result.get("sweep") or []
    if not stops:
        return None
    layers = named("edited layer", [str(stop["layer"]) for stop in stops])
    series = [
        Series(
            name=measure,
            style=i,
            points=[(float(at), stop[measure]) for at, stop in enumerate(stops) if stop.get(measure) is not None],
        )
        for i, measure in enumerate(SWEPT, start=1)
    ]
    above = lines(
        "What edits reach, by edited layer", layers, shares("share of prompts"), series, right=RIGHT, size=(520, 290)
    )
    effects = [stop.get("trace_effect") for stop in stops]
    if None in effects:
        return above, None
    effect = fitted("trace effect", effects)
    return above, bars("Indirect effect by layer", layers, effect, effects, right=RIGHT, size=(520, 190))
