"""Merging: k shard deltas `[k, d, f]` become the one delta `[d, f]` that is served.

A shard's delta is zero outside its own random mask, so most entries belong to one shard or to none. The methods differ
in how an entry with one owner comes out. `ties` (Yadav et al. 2023, arXiv 2306.01708) trims each shard and averages
only over the shards that agree, so such an entry passes unchanged. `linear` is the mean over all shards, which divides
every edit by their number.

The released code of WISE trims relative to all entries of W, so that a density above rho trims nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cmp_to_key

import torch
from torch import Tensor

from wise.errors import ConfigError, did_you_mean


def merge(deltas: Tensor, *, method: str, density: float = 1.0) -> Tensor:
    """One delta `[d, f]`, of the dtype and on the device of `deltas` `[k, d, f]`, which stay as they are.

    method: a name in `MERGES`.
    density: share of a shard's own (non-zero) entries that `ties` keeps.

    Half precision is computed in float32. The bits do not depend on the order of the shards. One shard (k = 1) at
    density 1 comes out as it went in.

    Raises ConfigError for an unknown method, a wrong shape or dtype, entries that are not finite, and a density out of
    range.
    """
    if method not in MERGES:
        raise ConfigError(f"merge={method!r} is not known: {did_you_mean(str(method), MERGES)}")
    _check_deltas(deltas)
    if type(density) not in (int, float) or not 0 < density <= 1:
        raise ConfigError(f"density={density!r}: expected a number in (0, 1]")
    exact = deltas.detach().to(torch.promote_types(deltas.dtype, torch.float32))
    return MERGES[method](list(exact), density).to(deltas.dtype)


def _linear(shards: list[Tensor], density: float) -> Tensor:
    return _sum(_in_order(shards), 1 / len(shards))


def _ties(shards: list[Tensor], density: float) -> Tensor:
    """Mean over the shards whose entry, after trimming, has the elected sign (TIES-Merging, algorithm 1).

    Elected is the sign of the sum over all shards; masses that cancel exactly elect none and give 0.
    """
    trimmed = _in_order([_trim(delta, density) for delta in shards])
    elected = _sum(trimmed, 1).sign_()
    agreeing = [torch.where(delta * elected > 0, delta, 0) for delta in trimmed]
    owners = torch.stack(agreeing).ne(0).sum(0)
    return _sum(agreeing, 1).div_(owners.clamp_(min=1))


def _trim(delta: Tensor, density: float) -> Tensor:
    """The `density` largest magnitudes among the non-zero entries (TIES-Merging, algorithm 1, step 1).

    At least one entry stays. Entries tied with the smallest that is kept stay too: dropping some of
    them would need an order among equals.
    """
    owned = delta[delta != 0].abs()
    keep = max(1, round(density * owned.numel()))
    if keep >= owned.numel():
        return delta
    smallest_kept = owned.topk(keep, sorted=False).values.min()
    return torch.where(delta.abs() >= smallest_kept, delta, 0)


def _sum(shards: list[Tensor], weight: float) -> Tensor:
    total = torch.zeros_like(shards[0])
    for delta in shards:
        total.add_(delta, alpha=weight)
    return total


def _in_order(shards: list[Tensor]) -> list[Tensor]:
    """In an order taken from their contents: a sum depends on the order of its terms, and an elected sign can turn on
    the last bit."""
    return sorted(shards, key=cmp_to_key(_compare))


def _compare(one: Tensor, other: Tensor) -> int:
    """Orders shards by the first entry in which they differ."""
    first = torch.ne(one, other).flatten().to(torch.uint8).argmax()
    a, b = one.flatten()[first], other.flatten()[first]
    return int(a > b) - int(a < b)


MERGES: dict[str, Callable[[list[Tensor], float], Tensor]] = {"linear": _linear, "ties": _ties}
"""Every merge by name: from shards and density to the merged delta."""


def _check_deltas(deltas: Tensor) -> None:
    if deltas.ndim != 3 or 0 in deltas.shape:
        raise ConfigError(f"deltas have shape {list(deltas.shape)}: expected [k, d, f] with k from 1")
    if not deltas.is_floating_point():
        raise ConfigError(f"deltas have dtype {deltas.dtype}: expected a floating-point dtype")
    broken = [shard for shard, delta in enumerate(deltas) if not bool(torch.isfinite(delta).all())]
    if broken:
        raise ConfigError(f"deltas of shards {broken} hold NaN or infinity: discard them, training diverged")
