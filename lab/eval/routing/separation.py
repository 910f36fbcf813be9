"""The figures of one class of prompts: how well scores separate it, and how often its gates open."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wise.lab.eval.intervals import bootstrap, share_interval
from wise.lab.eval.roc import FIGURES, roc_curve
from wise.lab.eval.routing.classes import RoutingClass, RoutingPrompt
from wise.lab.eval.routing.scores import Scored

WIDEST, STEPS = 2.0, 40
BINS = tuple(round(WIDEST * i / STEPS, 10) for i in range(STEPS + 1))
"""Edges of the histograms. The first bin takes what lies under it as well, the last what lies over it."""


LEAST = {"tpr_at_fpr_0.01": 100, "tpr_at_fpr_0.001": 1000}
"""Negatives under which none of them may be let through at that rate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredClass:
    about: RoutingClass
    prompts: tuple[RoutingPrompt, ...]
    scored: tuple[Scored, ...]
    values: Tensor
    """`[n]` float64, what is measured: one of each prompt, or one of each token."""
    clusters: tuple[Hashable, ...]
    """`[n]`: what is of one record, or of one prompt without a record, is resampled together."""

    @classmethod
    def of(cls, about: RoutingClass, prompts: Sequence[RoutingPrompt], scored: Sequence[Scored]) -> ScoredClass:
        names: list[Hashable] = [
            ("record", prompt.record) if prompt.record is not None else ("text", prompt.cluster or place)
            for place, prompt in enumerate(prompts)
        ]
        return cls(
            about=about,
            prompts=tuple(prompts),
            scored=tuple(scored),
            values=torch.tensor([value for each in scored for value in each.values], dtype=torch.float64),
            clusters=tuple(name for name, each in zip(names, scored, strict=True) for _ in each.values),
        )

    @property
    def opened(self) -> Tensor:
        """`[n]` bool: the gate opens, at the threshold that is in place."""
        return self.values >= 1


def negative_figures(
    negative: ScoredClass, positive: ScoredClass, edits: ScoredClass | None, *, seed: int
) -> dict[str, Any]:
    """The figures of a class of negatives against `positive`, and beside them those against the edits' own prompts.

    An interval is None where the sample cannot tell how sure it is: no resample gave another figure, or a rate is
    asked for that so few negatives cannot show. A true-positive rate at such a rate is that at no false route at all.
    """
    result = _common(negative, seed)
    intervals = bootstrap(
        positive.values,
        negative.values,
        positive_clusters=positive.clusters,
        negative_clusters=negative.clusters,
        seed=seed,
    )
    for name, figure in FIGURES.items():
        result[name] = figure(positive.values, negative.values)
        low, high = intervals[name]
        is_known = low < high and negative.values.numel() >= LEAST.get(name, 1)
        result[f"{name}_ci"] = [low, high] if is_known else None
    result["against_edits"] = (
        None if edits is None else {name: f(edits.values, negative.values) for name, f in FIGURES.items()}
    )
    result["roc"] = [list(point) for point in roc_curve(positive.values, negative.values)]
    return result


def positive_figures(positive: ScoredClass, slots: Mapping[str, int], *, keys: bool, seed: int) -> dict[str, Any]:
    """slots: edit -> its slot. keys: whether the router has keys, so that an edit can be nearest."""
    pairs = [(prompt.record, scored) for prompt, scored in zip(positive.prompts, positive.scored, strict=True)]
    slot_hits = [scored.slots[-1] == slots[record] for record, scored in pairs if record is not None]
    edit_hits = [scored.edits[-1] == record for record, scored in pairs]
    return _common(positive, seed) | {
        "slot_top1": sum(slot_hits) / len(slot_hits),
        "edit_top1": sum(edit_hits) / len(edit_hits) if keys else None,
    }


def histogram(values: Tensor) -> list[int]:
    """How many of `values` `[n]` lie in each bin of `BINS`; an edge belongs to the bin that it opens."""
    inner = torch.tensor(BINS[1:-1], dtype=torch.float64)
    counts = torch.bincount(torch.bucketize(values, inner, right=True), minlength=STEPS)
    return [int(count) for count in counts]


def _common(scored: ScoredClass, seed: int) -> dict[str, Any]:
    return {
        "about": scored.about.about,
        "unit": scored.about.unit,
        "n": scored.values.numel(),
        "opened": float(scored.opened.double().mean()),
        "opened_ci": list(share_interval(scored.opened, scored.clusters, seed=seed)),
        "histogram": histogram(scored.values),
    }
