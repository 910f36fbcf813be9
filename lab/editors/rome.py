"""ROME: one fact is written by a rank-one update of one value projection.

Meng, Bau, Andonian, Belinkov 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262. The key k* is
the mean input of the projection at the subject's last token over sampled contexts (eq. 3), the value v* is searched for
(eq. 4, `values.py`), and the update is the least that maps one to the other, measured by what it does to the base's
usual inputs (eq. 2):

    W_hat = W + (v* - W k*) (C^-1 k*)^T / ((C^-1 k*)^T k*)

It departs from the authors' code, and keeps to the paper, in using the mean key throughout; the code divides by the key
of the bare prompt in one place, which was found to make models collapse (Gupta, Baskaran, Anumanchipalli 2024, arXiv
2403.07175). C gets a small ridge. Of an edit its two vectors are kept, so a base in 16 bits is rounded once and not at
every edit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wise.edits import Edit
from wise.errors import EditError
from wise.lab.editors.base import Applied
from wise.lab.editors.context import EditingContext, as_weight, target_losses
from wise.lab.editors.settings import Depth, LayerSettings, Positive
from wise.lab.editors.statistics import MomentSettings, factored, prepared_moments
from wise.lab.editors.values import SubjectEditor, ValueSettings, contexts_of, read, search


@dataclass(frozen=True, kw_only=True)
class RomeSettings(MomentSettings, ValueSettings, LayerSettings):
    search = {
        "layer_fraction": (0.0, 0.2, 0.35, 0.5),
        "learning_rate": (0.1, 0.3, 0.5),
        "clamp": (4.0, 8.0, 16.0),
        "essence_weight": (0.0625, 0.5),
    }

    layer_fraction: Depth = 0.2
    """The authors take block 5 of 28 in GPT-J and 17 of 48 in GPT-2 XL."""
    learning_rate: Positive = 0.5
    """Per step and coordinate, in units of the root mean square of the projection's output."""
    clamp: Positive = 8.0
    """The offset's norm at most, in norms of the projection's output, which is short beside the hidden state."""


class Rome(SubjectEditor[RomeSettings]):
    Config = RomeSettings

    def __init__(self, context: EditingContext, settings: RomeSettings) -> None:
        self.projection = context.chosen(settings)
        self.name = f"{self.projection.path}.weight"
        super().__init__(context, settings, [self.name])
        self.factor: Tensor
        device, f, d = context.device, self.projection.in_features, self.projection.out_features
        self.left = torch.zeros(0, f, device=device)
        """`[edits, f]`, float32: C^-1 k* over its product with k*."""
        self.right = torch.zeros(0, d, device=device)
        """`[edits, d]`, float32: v* - W k*."""
        self.change = torch.zeros(d, f, device=device)
        """`[d, f]`, float32: the sum of their products."""

    def _prepare(self) -> None:
        super()._prepare()
        self.factor = factored(prepared_moments(self.context, [self.projection.layer], self.settings)[0])

    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        applied = []
        path = self.projection.path
        for count, edit in enumerate(edits, 1):
            contexts = [contexts_of(self.context, edit, self.prefixes)]
            key = read(self.context, contexts, keys=[path])[0][path][0]
            values = search(self.context, contexts, self.projection.layer, path, self.settings)
            # every context gets the same offset, so the mean value is W k* and the offset, and bias, if there is one
            self._write(self._direction(key, edit), values.offset[0])
            loss = target_losses(self.context, [contexts[0].rows[0]])[0]
            applied.append(Applied(steps=values.steps[0], loss=loss))
            progress(count)
        return applied

    def _direction(self, key: Tensor, edit: Edit) -> Tensor:
        """`[f]` C^-1 k* over its product with k*. Raises EditError for a key that is zero."""
        key = key.double()
        towards = torch.cholesky_solve(key[:, None], self.factor)[:, 0]
        product = torch.dot(towards, key)
        if not bool(product > 0):
            raise EditError(
                f"edit {edit.id!r}: nothing is active at the subject's last token in {self.projection.path}, so "
                "nothing can be written there; choose another layer, or leave the edit out"
            )
        return (towards / product).float()

    def _write(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = torch.cat([self.left, left[None]]), torch.cat([self.right, right[None]])
        self.change = torch.addr(self.change, right, left)
        module = self.model.get_submodule(self.projection.path)
        self.put({self.name: self.original[self.name].float() + as_weight(module, self.change)})

    @property
    def memory_bytes(self) -> int:
        """Two vectors an edit, or the changed weight whole where that is less."""
        return min(self.left.nbytes + self.right.nbytes, self.original[self.name].nbytes)

    @property
    def state(self) -> Any:
        return super().state, self.left, self.right, self.change

    def restore(self, state: Any) -> None:
        weights, self.left, self.right, self.change = state
        super().restore(weights)
