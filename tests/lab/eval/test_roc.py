"""Routing metrics against scikit-learn, on scores with many ties."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_curve
from torch import Tensor

from wise.lab.eval.roc import (
    FIGURES,
    auroc,
    plain,
    roc_curve,
    weighted_fpr_at_tpr,
    weighted_tpr_at_fpr,
)

average_precision = FIGURES["average_precision"]
CASES = [(seed, levels) for seed in range(8) for levels in (2, 5, 1000)]


def tpr_at_fpr(positive: Tensor, negative: Tensor, fpr: float) -> float:
    return plain(positive, negative, figure=partial(weighted_tpr_at_fpr, fpr=fpr))


def fpr_at_tpr(positive: Tensor, negative: Tensor, tpr: float) -> float:
    return plain(positive, negative, figure=partial(weighted_fpr_at_tpr, tpr=tpr))


def scores(seed: int, levels: int) -> tuple[Tensor, Tensor]:
    """Overlapping positives and negatives on `levels` values: few levels, many ties."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(37 + seed, generator=generator) + 0.7
    negative = torch.randn(100, generator=generator)
    return (positive * levels / 4).round(), (negative * levels / 4).round()


def labelled(positive: Tensor, negative: Tensor) -> tuple[list[int], list[float]]:
    return [1] * len(positive) + [0] * len(negative), torch.cat([positive, negative]).tolist()


@pytest.mark.parametrize(("seed", "levels"), CASES)
def test_auroc_is_scikit_learns(seed: int, levels: int) -> None:
    positive, negative = scores(seed, levels)
    assert auroc(positive, negative) == pytest.approx(roc_auc_score(*labelled(positive, negative)), abs=1e-12)
    assert auroc(positive, negative) + auroc(negative, positive) == pytest.approx(1)


@pytest.mark.parametrize(("seed", "levels"), CASES)
@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.07, 0.29, 0.5, 1.0])
def test_tpr_at_fpr_is_the_best_point_of_scikit_learns_curve(seed: int, levels: int, fpr: float) -> None:
    positive, negative = scores(seed, levels)
    rates, hits, _ = sklearn_curve(*labelled(positive, negative), drop_intermediate=False)
    assert tpr_at_fpr(positive, negative, fpr) == pytest.approx(hits[rates <= fpr].max(), abs=1e-12)


def test_extremes() -> None:
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])
    assert auroc(high, low) == 1 and auroc(low, high) == 0 and auroc(low, low) == 0.5
    assert tpr_at_fpr(high, low, 0) == 1 and tpr_at_fpr(low, high, 0) == 0
    no_key = torch.tensor([-torch.inf, -torch.inf])
    assert auroc(low, no_key) == 1 and auroc(no_key, no_key) == 0.5


def test_shape_and_dtype_do_not_matter() -> None:
    positive, negative = scores(0, 5)
    assert auroc(positive[:36].reshape(4, 9).half(), negative.double()) == auroc(positive[:36], negative)


def wild_scores(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A few scores on a handful of values, infinite ones and constant sides among them."""
    levels = st.sampled_from([-torch.inf, -1.0, -0.0, 0.0, 1e-30, 0.5, 1.0, torch.inf])
    sides = [draw(st.lists(levels, min_size=1, max_size=12)) for _ in range(2)]
    return torch.tensor(sides[0]), torch.tensor(sides[1])


both_sides = st.composite(wild_scores)()


def routed(scores: Tensor, threshold: float) -> float:
    return sum(score >= threshold for score in scores.tolist()) / len(scores)


def thresholds(positive: Tensor, negative: Tensor) -> list[float]:
    """Every threshold that differs in what it routes, from high to low; None but infinity routes nothing at all."""
    return sorted({*positive.tolist(), *negative.tolist()}, reverse=True)


@given(both_sides)
def test_figures_are_those_of_a_loop_over_thresholds(sides: tuple[Tensor, Tensor]) -> None:
    positive, negative = sides
    points = [(0.0, 0.0)] + [(routed(negative, t), routed(positive, t)) for t in thresholds(*sides)]
    assert fpr_at_tpr(*sides, 0.95) == pytest.approx(min(x for x, y in points if y >= 0.95))
    assert tpr_at_fpr(*sides, 0.1) == pytest.approx(max(y for x, y in points if x <= 0.1))
    pairs = [(p > n) + (p == n) / 2 for p in positive.tolist() for n in negative.tolist()]
    assert auroc(*sides) == pytest.approx(sum(pairs) / len(pairs))
    precision, last = 0.0, 0.0
    for threshold in thresholds(*sides):
        hits, false = routed(positive, threshold) * len(positive), routed(negative, threshold) * len(negative)
        if hits > last:
            precision += (hits - last) / len(positive) * hits / (hits + false)
            last = hits
    assert average_precision(*sides) == pytest.approx(precision)
    assert roc_curve_of(*sides) == pytest.approx(torch.tensor(points))


def roc_curve_of(positive: Tensor, negative: Tensor) -> Tensor:
    return torch.tensor(roc_curve(positive, negative))


@pytest.mark.parametrize(("seed", "levels"), CASES)
def test_average_precision_and_fpr_are_scikit_learns(seed: int, levels: int) -> None:
    positive, negative = scores(seed, levels)
    truth = labelled(positive, negative)
    assert average_precision(positive, negative) == pytest.approx(average_precision_score(*truth), abs=1e-12)
    rates, hits, _ = sklearn_curve(*truth, drop_intermediate=False)
    for tpr in (0.3, 0.95, 1.0):
        assert fpr_at_tpr(positive, negative, tpr) == pytest.approx(rates[hits >= tpr].min(), abs=1e-12)


def test_a_thinned_curve_keeps_exact_points_and_the_low_rates() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(1000, generator=generator) + 2
    negative = torch.randn(20_000, generator=generator)
    rates, hits, _ = sklearn_curve(*labelled(positive, negative), drop_intermediate=False)
    exact = {(round(x, 12), round(y, 12)) for x, y in zip(rates.tolist(), hits.tolist(), strict=True)}
    curve = roc_curve(positive, negative)
    assert len(curve) <= 200 and curve[0] == (0, 0) and curve[-1] == (1, 1)
    assert all((round(x, 12), round(y, 12)) in exact for x, y in curve)
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(curve))
    for rate in (1e-3, 1e-2):  # an even choice of the steps has one point, if any, in the first of these
        assert sum(rate / 2 < x <= rate for x, _ in curve) >= 5
        best = max(y for x, y in curve if x <= rate)
        assert best == pytest.approx(tpr_at_fpr(positive, negative, rate), abs=0.03)


def test_too_few_negatives_for_a_rate_leave_none_to_be_routed() -> None:
    positive, negative = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])
    assert tpr_at_fpr(positive, negative, 0.001) == 0.5
    assert roc_curve(torch.ones(1), torch.ones(1)) == [(0, 0), (1, 1)]
