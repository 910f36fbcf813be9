"""How well a score tells edited tokens (positive) from unrelated ones (negative).

Everywhere a token is routed to the side memory when its score is at least the threshold. Scores may
be of any shape and are read flat; they may be infinite (no key: -inf) but not NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from wise.errors import ConfigError

ROC_POINTS = 200


def auroc(positive: Tensor, negative: Tensor) -> float:
    """P(positive > negative) + P(positive = negative) / 2, over all pairs, in [0, 1].

    The area under the ROC curve as the Mann-Whitney statistic (Hanley & McNeil 1982).

    Raises ConfigError if either is empty or holds NaN.
    """
    positive = checked_scores(positive, "positive")
    negative = checked_scores(negative, "negative").sort().values
    below = torch.searchsorted(negative, positive).sum()
    not_above = torch.searchsorted(negative, positive, right=True).sum()
    return int(below + not_above) / (2 * positive.numel() * negative.numel())


def tpr_at_fpr(positive: Tensor, negative: Tensor, fpr: float) -> float:
    """Largest share of positives routed by any threshold that routes at most `fpr` of the negatives.

    A threshold routes all scores that tie or none, so the false-positive rate reached may be lower. With fewer
    than 1 / `fpr` negatives not one of them may be routed, and the figure says no more than that.

    Raises ConfigError if `fpr` is not in [0, 1], or either tensor is empty or holds NaN.
    """
    if not 0 <= fpr <= 1:
        raise ConfigError(f"fpr={fpr!r}: expected a number in [0, 1]")
    positive = checked_scores(positive, "positive")
    negative = checked_scores(negative, "negative").sort(descending=True).values
    count = negative.numel()
    # The quotients, not floor(fpr * count): 0.29 * 100 is a little under 29.
    rates = torch.arange(1, count + 1, dtype=torch.float64, device=negative.device) / count
    allowed = int((rates <= fpr).sum())
    if allowed == count:
        return 1.0
    return float((positive > negative[allowed]).double().mean())


def fpr_at_tpr(positive: Tensor, negative: Tensor, tpr: float) -> float:
    """Smallest share of negatives routed by any threshold that routes at least `tpr` of the positives.

    Raises ConfigError if `tpr` is not in [0, 1], or either tensor is empty or holds NaN.
    """
    if not 0 <= tpr <= 1:
        raise ConfigError(f"tpr={tpr!r}: expected a number in [0, 1]")
    positive = checked_scores(positive, "positive").sort(descending=True).values
    negative = checked_scores(negative, "negative")
    count = positive.numel()
    rates = torch.arange(1, count + 1, dtype=torch.float64, device=positive.device) / count
    needed = int((rates < tpr).sum())  # the score at this place must be routed
    if tpr == 0:
        return 0.0
    return float((negative >= positive[needed]).double().mean())


def average_precision(positive: Tensor, negative: Tensor) -> float:
    """Sum over thresholds, from high to low, of precision times the recall gained there; no interpolation.

    Scores that tie are one threshold, as in scikit-learn's `average_precision_score`. Unlike the AUROC it falls
    with the number of negatives per positive.

    Raises ConfigError if either is empty or holds NaN.
    """
    positive = checked_scores(positive, "positive")
    negative = checked_scores(negative, "negative")
    hits, false = _counts(positive, negative, _falling(positive))
    gained = torch.diff(hits, prepend=hits.new_zeros(1))
    return float((gained * hits / (hits + false)).sum() / positive.numel())


def roc_curve(positive: Tensor, negative: Tensor, points: int = ROC_POINTS) -> list[tuple[float, float]]:
    """The ROC curve as (false-positive rate, true-positive rate), from (0, 0) to (1, 1), both never falling.

    One point per threshold. Where there are more than `points`, some are left out: half of those kept lie evenly
    over the curve, the other half evenly over the logarithm of the false-positive rate, where routing is decided.
    Every point that is kept is one of the exact curve.

    Raises ConfigError if `points` is under 4, or either tensor is empty or holds NaN.
    """
    if points < 4:
        raise ConfigError(f"points={points}: expected at least 4")
    positive = checked_scores(positive, "positive")
    negative = checked_scores(negative, "negative")
    hits, false = _counts(positive, negative, _falling(torch.cat([positive, negative])))
    curve = torch.stack([false / negative.numel(), hits / positive.numel()], dim=1)
    curve = torch.cat([curve.new_zeros(1, 2), curve])
    if len(curve) > points:
        half = points // 2
        even = torch.linspace(0, len(curve) - 1, half, dtype=torch.float64).round().long()
        first = 1 / negative.numel()
        wanted = torch.logspace(math.log10(first), 0, points - half, dtype=torch.float64)
        # The last point at each rate: the best that a threshold of that rate reaches.
        low = torch.searchsorted(curve[:, 0].cpu().contiguous(), wanted, right=True) - 1
        curve = curve[_falling(torch.cat([even, low])).flip(0).to(curve.device)]
    return [(x, y) for x, y in curve.tolist()]


FIGURES: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "fpr_at_95_tpr": partial(fpr_at_tpr, tpr=0.95),
    "tpr_at_fpr_0.01": partial(tpr_at_fpr, fpr=0.01),
    "tpr_at_fpr_0.001": partial(tpr_at_fpr, fpr=0.001),
}
"""What is reported of positive against negative scores, by name."""


def false_route_rate(negative: Tensor, threshold: float) -> float:
    """Unrelated tokens sent to the side memory, per million.

    Raises ConfigError if `threshold` is NaN, or `negative` is empty or holds NaN.
    """
    if math.isnan(threshold):
        raise ConfigError("threshold is NaN: expected a number")
    return 1e6 * float((checked_scores(negative, "negative") >= threshold).double().mean())


def _falling(scores: Tensor) -> Tensor:
    """Each score once, from high to low: all thresholds that differ in what they route."""
    once: Tensor = scores.unique().flip(0)  # type: ignore[no-untyped-call]
    return once


def _counts(positive: Tensor, negative: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """How many positives, and negatives, reach each of the falling `thresholds`; float64, exact."""
    return tuple(  # type: ignore[return-value]
        (side.numel() - torch.searchsorted(side.sort().values, thresholds)).double() for side in (positive, negative)
    )


def checked_scores(scores: Tensor, name: str) -> Tensor:
    """The scores `[n]` in float64, in which those of every other dtype are exact.

    name: what they are, for messages. Raises ConfigError where there are none, or one is NaN.
    """
    flat = scores.detach().flatten().to(torch.float64)
    if flat.numel() == 0:
        raise ConfigError(f"no {name} scores: expected at least one")
    undefined = int(flat.isnan().sum())
    if undefined:
        raise ConfigError(f"{undefined} of {flat.numel()} {name} scores are NaN: expected numbers")
    return flat
