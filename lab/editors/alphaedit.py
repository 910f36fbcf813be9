"""AlphaEdit: MEMIT's change, projected onto the null space of the base's usual inputs.

Fang, Jiang, Wang, Ma, Jie, Wang, He, Chua 2025, "AlphaEdit: Null-Space Constrained Knowledge Editing for Language
Models", ICLR, arXiv 2410.02355. P projects on the eigenvectors of E[k k^T] whose eigenvalues are small (eq. 9-10, from
the singular values of K0 K0^T), and the change is (eq. 14), K_p being the keys of all earlier edits:

    Delta P = R K^T P (K_p K_p^T P + K K^T P + 1)^-1

which is computed in the coordinates U of the null space, P = U U^T, where it is symmetric:

    Delta P = R (U^T K)^T (U^T (K_p K_p^T + K K^T) U + 1)^-1 U^T

It departs from the paper in what "small" means: the paper cuts at an eigenvalue of 0.01, which is another share of the
inputs on every base; here the eigenvectors that are free together hold at most a share of E|k|^2. Likewise the 1 (10 in
the authors' code) is in units of E|k|^2. Hidden states are searched for and spread as in MEMIT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wise.errors import ConfigError
from wise.lab.editors.context import EditingContext
from wise.lab.editors.multi_layer import MultiLayerEditor, MultiLayerSettings
from wise.lab.editors.settings import Positive, Share
from wise.lab.editors.statistics import prepared_moments


@dataclass(frozen=True, kw_only=True)
class AlphaEditSettings(MultiLayerSettings):
    search = {
        "window": ((0.0, 0.35), (0.0, 0.5), (0.2, 0.5)),
        "free_share": (0.02, 0.1, 0.3),
        "damping": (0.003, 0.03, 0.1),
        "clamp": (0.75, 1.5, 3.0),
    }

    free_share: Share = 0.1
    """Share of E|k|^2 that the directions in which may be written hold at most."""
    damping: Positive = 0.03
    """What is added to the diagonal, in units of E|k|^2."""


class AlphaEdit(MultiLayerEditor[AlphaEditSettings]):
    Config = AlphaEditSettings

    def __init__(self, context: EditingContext, settings: AlphaEditSettings) -> None:
        super().__init__(context, settings)
        self.earlier: dict[str, Tensor] = {}
        """Path -> `[f, f]`, float32: the sum of k k^T over the keys of all edits so far."""

    def _prepare(self) -> None:
        super()._prepare()
        moments = prepared_moments(self.context, self.layers, self.settings)
        self.free = [free_directions(moment, self.settings.free_share) for moment in moments]
        """`[f, free]` at each block."""
        self.scales = [float(moment.trace()) for moment in moments]
        """E|k|^2 at each block."""

    def _change(self, place: int, keys: Tensor, residual: Tensor) -> Tensor:
        free = self.free[place]
        within = keys @ free
        among = within.T @ within
        if self.earlier:
            among = among + free.T @ self.earlier[self.paths[place]].double() @ free
        among.diagonal().add_(self.settings.damping * self.scales[place])
        change: Tensor = residual.T @ torch.cholesky_solve(within.T, torch.linalg.cholesky(among)).T @ free.T
        return change

    def _note_keys(self, keys: Mapping[str, Tensor]) -> None:
        new = {path: k.T @ k for path, k in keys.items()}
        self.earlier = {path: gram + self.earlier[path] if self.earlier else gram for path, gram in new.items()}

    @property
    def memory_bytes(self) -> int:
        """The changed parameters, whole, and what later edits need of earlier ones."""
        return super().memory_bytes + sum(gram.nbytes for gram in self.earlier.values())

    @property
    def state(self) -> Any:
        return super().state, self.earlier

    def restore(self, state: Any) -> None:
        weights, self.earlier = state
        super().restore(weights)


def free_directions(moment: Tensor, share: float) -> Tensor:
    """`[f, free]` the eigenvectors of the smallest eigenvalues, as many as together hold at most `share` of all.

    Raises ConfigError where there is none.
    """
    values, vectors = torch.linalg.eigh(moment)
    count = int((values.clamp(min=0).cumsum(0) <= share * values.sum()).sum())
    if not count:
        least = float(values[0] / values.sum())
        raise ConfigError(
            f"free_share={share}: the smallest of {len(values)} directions holds {least:.2g} of all activity, so none "
            "is free; give a larger share"
        )
    free: Tensor = vectors[:, :count]
    return free
