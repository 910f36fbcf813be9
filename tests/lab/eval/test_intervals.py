"""Intervals of routing figures against scipy, naive resampling and weights by hand."""

from __future__ import annotations

import random
import statistics
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from wise.lab.eval.intervals import (
    bootstrap,
    share_interval,
    wilson,
)
from wise.lab.eval.roc import FIGURES, WEIGHTED, Sides


def normal(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (499, 1000)])
def test_wilson_is_scipys(hits: int, count: int) -> None:
    known = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits, count) == pytest.approx((known.low, known.high), abs=1e-12)


levels = st.sampled_from([-torch.inf, 0.0, 0.5, 1.0, 2.0])
weighted = st.lists(st.tuples(levels, st.integers(0, 3)), min_size=1, max_size=10).filter(
    lambda side: sum(weight for _, weight in side) > 0
)


@given(weighted, weighted)
@settings(max_examples=100)
def test_a_weight_is_a_repetition(positive: list[tuple[float, int]], negative: list[tuple[float, int]]) -> None:
    scores = [torch.tensor([score for score, _ in side], dtype=torch.float64) for side in (positive, negative)]
    weights = [torch.tensor([weight for _, weight in side]) for side in (positive, negative)]
    sides = Sides.of(*scores)
    curve = sides.curve(
        weights[0][sides.positive_order].double().unsqueeze(0), weights[1][sides.negative_order].double().unsqueeze(0)
    )
    repeated = [score.repeat_interleave(weight) for score, weight in zip(scores, weights, strict=True)]
    for name, figure in WEIGHTED.items():
        assert figure(curve).item() == pytest.approx(FIGURES[name](*repeated), abs=1e-12), name
    if all(score.isfinite().all() for score in scores):
        truth = [1] * len(scores[0]) + [0] * len(scores[1])
        given_weights = torch.cat(weights).tolist()
        values = torch.cat(scores).tolist()
        auroc = roc_auc_score(truth, values, sample_weight=given_weights)
        precision = average_precision_score(truth, values, sample_weight=given_weights)
        assert WEIGHTED["auroc"](curve).item() == pytest.approx(auroc)
        assert WEIGHTED["average_precision"](curve).item() == pytest.approx(precision)


def naive(positive: Tensor, negative: Tensor, name: str, rounds: int = 1500) -> tuple[float, float]:
    order = random.Random(7)
    found = []
    for _ in range(rounds):
        p = torch.tensor(order.choices(positive.tolist(), k=len(positive)))
        n = torch.tensor(order.choices(negative.tolist(), k=len(negative)))
        found.append(FIGURES[name](p, n))
    cuts = statistics.quantiles(found, n=40, method="inclusive")
    return cuts[0], cuts[-1]


@pytest.mark.parametrize("name", FIGURES)
def test_the_bootstrap_is_that_of_a_loop(name: str) -> None:
    positive, negative = normal(60, 1, 1.5), normal(80, 2)
    found = bootstrap(positive, negative)[name]
    # Two bootstraps of other draws: their ends differ by the Monte Carlo error of a 2.5 % quantile.
    assert found == pytest.approx(naive(positive, negative, name), abs=0.06)
    assert found[0] <= FIGURES[name](positive, negative) <= found[1]
    assert found[1] - found[0] > 0.02


def test_copies_in_a_cluster_say_no_more_than_one() -> None:
    positive, negative = normal(40, 3, 1.0), normal(50, 4)
    many = positive.repeat_interleave(6), negative.repeat_interleave(6)
    names = [i // 6 for i in range(240)], [i // 6 for i in range(300)]
    alone = bootstrap(positive, negative)["auroc"]
    clustered = bootstrap(*many, positive_clusters=names[0], negative_clusters=names[1])["auroc"]
    blind = bootstrap(*many)["auroc"]
    assert clustered == pytest.approx(alone, abs=0.015)
    assert blind[1] - blind[0] < 0.6 * (alone[1] - alone[0])


def test_clusters_of_unlike_size_are_drawn_whole() -> None:
    """Five clusters of 1 to 5 scores: the interval is that over all 3,125 draws, each as likely as another."""
    members = [[0.1 * size + place for place in range(size)] for size in range(1, 6)]
    negative = torch.tensor([0.3, 1.2, 2.3])
    every = [
        FIGURES["auroc"](torch.tensor([score for cluster in draw for score in cluster]), negative)
        for draw in product(members, repeat=5)
    ]
    cuts = statistics.quantiles(every, n=40, method="inclusive")
    positive = torch.tensor([score for cluster in members for score in cluster])
    names = [size for size, cluster in enumerate(members) for _ in cluster]
    # One cluster of negatives: they are the same in each resample.
    found = bootstrap(positive, negative, positive_clusters=names, negative_clusters=[0, 0, 0])["auroc"]
    assert found == pytest.approx((cuts[0], cuts[-1]), abs=0.02)
    alone = bootstrap(positive, negative, negative_clusters=[0, 0, 0])["auroc"]
    assert alone != pytest.approx((cuts[0], cuts[-1]), abs=0.02)


def test_the_same_seed_gives_the_same_interval_and_another_one_not() -> None:
    positive, negative = normal(30, 5, 0.5), normal(30, 6)
    assert bootstrap(positive, negative, seed=1) == bootstrap(positive, negative, seed=1)
    assert bootstrap(positive, negative, seed=1) != bootstrap(positive, negative, seed=2)


def test_constant_and_single_scores_have_an_interval() -> None:
    for positive, negative in [
        (torch.ones(1), torch.zeros(1)),
        (torch.ones(9), torch.ones(9)),
        (torch.full((5,), -torch.inf), normal(5, 7)),
    ]:
        for name, (low, high) in bootstrap(positive, negative, resamples=50).items():
            assert low <= FIGURES[name](positive, negative) <= high, name


def test_an_interval_of_a_share_is_never_narrower_than_wilsons() -> None:
    hits = torch.tensor([True] * 10 + [False] * 90)
    assert share_interval(hits) == wilson(10, 100) == share_interval(hits, list(range(100)))
    together = share_interval(hits, [i // 10 for i in range(100)])
    assert together[0] == 0 and together[1] > wilson(10, 100)[1] + 0.05
    apart = share_interval(hits, [i % 10 for i in range(100)])  # one hit in each cluster: no spread at all
    assert apart == wilson(10, 100)
    nothing = share_interval(torch.zeros(100, dtype=torch.bool), [0] * 50 + [1] * 50)
    assert nothing == wilson(0, 100)


def test_hits_that_come_together_in_few_clusters_widen_the_interval() -> None:
    """Forty texts of which one opens half its tokens: how many will is hardly known."""
    clusters = [text for text in range(40) for _ in range(500)]
    hits = torch.zeros(20_000, dtype=torch.bool)
    hits[:250] = True
    low, high = share_interval(hits, clusters)
    apart = torch.zeros(20_000, dtype=torch.bool)
    apart[::80] = True  # as many, evenly over all texts
    near, far = share_interval(apart, clusters)
    assert low < 0.003 and high > 0.05
    assert 0.01 < near and far < 0.015


def test_such_an_interval_holds_what_it_says() -> None:
    """Where anything was seen at all. One text in ten opens half its tokens."""
    generator = torch.Generator().manual_seed(0)
    clusters = [text for text in range(40) for _ in range(100)]
    held = []
    for _ in range(100):
        texts = torch.rand(40, generator=generator) < 0.1
        hits = (texts.repeat_interleave(100)) & (torch.rand(4000, generator=generator) < 0.5)
        if hits.any():
            low, high = share_interval(hits, clusters, resamples=200)
            held.append(low <= 0.05 <= high)
    assert sum(held) / len(held) > 0.85
