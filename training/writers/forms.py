"""What is stepped on for each kind of slot of one edit: its parameters, in units in which one rate does for every base.

A form holds the parameters of many edits at once, `[edits, places, ...]`. Values are in units of the root mean square
of the value projection's output; the keys of neurons are in those of one over the norm of the edit's own activation,
so that a key of unit length along that activation is active by 1.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu

from wise.memory.slot import EditSlot, LowRankSlot, NeuronSlot, RankOneSlot, ValueSlot

RATE = 3.0
"""Of Adam, per step and coordinate of a constant. Loud values carry further, and come in few steps."""
NEURON_RATE = 0.3
"""The same of what a neuron adds."""
KEY_RATE = 1.0
"""The same of a key, times one over the root of its size: what it takes to turn a key, not to make it."""
APART = 0.5
"""Norm of what the keys of one place first differ by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Neurons to begin from at the first place, each edit's; rows of zeros where it has fewer than others."""

    keys: Tensor
    """`[edits, r, f]`"""
    values: Tensor
    """`[edits, r, d]`"""


class Form(ABC):
    """Parameters of the slots of many edits. What one edit has, no other sees."""

    values: Tensor
    """`[edits, places, ...]`"""
    unit: float

    @property
    @abstractmethod
    def parameters(self) -> list[tuple[Tensor, float]]:
        """Each with its rate."""

    @abstractmethod
    def delta(self, edits: Tensor, activation: Tensor) -> Tensor:
        """What is added in each row: its edit `[rows]`, `[rows, places, f]` -> `[rows, places, d]`; the first places of
        the form where there are fewer in the rows."""

    @abstractmethod
    def slot(
        self, edit: int, places: Tensor, *, id: int, edit_ids: tuple[str, ...], gated: Tensor, floors: Tensor
    ) -> EditSlot:
        """An edit's slot as it now is."""

    def size(self, edits: Tensor, speaks: Tensor) -> Tensor:
        """`[edits]` the mean square of what an edit's values come to, in units; speaks `[edits, places]`."""
        squares = self.values[edits].square().mean(-1)
        squares = squares if squares.ndim == 2 else squares.mean(-1)
        return (squares * speaks).sum(-1)


class Constants(Form):
    """Of value slots."""

    def __init__(self, own: Tensor, features_out: int, unit: float) -> None:
        """own: `[edits, places, f]` activations of the edits' own prompts and targets."""
        self.unit, self.features = unit, own.shape[-1]
        self.values = torch.zeros(*own.shape[:2], features_out, device=own.device, requires_grad=True)

    @property
    def parameters(self) -> list[tuple[Tensor, float]]:
        return [(self.values, RATE)]

    def delta(self, edits: Tensor, activation: Tensor) -> Tensor:
        return self.values[edits, : activation.shape[1]] * self.unit

    def slot(
        self, edit: int, places: Tensor, *, id: int, edit_ids: tuple[str, ...], gated: Tensor, floors: Tensor
    ) -> EditSlot:
        values = (self.values.detach()[edit].cpu() * self.unit)[places]
        return ValueSlot(
            id=id, edit_ids=edit_ids, values=values, places=places, gated=gated, floors=floors, features=self.features
        )


class Neurons(Form):
    """Of rank-one and low-rank slots."""

    def __init__(
        self,
        own: Tensor,
        features_out: int,
        unit: float,
        *,
        kind: type[NeuronSlot],
        rank: int,
        seeds: Sequence[str],
        start: Start | None = None,
    ) -> None:
        """own: as for `Constants`; seeds: of each edit, for what its keys first differ by."""
        self.unit, self.kind = unit, kind
        own = own.float()
        edits, places, f = own.shape
        self.norms = own.norm(dim=-1).clamp(min=1e-6)[..., None, None]  # [edits, places, 1, 1]
        keys = normalize(own, dim=-1)[:, :, None].expand(-1, -1, rank, -1).clone()
        if rank > 1:
            for i, seed in enumerate(seeds):
                keys[i] += APART * _directions((rank, f), seed).to(keys.device)
        values = torch.zeros(edits, places, rank, features_out, device=own.device)
        if start is not None:
            keys[:, 0] = start.keys.to(keys) * self.norms[:, 0]
            values[:, 0] = start.values.to(values) * (rank / unit)
        self.keys, self.values = keys.requires_grad_(), values.requires_grad_()

    @property
    def parameters(self) -> list[tuple[Tensor, float]]:
        return [(self.values, NEURON_RATE), (self.keys, KEY_RATE / self.keys.shape[-1] ** 0.5)]

    def delta(self, edits: Tensor, activation: Tensor) -> Tensor:
        width = activation.shape[1]
        keys = (self.keys[:, :width] / self.norms[:, :width])[edits]
        active = torch.einsum("npf,nprf->npr", activation.float(), keys)
        active = relu(active) if self.kind.rectified else active
        scale = self.unit / self.keys.shape[2]
        return torch.einsum("npr,nprd->npd", active, self.values[edits, :width]) * scale

    def slot(
        self, edit: int, places: Tensor, *, id: int, edit_ids: tuple[str, ...], gated: Tensor, floors: Tensor
    ) -> EditSlot:
        keys = (self.keys[edit] / self.norms[edit]).detach().cpu()[places]
        values = (self.values[edit].detach().cpu() * (self.unit / self.keys.shape[2]))[places]
        used = (keys != 0).any(-1).any(0)
        return self.kind(
            id=id,
            edit_ids=edit_ids,
            places=places,
            gated=gated,
            floors=floors,
            keys=keys[:, used],
            values=values[:, used].contiguous(),
        )


NEURONS: dict[str, type[NeuronSlot]] = {kind.kind: kind for kind in (RankOneSlot, LowRankSlot)}


def _directions(shape: tuple[int, int], seed: str) -> Tensor:
    """Random unit vectors, the same for the same seed."""
    generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(31))
    return normalize(torch.randn(shape, generator=generator), dim=-1)
