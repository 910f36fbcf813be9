"""How well a score tells edited tokens (positive) from unrelated ones (negative).

Everywhere a token is routed to the side memory when its score is at least the threshold. Scores may
be of any shape and are read flat; they may be infinite (no key: -inf) but not NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wise.errors import ConfigError


def auroc(positive: Tensor, negative: Tensor) -> float:
    """P(positive > negative) + P(positive = negative) / 2, over all pairs, in [0, 1].

    The area under the ROC curve as the Mann-Whitney statistic (Hanley & McNeil 1982).

    Raises ConfigError if either is empty or holds NaN.
    """
    positive = _scores(positive, "positive")
    negative = _scores(negative, "negative").sort().values
    below = torch.searchsorted(negative, positive).sum()
    not_above = torch.searchsorted(negative, positive, right=True).sum()
    return int(below + not_above) / (2 * positive.numel() * negative.numel())


def tpr_at_fpr(positive: Tensor, negative: Tensor, fpr: float) -> float:
    """Largest share of positives routed by any threshold that routes at most `fpr` of the negatives.

    A threshold routes all scores that tie or none, so the false-positive rate reached may be lower.

    Raises ConfigError if `fpr` is not in [0, 1], or either tensor is empty or holds NaN.
    """
    if not 0 <= fpr <= 1:
        raise ConfigError(f"fpr={fpr!r}: expected a number in [0, 1]")
    positive = _scores(positive, "positive")
    negative = _scores(negative, "negative").sort(descending=True).values
    count = negative.numel()
    # The quotients, not floor(fpr * count): 0.29 * 100 is a little under 29.
    rates = torch.arange(1, count + 1, dtype=torch.float64, device=negative.device) / count
    allowed = int((rates <= fpr).sum())
    if allowed == count:
        return 1.0
    return float((positive > negative[allowed]).double().mean())


def false_route_rate(negative: Tensor, threshold: float) -> float:
    """Unrelated tokens sent to the side memory, per million.

    Raises ConfigError if `threshold` is NaN, or `negative` is empty or holds NaN.
    """
    if math.isnan(threshold):
        raise ConfigError("threshold is NaN: expected a number")
    return 1e6 * float((_scores(negative, "negative") >= threshold).double().mean())


def _scores(scores: Tensor, name: str) -> Tensor:
    """The scores `[n]` in float64, in which those of every other dtype are exact."""
    flat = scores.detach().flatten().to(torch.float64)
    if flat.numel() == 0:
        raise ConfigError(f"no {name} scores: expected at least one")
    undefined = int(flat.isnan().sum())
    if undefined:
        raise ConfigError(f"{undefined} of {flat.numel()} {name} scores are NaN: expected numbers")
    return flat
