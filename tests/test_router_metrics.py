"""Routing metrics against scikit-learn, on scores with many ties."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from wise.errors import ConfigError
from wise.router.metrics import auroc, false_route_rate, tpr_at_fpr

CASES = [(seed, levels) for seed in range(8) for levels in (2, 5, 1000)]


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
    rates, hits, _ = roc_curve(*labelled(positive, negative), drop_intermediate=False)
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


def test_false_routes_are_counted_per_million_at_or_over_the_threshold() -> None:
    negative = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    assert false_route_rate(negative, 0.35) == 250_000
    assert false_route_rate(torch.tensor([1.0, 2.0, 3.0, 4.0]), 3.0) == 500_000
    assert false_route_rate(negative, float("inf")) == 0


def test_nothing_and_nan_are_refused() -> None:
    some, none, broken = torch.ones(2), torch.ones(0), torch.tensor([1.0, torch.nan])
    for positive, negative, message in [
        (none, some, "no positive"),
        (some, none, "no negative"),
        (broken, some, "1 of 2 positive scores are NaN"),
        (some, broken, "1 of 2 negative scores are NaN"),
    ]:
        with pytest.raises(ConfigError, match=message):
            auroc(positive, negative)
        with pytest.raises(ConfigError, match=message):
            tpr_at_fpr(positive, negative, 0.5)
    with pytest.raises(ConfigError, match="no negative"):
        false_route_rate(none, 0.0)
    with pytest.raises(ConfigError, match="threshold is NaN"):
        false_route_rate(some, float("nan"))
    for fpr in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="fpr="):
            tpr_at_fpr(some, some, fpr)
