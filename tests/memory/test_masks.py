"""Masks: exact counts, independence, one fixed stream, and a lossless packed form."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wise.errors import ConfigError
from wise.memory.masks import pack_bits, random_masks, unpack_bits

SIDES = st.integers(1, 40)


@settings(max_examples=100)
@given(d=SIDES, f=SIDES, shards=st.integers(1, 4), ratio=st.floats(0.01, 1), seed=st.integers(0, 2**70))
def test_each_mask_has_its_exact_share_of_ones(d: int, f: int, shards: int, ratio: float, seed: int) -> None:
    ones = round(ratio * d * f)
    assume(ones)
    masks = random_masks((d, f), shards=shards, ratio=ratio, seed=seed)
    assert masks.dtype == torch.bool and masks.shape == (shards, d, f)
    assert masks.sum(dim=(1, 2)).tolist() == [ones] * shards


def test_more_shards_leave_the_first_masks_as_they_are() -> None:
    two = random_masks((37, 53), shards=2, ratio=0.2, seed=5)
    three = random_masks((37, 53), shards=3, ratio=0.2, seed=5)
    assert torch.equal(three[:2], two)
    assert not torch.equal(three[2], three[1])


def test_the_seed_decides() -> None:
    first = random_masks((37, 53), shards=1, ratio=0.2, seed=5)
    assert torch.equal(first, random_masks((37, 53), shards=1, ratio=0.2, seed=5))
    assert not torch.equal(first, random_masks((37, 53), shards=1, ratio=0.2, seed=6))
    # A seed and a shard are not interchangeable: memories of neighbouring seeds share no mask.
    assert not torch.equal(random_masks((37, 53), shards=2, ratio=0.2, seed=5)[1], first[0])


def test_the_stream_is_pinned() -> None:
    """Saved deltas assume these very masks: a change of numpy, torch or platform must not move them."""
    packed = pack_bits(random_masks((4, 8), shards=2, ratio=0.25, seed=7))
    assert packed.tolist() == [0, 10, 72, 58, 9, 85, 128, 2]
    # So many entries that several tie at the cut and the further bits decide.
    packed = pack_bits(random_masks((512, 1024), shards=2, ratio=0.2, seed=7))
    assert sha256(packed.numpy().tobytes()).hexdigest().startswith("e788e4cd25f87db1da61ce835976fdcc")


def test_positions_are_uniform_and_shards_independent() -> None:
    """Over many seeds each entry is chosen with probability rho, each pair of shards with rho squared."""
    trials, ratio = 2000, 0.25
    masks = torch.stack([random_masks((6, 6), shards=2, ratio=ratio, seed=s) for s in range(trials)]).float()
    chosen = masks.mean(dim=0)  # (2, 6, 6)
    anchors = (masks[:, 0] * masks[:, 1]).mean(dim=0)  # (6, 6)
    five_sigma = 5 * (ratio * (1 - ratio) / trials) ** 0.5
    assert (chosen - ratio).abs().max() < five_sigma
    assert (anchors - ratio**2).abs().max() < five_sigma
    # Negative control: two identical shards would share all their entries, far outside that bound.
    assert abs(float((masks[:, 0] * masks[:, 0]).mean()) - ratio**2) > five_sigma


def test_large_masks_share_rho_squared_of_the_entries() -> None:
    masks = random_masks((512, 1024), shards=2, ratio=0.2, seed=0)
    assert float((masks[0] & masks[1]).float().mean()) == pytest.approx(0.04, abs=0.002)


def test_ratio_one_takes_every_entry() -> None:
    assert random_masks((3, 5), shards=2, ratio=1, seed=0).all()


@settings(max_examples=50)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_packing_is_lossless(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8 and packed.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(packed, tuple(shape)), mask)


def test_a_packing_of_another_shape_is_refused() -> None:
    packed = pack_bits(torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(ConfigError, match="packs into"):
        unpack_bits(packed, (3, 6))
    with pytest.raises(ConfigError, match="after its last entry"):
        unpack_bits(packed, (3, 4))
    with pytest.raises(ConfigError, match="packs into"):
        unpack_bits(packed.int(), (3, 5))
    with pytest.raises(ConfigError, match="from 1"):
        unpack_bits(packed, (0, 5))
