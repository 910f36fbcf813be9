"""Merging, against a plain loop over entries written from its definition."""

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
from wise.memory.merging import merge


def deltas_of(seed: int, shards: int, shape: tuple[int, int] = (5, 7), ratio: float = 0.5) -> Tensor:
    """Random deltas, zero outside random masks; coarse values, so that masses cancel."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(shards, *shape, generator=generator) * 4).round() / 4
    return values * random_masks(shape, shards=shards, ratio=ratio, seed=seed)


def naive(deltas: Tensor) -> Tensor:
    merged = []
    for column in zip(*deltas.double().flatten(1).tolist(), strict=True):
        mass = math.fsum(column)
        agreeing = [v for v in column if v * mass > 0]
        merged.append(math.fsum(agreeing) / len(agreeing) if agreeing else 0.0)
    return torch.tensor(merged, dtype=torch.float64).reshape(deltas.shape[1:])


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), shards=st.integers(1, 4))
def test_it_does_what_its_definition_says(seed: int, shards: int) -> None:
    deltas = deltas_of(seed, shards)
    before = deltas.clone()
    torch.testing.assert_close(merge(deltas).double(), naive(deltas), rtol=1e-5, atol=1e-6)
    assert torch.equal(deltas, before)


def test_an_entry_with_one_owner_passes_unattenuated() -> None:
    deltas = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0))
    owner = torch.arange(54).reshape(6, 9) % 3
    deltas = deltas * (owner == torch.arange(3)[:, None, None])
    assert torch.equal(merge(deltas), deltas.sum(dim=0))
    assert not torch.allclose(merge(deltas), deltas.mean(dim=0)), "the mean over shards divides it by their number"


def test_conflicting_signs_are_elected_not_averaged() -> None:
    deltas = torch.tensor([[[3.0, 1.0, 2.0]], [[-1.0, 1.0, -2.0]]])
    assert merge(deltas).tolist() == [[3.0, 1.0, 0.0]]


def test_the_order_of_shards_does_not_matter() -> None:
    deltas = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    deltas[3] = -(deltas[0] + deltas[1] + deltas[2])  # masses cancel up to rounding: the order would decide
    expected = merge(deltas)
    for order in itertools.permutations(range(4)):
        assert torch.equal(merge(deltas[list(order)]), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_shard_comes_out_bit_for_bit_as_a_copy(dtype: torch.dtype) -> None:
    deltas = deltas_of(2, 1).to(dtype) / 3
    merged = merge(deltas)
    assert merged.dtype == dtype and torch.equal(merged, deltas[0])
    assert merged.data_ptr() != deltas.data_ptr()


def test_half_precision_is_computed_in_float32() -> None:
    """1 + 2^-8 is no bfloat16: adding up in bfloat16 would lose both small shards."""
    deltas = torch.tensor([1.0, 2**-8, 2**-8]).bfloat16().reshape(3, 1, 1)
    assert (deltas[0] + deltas[1] + deltas[2]).item() == 1
    merged = merge(deltas)
    assert merged.dtype == torch.bfloat16
    assert merged.item() == torch.tensor((1 + 2**-7) / 3).bfloat16().item() != torch.tensor(1 / 3).bfloat16().item()


def test_shards_that_diverged_are_refused() -> None:
    good = deltas_of(0, 2)
    with pytest.raises(ConfigError, match="diverged"):
        merge(torch.stack([good[0], good[1] / 0]))
