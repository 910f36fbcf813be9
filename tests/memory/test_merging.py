"""Merging: each method against a plain loop over entries written from its definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wise.errors import ConfigError
from wise.memory.masks import random_masks
from wise.memory.merging import MERGES, merge

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


def naive_linear(rows: list[Values]) -> Values:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def naive_disjoint(rows: list[Values]) -> Values:
    merged = []
    for column in zip(*rows, strict=True):
        mass = math.fsum(column)
        agreeing = [v for v in column if v * mass > 0]
        merged.append(math.fsum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


def naive(deltas: Tensor, method: str, density: float) -> Tensor:
    rows = deltas.double().flatten(1).tolist()
    merged = naive_linear(rows) if method == "linear" else naive_disjoint([naive_trim(row, density) for row in rows])
    return torch.tensor(merged, dtype=torch.float64).reshape(deltas.shape[1:])


@pytest.mark.parametrize("method", MERGES)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    shards=st.integers(1, 4),
    density=st.sampled_from([0.05, 0.3, 0.53, 1.0]),
)
def test_each_method_does_what_its_definition_says(method: str, seed: int, shards: int, density: float) -> None:
    deltas = deltas_of(seed, shards)
    merged = merge(deltas, method=method, density=density)
    torch.testing.assert_close(merged.double(), naive(deltas, method, density), rtol=1e-5, atol=1e-6)


def test_an_entry_with_one_owner_passes_unattenuated() -> None:
    deltas = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0))
    owner = torch.arange(54).reshape(6, 9) % 3
    deltas = deltas * (owner == torch.arange(3)[:, None, None])
    assert torch.equal(merge(deltas, method="ties"), deltas.sum(dim=0))
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
    assert merge(deltas, method="linear", density=0.5)[0].tolist() == [1.0, -4.0, 3.0, 2.0]


def test_equal_magnitudes_at_the_cut_all_stay() -> None:
    deltas = torch.tensor([[[2.0, -1.0, 1.0, 0.5]]])
    assert merge(deltas, method="ties", density=0.5).tolist() == [[2.0, -1.0, 1.0, 0.0]]


@pytest.mark.parametrize("method", MERGES)
def test_the_order_of_shards_does_not_matter(method: str) -> None:
    deltas = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    deltas[3] = -(deltas[0] + deltas[1] + deltas[2])  # masses cancel up to rounding: the order would decide
    expected = merge(deltas, method=method, density=0.9)
    for order in itertools.permutations(range(4)):
        assert torch.equal(merge(deltas[list(order)], method=method, density=0.9), expected)


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
    deltas = 4 * torch.tensor([-1.0, 2**-9, 2**-9, 0.0]).bfloat16().reshape(4, 1, 1)
    merged = merge(deltas, method="linear")
    assert merged.dtype == torch.bfloat16 and merged.item() == 2**-8 - 1
    assert (deltas[0] + deltas[1] + deltas[2]).item() / 4 == -1


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
    with pytest.raises(ConfigError, match="did you mean 'ties'"):
        merge(good, method="tie")
