"""Conformal floors: the least evidence that negatives reach no oftener than a stated share of the time.

Vovk, Gammerman and Shafer 2005: a new score, exchangeable with `n` that are known, lies above all but `k` of them with
probability `(k + 1) / (n + 1)`. Where a question is compared with every edit there is, what counts is the largest
score, which grows with their number; so a floor is given for each size that a memory may have.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIZES = tuple(2**i for i in range(21))
"""Numbers of edits for which floors are given, as `KeySpace.floors` has them."""
ABSENT = -2.0
"""In place of a score that does not count: below every cosine."""


def conformal_floor(scores: Tensor, share: float) -> float:
    """The least floor that a score, exchangeable with these `[n]` float32, reaches with probability `share` at most.

    1, which next to nothing reaches, where there are too few scores to promise that.
    """
    place = math.ceil((len(scores) + 1) * (1 - share)) - 1
    if place >= len(scores):
        return 1.0
    return _above(scores.sort().values[place])


def growing_floors(scores: Tensor, share: float) -> tuple[float, ...]:
    """The least floor for each of `SIZES` that a question's largest score reaches with probability `share` at most.

    scores: `[questions, keys]` float32, of questions about what is not edited; `ABSENT` for a key that could not speak
    there whatever its score. Questions without any other are left out. One edit of a memory is taken to be among those
    that could, since an unlike question is no test; the others are drawn from all keys alike.
    """
    own = scores[(scores > ABSENT).any(-1)]
    ordered, like = own.sort(-1).values, (own > ABSENT).sum(-1)
    steps = torch.unique(own[own > ABSENT])
    return tuple(_least(ordered, like, steps, share, size) for size in SIZES)


def _least(ordered: Tensor, like: Tensor, steps: Tensor, share: float, size: int) -> float:
    """By bisection over the scores that there are: the higher the floor, the fewer questions reach it."""
    if (len(ordered) + 1) * share < 1:
        return 1.0
    low, high = -1, len(steps) - 1  # above the last step none reaches it
    while high - low > 1:
        middle = (low + high) // 2
        if _reached(ordered, like, _above(steps[middle]), size) <= share:
            high = middle
        else:
            low = middle
    return _above(steps[high])


def _reached(ordered: Tensor, like: Tensor, floor: float, size: int) -> float:
    """Share of questions of which one of `size` edits reaches the floor, counting one more than there are."""
    over = ordered.shape[1] - torch.searchsorted(ordered, ordered.new_full((len(ordered), 1), floor))[:, 0]
    silent = (1 - over / like) * (1 - over / ordered.shape[1]) ** (size - 1)
    return float((1 - silent).sum() + 1) / (len(ordered) + 1)


def _above(score: Tensor) -> float:
    """The next float32, at most 1."""
    return min(float(torch.nextafter(score, score.new_tensor(2.0))), 1.0)
