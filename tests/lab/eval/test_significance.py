"""Tests of significance: against scipy, against a loop over all signs, and on data where nothing differs."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wise.lab.eval.significance import bootstrap_interval, holm, sign_flip


def draw(seed: int, n: int, *, values: Any = None, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(shift, 1, n) if values is None else generator.choice(values, n)


# -- signs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 13))
def test_few_records_are_enumerated_as_scipy_does(n: int) -> None:
    for values in (draw(n, n, shift=0.5), draw(n, n, values=[-0.5, 0.0, 0.5, 1.0])):
        reference = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
        )
        assert sign_flip(values) == pytest.approx(reference.pvalue, rel=1e-9)


def test_rounding_does_not_tell_equal_sums_apart() -> None:
    thirds = [2 / 3 - 1 / 3, 1 / 3, 1 - 2 / 3, 0.1 + 0.2 - 0.3, -1 / 3]
    exact = [1, 1, 1, 0, -1]
    flipped = [abs(np.dot(signs, exact)) >= 2 for signs in product((1, -1), repeat=5)]
    assert sign_flip(thirds) == pytest.approx(np.mean(flipped))


@pytest.mark.parametrize("wins", [500, 520, 560])
def test_many_records_of_one_size_are_exact(wins: int) -> None:
    values = [0.25] * wins + [-0.25] * (1000 - wins) + [0.0] * 300
    assert sign_flip(values) == pytest.approx(stats.binomtest(wins, 1000).pvalue, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2])
def test_drawn_signs_come_near_to_all_signs(shift: float) -> None:
    values = draw(3, 16, shift=shift)
    signs = np.array(list(product((1, -1), repeat=16)))
    exact = float((np.abs(signs @ values) >= abs(values.sum()) - 1e-9).mean())
    assert sign_flip(values) == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 10_000) ** 0.5)
    assert sign_flip(values) == sign_flip(list(values)), "the same seed gives the same p"
    assert sign_flip(values, seed=1) != sign_flip(values, seed=2)


def test_a_drawn_p_is_never_zero_and_a_real_difference_is_found() -> None:
    assert sign_flip(draw(0, 300, shift=1.0)) == 1 / 10_001
    assert sign_flip([0.0, 0.0]) == sign_flip([0.3]) == 1.0


def test_where_nothing_differs_one_in_twenty_is_found() -> None:
    found = [sign_flip(draw(seed, 40), flips=400) <= 0.05 for seed in range(400)]
    assert stats.binomtest(sum(found), 400, 0.05).pvalue > 0.01


def test_records_are_what_counts_where_their_prompts_agree() -> None:
    """Ten prompts that say the same are one observation: counted as ten, they show what is not there."""
    tested = {"records": 0, "prompts": 0}
    for seed in range(200):
        first, second = (draw(2 * seed + i, 20, values=[0.0, 1.0]) for i in range(2))
        tested["records"] += sign_flip(first - second) <= 0.05
        tested["prompts"] += sign_flip((first - second).repeat(10)) <= 0.05
    assert tested["records"] <= 20 and tested["prompts"] >= 80


# -- interval ---------------------------------------------------------------------------------


def test_the_interval_is_that_of_a_naive_bootstrap_and_of_theory() -> None:
    values = draw(5, 200, shift=0.3)
    low, high = bootstrap_interval(values)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.01)
    half = 1.96 * values.std() / 200**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)
    assert (low, high) == bootstrap_interval(values)


def test_the_interval_covers_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval(draw(seed, 60, shift=0.4), resamples=500)
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_more_records_than_fit_at_once_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = draw(1, 30, shift=0.2)
    whole = bootstrap_interval(values), sign_flip(values)
    monkeypatch.setattr("wise.lab.eval.significance.CELLS", 7)
    assert bootstrap_interval(values) == whole[0]
    assert sign_flip(values) == pytest.approx(whole[1], abs=0.02)


# -- several tests ----------------------------------------------------------------------------


def naive_holm(ps: list[float]) -> list[float]:
    """The rejection rule turned round: the smallest level at which each is rejected."""
    return [min(1.0, max((len(ps) - sum(q < p for q in ps)) * p for p in ps if p <= own)) for own in ps]


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.3]) == [0.3] and holm([1.0, 1.0]) == [1.0, 1.0]
    for seed in range(20):
        ps = [round(float(p), 2) for p in np.random.default_rng(seed).uniform(0, 0.3, 9)]
        assert holm(ps) == pytest.approx(naive_holm(ps))
