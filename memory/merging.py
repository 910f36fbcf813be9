"""Merging: k shard deltas `[k, d, f]` become the one delta `[d, f]` that is served.

TIES-Merging (Yadav et al. 2023, arXiv 2306.01708, algorithm 1) averages an entry over the shards that agree on its
sign. A shard's delta is zero outside its own random mask, so most entries have one owner, and pass unchanged. Nothing
is trimmed: the released code of WISE trims relative to all entries of W, which at its density trims nothing either.
"""

from __future__ import annotations

from functools import cmp_to_key

import torch
from torch import Tensor

from wise.errors import ConfigError


def merge(deltas: Tensor) -> Tensor:
    """One delta `[d, f]`, of the dtype and on the device of `deltas` `[k, d, f]`, which stay as they are.

    Elected is the sign of the sum over all shards; masses that cancel exactly elect none and give 0. Half precision is
    computed in float32. The bits do not depend on the order of the shards.

    Raises ConfigError for deltas that are not finite.
    """
    if not bool(deltas.isfinite().all()):
        raise ConfigError("the weights of a shard are no finite numbers, since fitting diverged: lower learning_rate")
    exact = deltas.detach().to(torch.promote_types(deltas.dtype, torch.float32))
    # A sum depends on the order of its terms, and an elected sign can turn on the last bit.
    shards = sorted(exact, key=cmp_to_key(_compare))
    elected = _sum(shards).sign_()
    agreeing = [torch.where(delta * elected > 0, delta, 0) for delta in shards]
    owners = torch.stack(agreeing).ne(0).sum(0)
    return _sum(agreeing).div_(owners.clamp_(min=1)).to(deltas.dtype)


def _sum(shards: list[Tensor]) -> Tensor:
    total = torch.zeros_like(shards[0])
    for delta in shards:
        total.add_(delta)
    return total


def _compare(one: Tensor, other: Tensor) -> int:
    """Orders shards by the first entry in which they differ."""
    first = torch.ne(one, other).flatten().to(torch.uint8).argmax()
    a, b = one.flatten()[first], other.flatten()[first]
    return int(a > b) - int(a < b)
