"""Confidence intervals of the routing figures: of shares, and of figures by resampling.

Prompts are rarely independent: the paraphrases of one edit are routed alike. So what is resampled is clusters,
say all prompts of one record, or all tokens of one text. All intervals are two-sided, of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from wise.lab.eval.roc import WEIGHTED, Sides

Interval = tuple[float, float]
RESAMPLES = 1000
FEW = 5
"""Clusters with a hit under which a bootstrap over clusters says little."""
_Z = 1.959963984540054
_TAILS = torch.tensor([0.025, 0.975], dtype=torch.float64)
_AT_ONCE = 2**20
"""Weights that are held at once while resampling."""


def wilson(hits: int, count: int) -> Interval:
    """The score interval of a share of independent trials (Wilson 1927); it stays in [0, 1] and has width at 0 hits."""
    return _wilson(hits / count, count)


def _wilson(share: float, trials: float) -> Interval:
    spread = _Z**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return (0.0 if share == 0 else max(0.0, middle - half), 1.0 if share == 1 else min(1.0, middle + half))


def share_interval(
    hits: Tensor, clusters: Sequence[Hashable] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The interval of the share of true entries of `hits` `[n]` bool.

    Wilson's; with clusters of more than one entry, widened to the percentiles of a bootstrap over clusters. Where so
    few clusters hold a hit (or a miss) that resampling them says little, Wilson's counts as many trials fewer as hits
    come together in a cluster. Where there is no hit at all, hits are taken to come one by one.
    """
    low, high = wilson(int(hits.sum()), hits.numel())
    groups = _groups(hits.numel(), clusters)
    count = int(groups.max()) + 1
    if count == hits.numel():
        return low, high
    size = torch.bincount(groups, minlength=count).double()
    hit = torch.bincount(groups, weights=hits.flatten().cpu().double(), minlength=count)
    generator = torch.Generator().manual_seed(seed)
    shares = torch.cat([(w @ hit) / (w @ size) for w in _resampled(count, count, resamples, generator)])
    below, above = torch.quantile(shares, _TAILS).tolist()
    low, high = min(low, below), max(high, above)
    for entry in (hit, size - hit) if 0 < hit.sum() < size.sum() else ():
        clusters_with = int((entry > 0).sum())
        if 0 < clusters_with < FEW:
            together = float(entry.sum()) / clusters_with
            below, above = _wilson(float(hit.sum() / size.sum()), hits.numel() / together)
            low, high = min(low, below), max(high, above)
    return low, high


def bootstrap(
    positive: Tensor,
    negative: Tensor,
    *,
    positive_clusters: Sequence[Hashable] | None = None,
    negative_clusters: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """The interval of each of `wise.lab.eval.roc.FIGURES`: percentiles over resamples (Efron 1979).

    Positives and negatives are resampled apart, each as many clusters as it has, with replacement (Field & Welsh
    2007); left out, every score is a cluster of its own. Scores are sorted once: a resample is a weight for each.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = Sides.of(positive.cpu(), negative.cpu())
    groups = (
        _groups(positive.numel(), positive_clusters)[sides.positive_order],
        _groups(negative.numel(), negative_clusters)[sides.negative_order],
    )
    counts = [int(group.max()) + 1 for group in groups]
    drawn = [_resampled(count, max(positive.numel(), negative.numel()), resamples, generator) for count in counts]
    results: dict[str, list[Tensor]] = {name: [] for name in WEIGHTED}
    for hits, false in zip(*drawn, strict=True):
        curve = sides.curve(hits[:, groups[0]], false[:, groups[1]])
        for name, figure in WEIGHTED.items():
            results[name].append(figure(curve))
    intervals = {name: torch.quantile(torch.cat(values), _TAILS).tolist() for name, values in results.items()}
    return {name: (low, high) for name, (low, high) in intervals.items()}


def _groups(count: int, clusters: Sequence[Hashable] | None) -> Tensor:
    """`[count]` the number of each entry's cluster, counted from 0 in the order in which clusters come up."""
    if clusters is None:
        return torch.arange(count)
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in clusters])


def _resampled(clusters: int, width: int, resamples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Weights `[part, clusters]` float64 of all resamples: how often each cluster was drawn of as many draws."""
    part = max(1, _AT_ONCE // max(width, clusters))
    for start in range(0, resamples, part):
        rows = min(part, resamples - start)
        draws = torch.randint(clusters, (rows, clusters), generator=generator)
        yield torch.zeros(rows, clusters, dtype=torch.float64).scatter_add_(
            1, draws, torch.ones(1, 1, dtype=torch.float64).expand(rows, clusters)
        )
