"""ROC figures: how well a score tells edited tokens (positive) from unrelated ones (negative).

A token is routed to the side memory when its score is at least the threshold. Scores may be of any shape and are read
flat; they may be infinite (no key: -inf) but not NaN. Every figure is defined once, over weighted scores: a bootstrap
resample is a weight for each score, and a plain figure has the weight 1 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

ROC_POINTS = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """What a threshold at each positive routes in each resample; positives from high to low, ties apart."""

    weight: Tensor
    """`[r, p]` of each positive."""
    hits: Tensor
    """`[r, p]` weight of the positives at or over it."""
    false: Tensor
    """`[r, p]` weight of the negatives at or over it."""
    over: Tensor
    """`[r, p]` weight of the negatives over it."""
    positives: Tensor
    """`[r, 1]` weight of all positives."""
    negatives: Tensor
    """`[r, 1]`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """Sorted scores: where each positive stands among the positives and the negatives."""

    positive_order: Tensor
    """`[p]` from high to low."""
    negative_order: Tensor
    """`[n]` from high to low."""
    tied: Tensor
    """`[p]` last place among the positives that has the same score."""
    at_least: Tensor
    """`[p]` number of negatives at or over each positive."""
    over: Tensor
    """`[p]` number of negatives over each positive."""

    @classmethod
    def of(cls, positive: Tensor, negative: Tensor) -> Sides:
        positive, negative = positive.flatten().double(), negative.flatten().double()  # exact, of every other dtype
        up, down = (-positive).sort(stable=True), (-negative).sort(stable=True)
        return cls(
            positive_order=up.indices,
            negative_order=down.indices,
            tied=torch.searchsorted(up.values, up.values, right=True) - 1,
            at_least=torch.searchsorted(down.values, up.values, right=True),
            over=torch.searchsorted(down.values, up.values),
        )

    def curve(self, positive: Tensor, negative: Tensor) -> Curve:
        """positive `[r, p]` and negative `[r, n]`: weights in the sorted order."""
        sums = torch.cat([negative.new_zeros(len(negative), 1), negative.cumsum(1)], dim=1)
        hits = positive.cumsum(1)
        return Curve(
            weight=positive,
            hits=hits[:, self.tied],
            false=sums[:, self.at_least],
            over=sums[:, self.over],
            positives=hits[:, -1:],
            negatives=sums[:, -1:],
        )


def weighted_auroc(curve: Curve) -> Tensor:
    """P(positive > negative) + P(positive = negative) / 2: the Mann-Whitney statistic (Hanley & McNeil 1982)."""
    below = curve.negatives - (curve.false + curve.over) / 2
    return (curve.weight * below).sum(1) / (curve.positives * curve.negatives).squeeze(1)


def weighted_average_precision(curve: Curve) -> Tensor:
    """Sum over thresholds of precision times the recall gained there, without interpolation, as in scikit-learn."""
    reached = (curve.hits + curve.false).clamp(min=1)  # under 1 only where nothing is drawn so far, weight 0
    return (curve.weight * curve.hits / reached).sum(1) / curve.positives.squeeze(1)


def weighted_fpr_at_tpr(curve: Curve, tpr: float) -> Tensor:
    """Smallest share of negatives that a threshold routes which routes at least `tpr`, above 0, of the positives."""
    enough = (curve.hits / curve.positives >= tpr).to(torch.uint8).argmax(1, keepdim=True)
    return (curve.false.gather(1, enough) / curve.negatives).squeeze(1)


def weighted_tpr_at_fpr(curve: Curve, fpr: float) -> Tensor:
    """Largest share of positives that a threshold routes which routes at most `fpr` of the negatives.

    With fewer than 1 / `fpr` negatives none of them may be routed, and the figure says no more than that.
    """
    allowed = curve.false / curve.negatives <= fpr
    return (curve.hits * allowed).max(1).values / curve.positives.squeeze(1)


WEIGHTED: Mapping[str, Callable[[Curve], Tensor]] = {
    "auroc": weighted_auroc,
    "average_precision": weighted_average_precision,
    "fpr_at_95_tpr": partial(weighted_fpr_at_tpr, tpr=0.95),
    "tpr_at_fpr_0.01": partial(weighted_tpr_at_fpr, fpr=0.01),
    "tpr_at_fpr_0.001": partial(weighted_tpr_at_fpr, fpr=0.001),
}
"""What is reported of positive against negative scores, by name: of each resample, `[r]`."""


def plain(positive: Tensor, negative: Tensor, *, figure: Callable[[Curve], Tensor]) -> float:
    """A figure of scores that all count once."""
    sides = Sides.of(positive, negative)
    ones = torch.ones(1, 1, dtype=torch.float64, device=sides.tied.device)
    return float(figure(sides.curve(ones.expand(1, positive.numel()), ones.expand(1, negative.numel()))))


FIGURES: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    name: partial(plain, figure=figure) for name, figure in WEIGHTED.items()
}
auroc = FIGURES["auroc"]


def roc_curve(positive: Tensor, negative: Tensor) -> list[tuple[float, float]]:
    """The ROC curve as (false-positive rate, true-positive rate), from (0, 0) to (1, 1), both never falling.

    One point per threshold. Where there are more than `ROC_POINTS`, some are left out: half of those kept lie evenly
    over the curve, the other half evenly over the logarithm of the false-positive rate, where routing is decided.
    Every point that is kept is one of the exact curve.
    """
    positive, negative = positive.flatten().double(), negative.flatten().double()
    hits, false = _counts(positive, negative, _falling(torch.cat([positive, negative])))
    curve = torch.stack([false / negative.numel(), hits / positive.numel()], dim=1)
    curve = torch.cat([curve.new_zeros(1, 2), curve])
    if len(curve) > ROC_POINTS:
        half = ROC_POINTS // 2
        even = torch.linspace(0, len(curve) - 1, half, dtype=torch.float64).round().long()
        first = 1 / negative.numel()
        rates = torch.logspace(math.log10(first), 0, ROC_POINTS - half, dtype=torch.float64)
        # The last point at each rate: the best that a threshold of that rate reaches.
        low = torch.searchsorted(curve[:, 0].cpu().contiguous(), rates, right=True) - 1
        curve = curve[_falling(torch.cat([even, low])).flip(0).to(curve.device)]
    return [(x, y) for x, y in curve.tolist()]


def _falling(scores: Tensor) -> Tensor:
    """Each score once, from high to low: all thresholds that differ in what they route."""
    once: Tensor = scores.unique().flip(0)  # type: ignore[no-untyped-call]
    return once


def _counts(positive: Tensor, negative: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """How many positives, and negatives, reach each of the falling `thresholds`; float64, exact."""
    return tuple(  # type: ignore[return-value]
        (side.numel() - torch.searchsorted(side.sort().values, thresholds)).double() for side in (positive, negative)
    )
