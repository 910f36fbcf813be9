"""Merging: each method against a plain loop over entries written from its definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wise.errors import ConfigError
from wise.memory.masks import random_masks
from wise.memory.merging import MERGES, merge

SYMMETRIC = ("linear", "magnitude", "sign", "ties")
DISJOINT = ("dare_ties", "sign", "ties")
DROPPING = ("dare", "dare_ties")
Values = list[float]


def deltas_of(seed: int, shards: int, shape: tuple[int, int] = (5, 7), ratio: float = 0.5) -> Tensor:
    """Random deltas, zero outside random masks; coarse values, so that magnitudes tie and masses cancel."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(shards, *shape, generator=generator) * 4).round() / 4
    return values * random_masks(shape, shards=shards, ratio=ratio, seed=seed)


def naive_trim(values: Values, density: float) -> Values:
    magnitudes = sorted((abs(v) for v in values if v != 0), reverse=True)
    if not magnitudes:
        return values
    smallest = magnitudes[max(1, round(density * len(magnitudes))) - 1]
    return [v if abs(v) >= smallest else 0.0 for v in values]


def naive_linear(rows: list[Values], weights: Values) -> Values:
    columns = zip(*rows, strict=True)
    return [math.fsum(w * v for w, v in zip(weights, column, strict=True)) for column in columns]


def naive_disjoint(rows: list[Values], weights: Values) -> Values:
    merged = []
    for column in zip(*rows, strict=True):
        mass = math.fsum(w * v for w, v in zip(weights, column, strict=True))
        agreeing = [(w, v) for w, v in zip(weights, column, strict=True) if v * mass > 0]
        total = math.fsum(w * v for w, v in agreeing)
        merged.append(total / math.fsum(w for w, _ in agreeing) if agreeing else 0.0)
    return merged


def naive_slerp(rows: list[Values], weights: Values) -> Values:
    merged, reached = rows[0], weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        reached += weight
        part = weight / reached
        norms = math.hypot(*merged) * math.hypot(*row)
        cosine = math.fsum(a * b for a, b in zip(merged, row, strict=True)) / norms if norms else 1.0
        shares: tuple[float, ...] = (1 - part, part)
        if abs(cosine) < 0.9995:
            angle = math.acos(cosine)
            shares = tuple(math.sin(share * angle) / math.sin(angle) for share in (1 - part, part))
        merged = [shares[0] * a + shares[1] * b for a, b in zip(merged, row, strict=True)]
    return merged


def naive(deltas: Tensor, method: str, density: float, weights: Sequence[float] | None) -> Tensor:
    rows = deltas.double().flatten(1).tolist()
    equal = 1.0 if method in DISJOINT else 1 / len(rows)
    lambdas = list(weights) if weights is not None else [equal] * len(rows)
    if method in ("ties", "magnitude"):
        rows = [naive_trim(row, density) for row in rows]
    combine = {"slerp": naive_slerp}.get(method, naive_disjoint if method in DISJOINT else naive_linear)
    return torch.tensor(combine(rows, lambdas), dtype=torch.float64).reshape(deltas.shape[1:])


@pytest.mark.parametrize("method", [m for m in MERGES if m not in DROPPING])
@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    shards=st.integers(1, 4),
    density=st.sampled_from([0.05, 0.3, 0.53, 1.0]),
    weights=st.sampled_from([None, (0.5, 0.25, 0.75, 1.5)]),
)
def test_each_method_does_what_its_definition_says(
    method: str, seed: int, shards: int, density: float, weights: tuple[float, ...] | None
) -> None:
    deltas = deltas_of(seed, shards)
    lambdas = weights[:shards] if weights else None
    merged = merge(deltas, method=method, density=density, weights=lambdas)
    torch.testing.assert_close(merged.double(), naive(deltas, method, density, lambdas), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", DROPPING)
def test_dare_is_its_combination_of_dropped_and_rescaled_shards(method: str) -> None:
    """With disjoint masks every survivor is seen on its own: it is 1/density times what was dropped from."""
    deltas = torch.zeros(2, 40, 50)
    deltas[0, :, :25], deltas[1, :, 25:] = 3.0, -2.0
    merged = merge(deltas, method=method, density=0.4, seed=1)
    share = 1.0 if method == "dare_ties" else 0.5
    full = deltas.sum(dim=0) * share / 0.4
    survived = merged != 0
    torch.testing.assert_close(merged[survived], full[survived])
    assert float(survived.float().mean()) == pytest.approx(0.4, abs=0.05)


def test_dare_keeps_the_expectation() -> None:
    deltas = deltas_of(3, 2)
    mean = torch.stack([merge(deltas, method="dare", density=0.5, seed=s) for s in range(2000)]).mean(dim=0)
    linear = merge(deltas, method="linear")
    # A kept entry is doubled, so one draw has standard deviation |delta| / 2 per shard.
    five_sigma = 5 * (deltas / 2).square().sum(dim=0).sqrt() / 2000**0.5 + 1e-5
    assert ((mean - linear).abs() <= five_sigma).all()
    trimmed = merge(deltas, method="magnitude", density=0.5)
    assert ((trimmed - linear).abs() > five_sigma).any()


@pytest.mark.parametrize("method", DROPPING)
def test_dare_is_drawn_from_the_seed_alone(method: str) -> None:
    deltas = deltas_of(4, 2)
    state = torch.random.get_rng_state()
    first = merge(deltas, method=method, density=0.5, seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, merge(deltas, method=method, density=0.5, seed=1))
    assert not torch.equal(first, merge(deltas, method=method, density=0.5, seed=2))
    torch.random.set_rng_state(state)
    merge(deltas, method=method, density=0.5, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", ["sign", "ties"])
def test_an_entry_with_one_owner_passes_unattenuated(method: str) -> None:
    deltas = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0))
    owner = torch.arange(54).reshape(6, 9) % 3
    deltas = deltas * (owner == torch.arange(3)[:, None, None])
    assert torch.equal(merge(deltas, method=method), deltas.sum(dim=0))
    # Negative control: the mean over shards divides it by their number.
    torch.testing.assert_close(merge(deltas, method="linear"), deltas.sum(dim=0) / 3)


def test_conflicting_signs_are_elected_not_averaged() -> None:
    deltas = torch.tensor([[[3.0, 1.0, 2.0]], [[-1.0, 1.0, -2.0]]])
    assert merge(deltas, method="ties").tolist() == [[3.0, 1.0, 0.0]]
    assert merge(deltas, method="linear").tolist() == [[1.0, 1.0, 0.0]]


def test_trimming_counts_only_the_entries_a_shard_owns() -> None:
    """Half of the 4 owned entries is 2, though 4 is already under half of all 16."""
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 0] = torch.tensor([1.0, -4.0, 3.0, 2.0])
    assert merge(deltas, method="ties", density=0.5)[0].tolist() == [0.0, -4.0, 3.0, 0.0]
    assert merge(deltas, method="sign", density=0.5)[0].tolist() == [1.0, -4.0, 3.0, 2.0]


def test_equal_magnitudes_at_the_cut_all_stay() -> None:
    deltas = torch.tensor([[[2.0, -1.0, 1.0, 0.5]]])
    assert merge(deltas, method="ties", density=0.5).tolist() == [[2.0, -1.0, 1.0, 0.0]]


@pytest.mark.parametrize("method", SYMMETRIC)
@pytest.mark.parametrize("weights", [None, (0.2, 0.7, 0.7, 0.4)])
def test_the_order_of_shards_does_not_matter(method: str, weights: tuple[float, ...] | None) -> None:
    deltas = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    deltas[3] = -(deltas[0] + deltas[1] + deltas[2])  # masses cancel up to rounding: the order would decide
    expected = merge(deltas, method=method, density=0.9, weights=weights)
    for order in itertools.permutations(range(4)):
        permuted = [weights[i] for i in order] if weights else None
        assert torch.equal(merge(deltas[list(order)], method=method, density=0.9, weights=permuted), expected)


def test_the_order_of_shards_matters_to_slerp() -> None:
    deltas = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(merge(deltas, method="slerp"), merge(deltas.flip(0), method="slerp"))


def test_slerp_goes_round_where_linear_cuts_across() -> None:
    deltas = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert float(merge(deltas, method="slerp").norm()) == pytest.approx(1)
    assert float(merge(deltas, method="linear").norm()) == pytest.approx(math.sqrt(0.5))


def test_slerp_follows_a_short_arc_too() -> None:
    deltas = torch.tensor([[[1.0, 2.0]], [[1.0, 3.0]]])  # cosine 0.99
    merged = merge(deltas, method="slerp").double()
    torch.testing.assert_close(merged, naive(deltas, "slerp", 1.0, None), rtol=0, atol=1e-6)
    assert (merged - merge(deltas, method="linear")).abs().max() > 1e-3


@pytest.mark.parametrize("second", [(0.0, 0.0), (2.0, 4.0), (-1.0, -2.0), (1.0, 2.0001)])
def test_slerp_is_linear_where_there_is_no_arc(second: tuple[float, float]) -> None:
    deltas = torch.tensor([[[1.0, 2.0]], [list(second)]])
    assert torch.equal(merge(deltas, method="slerp"), merge(deltas, method="linear"))


@pytest.mark.parametrize("method", sorted(MERGES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_shard_comes_out_bit_for_bit_as_a_copy(method: str, dtype: torch.dtype) -> None:
    deltas = deltas_of(2, 1).to(dtype) / 3
    merged = merge(deltas, method=method)
    assert merged.dtype == dtype and torch.equal(merged, deltas[0])
    assert merged.data_ptr() != deltas.data_ptr()


@pytest.mark.parametrize("method", sorted(MERGES))
def test_inputs_stay_as_they_are(method: str) -> None:
    deltas = deltas_of(6, 3)
    before = deltas.clone()
    merge(deltas, method=method, density=0.5)
    assert torch.equal(deltas, before)


def test_half_precision_is_computed_in_float32() -> None:
    """2^-9 - 1 is no bfloat16: adding up in bfloat16 would lose the small shard twice."""
    deltas = torch.tensor([-1.0, 2**-9, 2**-9]).bfloat16().reshape(3, 1, 1)
    merged = merge(deltas, method="linear", weights=[1, 1, 1])
    assert merged.dtype == torch.bfloat16 and merged.item() == 2**-8 - 1
    assert (deltas[0] + deltas[1] + deltas[2]).item() == -1


def test_bad_input_is_named() -> None:
    good = deltas_of(0, 2)
    for broken, message in [
        (good[0], r"shape \[5, 7\]"),
        (good[:0], r"shape \[0, 5, 7\]"),
        (good.int(), "dtype torch.int32"),
        (torch.stack([good[0], good[1] / 0]), r"shards \[1\] hold NaN or infinity"),
    ]:
        with pytest.raises(ConfigError, match=message):
            merge(broken, method="ties")
    for density in (0.0, 1.1, -1.0, math.nan, True):
        with pytest.raises(ConfigError, match="density="):
            merge(good, method="ties", density=density)
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.inf], [1.0, math.nan]):
        with pytest.raises(ConfigError, match="weights="):
            merge(good, method="linear", weights=weights)
    with pytest.raises(ConfigError, match="seed=-1"):
        merge(good, method="dare", seed=-1)
    with pytest.raises(ConfigError, match="did you mean 'ties'"):
        merge(good, method="tie")
