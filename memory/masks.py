"""Random binary gradient masks: which entries of the value projection each shard may change.

WISE (arXiv 2405.14768, section 2.3.2) gives each of k shards its own random mask of ratio rho over
the entries of W and trains the shard through it. Two masks share a part rho^2 of the entries, k
masks a part rho^k; these anchors tie the shards together when they are merged.

Masks are made from the raw 64-bit stream of PCG64 seeded by (seed, shard). NumPy keeps that stream
the same for good, which neither it nor PyTorch promises for sampling functions; so a mask is a
function of its arguments alone: not of the device, the library's version or how many shards there are.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wise.errors import ConfigError


def random_masks(shape: tuple[int, int], *, shards: int, ratio: float, seed: int) -> Tensor:
    """Masks `[shards, d, f]` bool on the CPU, each with exactly `round(ratio * d * f)` ones.

    Mask i depends on `shape`, `ratio`, `seed` and i only: more shards leave the first ones as they are.
    """
    size = prod(shape)
    ones = round(ratio * size)
    masks = np.empty((shards, size), dtype=np.bool_)
    for shard in range(shards):
        masks[shard] = _random_subset(size, ones, np.random.SeedSequence([seed, shard]))
    return torch.from_numpy(masks.reshape(shards, *shape))


def _random_subset(size: int, ones: int, seed: np.random.SeedSequence) -> NDArray[np.bool_]:
    """A uniformly random subset of exactly `ones` of `size` entries: those with the smallest random keys.

    A key's leading 16 bits settle nearly all entries and cost an eighth of a full sort key in time and
    memory; 64 further bits are drawn only for the entries tied at the cut.
    """
    bits = np.random.PCG64(seed)
    words = bits.random_raw(-(-size // 4)).astype("<u8", copy=False)
    keys = words.view("<u2")[:size]
    cut = np.partition(keys, ones - 1)[ones - 1]
    subset: NDArray[np.bool_] = keys < cut
    tied = np.flatnonzero(keys == cut)
    order = np.argsort(bits.random_raw(tied.size), kind="stable")
    subset[tied[order[: ones - np.count_nonzero(subset)]]] = True
    return subset


def pack_bits(mask: Tensor) -> Tensor:
    """A bool mask of any shape as `[ceil(n / 8)]` uint8 on its device, the first entry in the highest bit."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy())).to(mask.device)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`: bool of shape `shape` on the device of `packed`.

    Raises ConfigError if `packed` is not what `pack_bits` makes of a mask of that shape.
    """
    if any(n < 1 for n in shape):
        raise ConfigError(f"shape={tuple(shape)!r}: expected whole numbers from 1")
    size = prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != (-(-size // 8),):
        raise ConfigError(
            f"packed mask is {packed.dtype} {list(packed.shape)}: "
            f"a mask of shape {list(shape)} packs into torch.uint8 [{-(-size // 8)}]"
        )
    bits = np.unpackbits(packed.detach().cpu().numpy())
    if bits[size:].any():
        raise ConfigError(f"packed mask has ones after its last entry: it was not packed from {list(shape)}")
    return torch.from_numpy(bits[:size].astype(np.bool_).reshape(shape)).to(packed.device)
