"""Tests whether two runs on the same records differ significantly.

Prompts of one record stand and fall together, so the record is what is drawn: a test that counts prompts as if they
were independent finds differences that are not there. What is tested is a vector of differences, one per record.

* `sign_flip`: the paired permutation test. Were the two runs alike, each record's difference could as well have the
  other sign (Fisher 1935; recommended for NLP by Dror, Baumer, Shlomov and Reichart 2018, ACL, P18-1128). Its p is
  exact where the sums of all signs can be listed, and else counted over random signs as Phipson and Smyth (2010) do,
  never 0.
* `bootstrap_interval`: percentile interval of the mean difference, records drawn with replacement (Efron and
  Tibshirani 1993; clusters drawn whole: Field and Welsh 2007).
* `holm`: p-values of several tests, adjusted so that the chance of any false finding stays what it is for one
  (Holm 1979).

Everything is a function of its arguments and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

FLIPS = 10_000
"""Random signs of the permutation test; as many sums of signs are listed where there are no more."""
RESAMPLES = 10_000
LEVEL = 0.95
CELLS = 1 << 20
"""Random numbers that are held at once."""
SLACK = 1e-12
"""Share of the sum of all differences by which two sums may differ and count as equal: what rounding does."""

Floats = NDArray[np.float64]


def sign_flip(differences: Sequence[float], *, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p of the mean of `differences` `[records]` under random signs.

    The share of all signs for which the sum is as far from 0 as it is, or further. Differences of 0 add nothing to any
    sum, and of k differences of one size the sum depends on how many are positive alone; so the sums are listed with
    their probabilities where the product of all k + 1 is at most `flips`, and else drawn, `flips` times.
    """
    values = np.asarray([value for value in differences if value], dtype=np.float64)
    sizes, counts = np.unique(np.abs(values), return_counts=True)
    least = abs(values.sum()) - SLACK * np.abs(values).sum()
    if sum(np.log(counts + 1.0)) <= np.log(flips):
        sums, chances = _exact_sums(sizes, counts)
        return min(1.0, float(chances[np.abs(sums) >= least].sum()))
    generator = np.random.default_rng(seed)
    beyond = 0
    for part in _parts(flips, len(values)):
        signs = 2.0 * generator.integers(0, 2, size=(part, len(values)), dtype=np.int8) - 1.0
        beyond += int((np.abs(signs @ values) >= least).sum())
    return (1 + beyond) / (1 + flips)


def bootstrap_interval(
    differences: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `differences` `[records]`, records drawn with replacement."""
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(values), size=(part, len(values))) for part in _parts(resamples, len(values)))
    means = np.concatenate([values[drawn].mean(1) for drawn in draws])
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for all of `ps` together, in their order: the i-th smallest of m times m - i + 1, never
    below an adjusted smaller one, at most 1.
    """
    values = np.asarray(ps, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return [float(p) for p in adjusted]


def _parts(total: int, width: int) -> list[int]:
    """`total` rows of `width` random numbers in parts that fit `CELLS`."""
    most = max(1, CELLS // max(1, width))
    return [min(most, total - start) for start in range(0, total, most)]


def _exact_sums(sizes: Floats, counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Every sum that signs can give, and its probability: `[sums]` each."""
    sums, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts.tolist(), strict=True):
        steps = size * (2.0 * np.arange(count + 1) - count)
        sums = (sums[:, None] + steps).reshape(-1)
        heads = np.asarray([comb(count, n) / 2**count for n in range(count + 1)])  # each rounded once
        chances = (chances[:, None] * heads).reshape(-1)
    return sums, chances
