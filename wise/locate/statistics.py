"""What the figures of a trace rest on: intervals over facts, and how alike two orders of the layers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch

DRAWS = 1000
LEVEL = 0.95


def bootstrap(values: Sequence[Sequence[float]], *, seed: int) -> list[list[float]]:
    """95% percentile intervals of the mean over rows, `[columns][low, high]`, from 1000 draws of rows.

    values: `[rows][columns]`, at least one row.
    """
    table = torch.tensor([list(row) for row in values], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(table), (DRAWS, len(table)), generator=generator)
    means = torch.stack([table[rows].mean(0) for rows in drawn])
    tail = (1 - LEVEL) / 2
    bounds = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    found: list[list[float]] = bounds.T.tolist()
    return found


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
