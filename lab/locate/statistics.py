"""How alike two orders of the layers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None where either is constant or has under three."""
    x, y = (_ranks(values) for values in (a, b))
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    mean_x, mean_y = fmean(x), fmean(y)
    dx, dy = [i - mean_x for i in x], [i - mean_y for i in y]
    product = sum(i * j for i, j in zip(dx, dy, strict=True))
    return product / math.sqrt(sum(i * i for i in dx) * sum(j * j for j in dy))


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal ones share the mean of their ranks."""
    ranked = sorted(values)
    return [ranked.index(value) + (ranked.count(value) + 1) / 2 for value in values]
