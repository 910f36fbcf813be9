"""MEMIT: many facts at once, each by small changes to several value projections.

Meng, Sen Sharma, Andonian, Belinkov, Bau 2023, "Mass-Editing Memory in a Transformer", arXiv 2210.07229. Every edit's
hidden state z at the last of the blocks is searched for (eq. 16); block by block, what is still missing is divided by
the blocks to come (eq. 20) and written by the least squares of eq. 14, with C0 = lambda E[k k^T] (eq. 15):

    Delta = R K^T (lambda E[k k^T] + K K^T)^-1

It departs from the paper in giving lambda in units of the number of inputs, so that it weighs alike on every base (the
authors take 15,000 for 16,384 inputs in GPT-J), and in a small ridge on C. One call with many edits is the paper's mass
edit; calls one after the other edit sequentially. Where a block norms what its feed-forward layer puts out (Gemma 2 and
3), the change reaches the block's output scaled, and less of what is missing is made up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wise.lab.editors.multi_layer import MultiLayerEditor, MultiLayerSettings
from wise.lab.editors.settings import Positive
from wise.lab.editors.statistics import factored, prepared_moments


@dataclass(frozen=True, kw_only=True)
class MemitSettings(MultiLayerSettings):
    search = {
        "window": ((0.0, 0.35), (0.0, 0.5), (0.2, 0.5)),
        "moment_weight": (0.1, 0.3, 1.0),
        "learning_rate": (0.1, 0.3, 0.5),
        "clamp": (0.75, 1.5, 3.0),
    }

    moment_weight: Positive = 1.0
    """Lambda, in units of the number of inputs of the projection."""


class Memit(MultiLayerEditor[MemitSettings]):
    Config = MemitSettings

    def _prepare(self) -> None:
        super()._prepare()
        self.factors = [factored(moment) for moment in prepared_moments(self.context, self.layers, self.settings)]
        """Cholesky factors of C at each block."""

    def _change(self, place: int, keys: Tensor, residual: Tensor) -> Tensor:
        # Solved is a system as large as there are keys: with A = (lambda C)^-1, R (1 + K^T A K)^-1 K^T A is Delta.
        towards = torch.cholesky_solve(keys.T, self.factors[place]) / (self.settings.moment_weight * keys.shape[1])
        among = torch.eye(len(keys), dtype=keys.dtype, device=keys.device) + keys @ towards
        change: Tensor = residual.T @ torch.linalg.solve(among, towards.T)
        return change
