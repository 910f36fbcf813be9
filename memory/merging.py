"""Merging: k shard deltas `[k, d, f]` become the one delta `[d, f]` that is served.

A shard's delta is zero outside its own random mask, so most entries belong to one shard or to none.
How an entry with a single owner comes out is what tells the methods apart: the disjoint mean (`ties`,
`sign`) averages only over shards that have something to say and hands it through unchanged, while
`linear` scales it by its lambda, 1/k by default: every edit is diluted by the number of shards.

Each method is a way to thin out every shard, then a way to combine what is left:

    linear      -               weighted sum
    slerp       -               along the arc between two deltas
    sign        -               disjoint mean
    ties        trim            disjoint mean     (Yadav et al. 2023, arXiv 2306.01708)
    magnitude   trim            weighted sum
    dare        drop, rescale   weighted sum      (Yu et al. 2023, arXiv 2311.03099)
    dare_ties   drop, rescale   disjoint mean

The released code of WISE differs where that departs from the papers or from ownership: it trims
relative to all entries of W, so that a density above rho trims nothing; its dare_ties takes a weighted
sum of the agreeing entries; its dare does not rescale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cmp_to_key

import torch
from torch import Generator, Tensor

from wise.errors import ConfigError, did_you_mean

Shard = tuple[float, Tensor]
"""A shard's weight lambda and its delta `[d, f]`."""
Thin = Callable[[Tensor, float, Generator], Tensor]
Combine = Callable[[list[Shard]], Tensor]

# Beyond this cosine two deltas have no arc worth following: its formula divides by a vanishing sine.
_PARALLEL = 0.9995


def merge(
    deltas: Tensor,
    *,
    method: str,
    density: float = 1.0,
    seed: int = 0,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """One delta `[d, f]`, of the dtype and on the device of `deltas` `[k, d, f]`, which stay as they are.

    method: a name in `MERGES`.
    density: share of a shard's own (non-zero) entries that `ties` and `magnitude` keep, or the
        probability that `dare` and `dare_ties` keep one; the other methods thin nothing and ignore it.
    seed: decides which entries the dare methods drop.
    weights: lambda of each shard, positive; None is 1/k each. The disjoint mean divides by their sum,
        so there only their proportions count.

    Half precision is computed in float32. All methods but slerp and the dare pair give the same bits
    in whatever order the shards come. One shard (k = 1) at density 1 comes out as it went in.

    Raises ConfigError for an unknown method, a wrong shape or dtype, entries that are not finite, and
    a density, seed or weights out of range.
    """
    if method not in MERGES:
        raise ConfigError(f"merge={method!r} is not known: {did_you_mean(str(method), MERGES)}")
    _check_deltas(deltas)
    if type(density) not in (int, float) or not 0 < density <= 1:
        raise ConfigError(f"density={density!r}: expected a number in (0, 1]")
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"seed={seed!r}: expected a whole number from 0")
    lambdas = _lambdas(weights, len(deltas))
    thin, combine = MERGES[method]
    generator = Generator().manual_seed(seed)
    exact = deltas.detach().to(torch.promote_types(deltas.dtype, torch.float32))
    shards = [(w, thin(delta, density, generator)) for w, delta in zip(lambdas, exact, strict=True)]
    return combine(shards).to(deltas.dtype)


def _keep_all(delta: Tensor, density: float, generator: Generator) -> Tensor:
    return delta


def _trim(delta: Tensor, density: float, generator: Generator) -> Tensor:
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


def _drop(delta: Tensor, density: float, generator: Generator) -> Tensor:
    """Each entry kept with probability `density` and divided by it, so its expectation stays (DARE)."""
    kept = torch.rand(delta.shape, generator=generator) < density  # drawn on the CPU: the same on any device
    return torch.where(kept.to(delta.device), delta / density, 0)


def _weighted_sum(shards: list[Shard]) -> Tensor:
    """sum_i lambda_i delta_i (task arithmetic; with lambda = 1/k the plain mean)."""
    total = torch.zeros_like(shards[0][1])
    for weight, delta in sorted(shards, key=_canonical):
        total.add_(delta, alpha=weight)
    return total


def _disjoint_mean(shards: list[Shard]) -> Tensor:
    """Mean over the shards whose entry has the elected sign (TIES-Merging, algorithm 1, steps 2 and 3).

    Elected is the sign of sum_i lambda_i delta_i; masses that cancel exactly elect none and give 0.
    """
    # Relative to the largest, so that equal weights are exactly 1 and a single owner passes bit for bit.
    largest = max(weight for weight, _ in shards)
    shards = sorted(((weight / largest, delta) for weight, delta in shards), key=_canonical)
    elected = _weighted_sum(shards).sign_()
    total, mass = torch.zeros_like(elected), torch.zeros_like(elected)
    for weight, delta in shards:
        agrees = delta * elected > 0
        total.add_(torch.where(agrees, delta, 0), alpha=weight)
        mass.add_(agrees.to(mass.dtype), alpha=weight)
    return total.div_(mass.masked_fill_(mass == 0, 1))


def _slerp(shards: list[Shard]) -> Tensor:
    """Spherical linear interpolation (Shoemake 1985), folded over the shards in the order given.

    Each step goes the new shard's share of the weight so far along the arc; two equal shards meet half way.
    """
    reached, merged = shards[0][0], shards[0][1].clone()
    for weight, delta in shards[1:]:
        reached += weight
        merged = _along_arc(merged, delta, weight / reached)
    return merged


def _along_arc(start: Tensor, end: Tensor, part: float) -> Tensor:
    """sin((1-t) w)/sin(w) start + sin(t w)/sin(w) end for the angle w between the flattened deltas.

    Where that is undefined (a zero delta) or unstable (nearly parallel): (1-t) start + t end.
    """
    norms = [float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (start, end)]
    share_start, share_end = 1 - part, part
    if min(norms) > 0:
        cosine = float((start / norms[0]).mul_(end / norms[1]).sum(dtype=torch.float64))
        if abs(cosine) < _PARALLEL:
            angle = math.acos(cosine)
            share_start = math.sin((1 - part) * angle) / math.sin(angle)
            share_end = math.sin(part * angle) / math.sin(angle)
    return share_start * start + share_end * end


def _compare(one: Shard, other: Shard) -> int:
    """Orders shards by weight, then by the first entry in which they differ."""
    if one[0] != other[0]:
        return -1 if one[0] < other[0] else 1
    first = torch.ne(one[1], other[1]).flatten().to(torch.uint8).argmax()
    a, b = one[1].flatten()[first], other[1].flatten()[first]
    return int(a > b) - int(a < b)


# Floating-point sums depend on the order of their terms, and an elected sign can turn on the last bit:
# adding up in an order taken from the shards' contents makes a merge the same for any order they come in.
_canonical = cmp_to_key(_compare)

MERGES: dict[str, tuple[Thin, Combine]] = {
    "dare": (_drop, _weighted_sum),
    "dare_ties": (_drop, _disjoint_mean),
    "linear": (_keep_all, _weighted_sum),
    "magnitude": (_trim, _weighted_sum),
    "sign": (_keep_all, _disjoint_mean),
    "slerp": (_keep_all, _slerp),
    "ties": (_trim, _disjoint_mean),
}
"""Every merge by name: how it thins a shard, and how it combines the shards."""


def _check_deltas(deltas: Tensor) -> None:
    if deltas.ndim != 3 or 0 in deltas.shape:
        raise ConfigError(f"deltas have shape {list(deltas.shape)}: expected [k, d, f] with k from 1")
    if not deltas.is_floating_point():
        raise ConfigError(f"deltas have dtype {deltas.dtype}: expected a floating-point dtype")
    broken = [shard for shard, delta in enumerate(deltas) if not bool(torch.isfinite(delta).all())]
    if broken:
        raise ConfigError(f"deltas of shards {broken} hold NaN or infinity: discard them, training diverged")


def _lambdas(weights: Sequence[float] | None, shards: int) -> list[float]:
    if weights is None:
        return [1 / shards] * shards
    lambdas = [float(weight) for weight in weights]
    if len(lambdas) != shards or not all(0 < weight < math.inf for weight in lambdas):
        raise ConfigError(f"weights={lambdas}: expected {shards} positive numbers, one per shard")
    return lambdas
