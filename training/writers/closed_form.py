"""ROME's and MEMIT's writing, beside the weight instead of in it.

The value of an edit is searched for as ROME does (Meng et al. 2022, arXiv 2202.05262, eq. 4; `baselines/values.py`), at
the prompt's last token, behind each of the edit's contexts at once. Which activations it answers to is then solved for:

    rank-one    eq. 2 of that paper: k* is the mean activation over the contexts, and at k* exactly v* - W k* is added
    low-rank    MEMIT's ridge regression (Meng et al. 2023, arXiv 2210.07229, eq. 14), a neuron for each context

MEMIT solves for the edits of a batch together, since in one weight they would disturb each other. Here the router keeps
them apart, and a row that was solved for beside other edits would bear their traces after they were deleted: it is
solved for among the contexts of one edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from wise.memory.slot import RankOneSlot
from wise.training.baselines.ground import Ground
from wise.training.baselines.statistics import (
    MomentSettings,
    factored,
    prepared_moments,
    rank_one_direction,
    ridge_directions,
)
from wise.training.baselines.values import Contexts, ValueSettings, search
from wise.training.writers.forms import Start

RIDGE_WEIGHT = 1e-3
"""Of the second moment in the ridge regression: small, since a gate that is open is not to be half open."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClosedForm:
    """Solves for the neurons of edits, on one base and at one layer."""

    ground: Ground
    layer: int
    factor: Tensor
    """Of the second moment of the layer's inputs, `[f, f]` float64."""

    @classmethod
    def of(cls, ground: Ground, layer: int, *, seed: int) -> ClosedForm:
        """Measures the second moment on the base's own words. The base must be in place."""
        (moment,) = prepared_moments(ground, [layer], MomentSettings(seed=seed))
        return cls(ground=ground, layer=layer, factor=factored(moment))

    def start(
        self,
        rows: Sequence[Sequence[tuple[list[int], list[int]]]],
        activations: Sequence[Tensor],
        settings: ValueSettings,
        *,
        kind: str,
        rank: int,
    ) -> tuple[Start, list[int]]:
        """Neurons of each edit, and the steps that the search for its value took.

        rows: of each edit its contexts, the bare prompt first; activations: `[contexts, f]` at the prompts' last token.
        rank: most neurons of an edit. An edit at whose prompt's last token nothing is active gets none.
        """
        contexts = [
            Contexts(rows=tuple(own), places=tuple(len(prompt) - 1 for prompt, _ in own), essence=None) for own in rows
        ]
        path = self.ground.projection(self.layer).path
        found = search(self.ground, contexts, self.layer, path, settings)
        size = 1 if kind == RankOneSlot.kind else rank
        keys = self.factor.new_zeros(len(rows), size, len(self.factor))
        for i, own in enumerate(activations):
            solved = self._directions(own.double().to(keys.device), kind, size)
            keys[i, : len(solved)] = solved
        values = found.offset[:, None].expand(-1, size, -1) * (keys != 0).any(-1, keepdim=True)
        return Start(keys=keys.float(), values=values), found.steps

    def _directions(self, own: Tensor, kind: str, size: int) -> Tensor:
        if kind != RankOneSlot.kind:
            return ridge_directions(own[:size], self.factor, RIDGE_WEIGHT * own.shape[1])
        direction = rank_one_direction(own.mean(0), self.factor)
        return own.new_zeros(0, own.shape[1]) if direction is None else direction[None]
