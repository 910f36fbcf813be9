"""Ways of scoring a token against edits: what a router goes by, without its threshold.

Each gives, for every token that is routed, the score of the candidate that fits best and which one that is. A candidate
stands for one edit, or for the edits of a slot. Larger is nearer in all of them, and no two share a scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from wise.lab.editors.embedding import Embedder
from wise.lab.eval.routers.reading import Reading
from wise.memory.key_space import KeySpace
from wise.memory.sequences import Rows, SequenceReader
from wise.memory.side_memory import NO_SLOT, SideMemory
from wise.router.activation import activation_score

DECIMALS = 5
"""Of cosines."""


class Scores(NamedTuple):
    """Of all routed tokens, those of one text after those of another."""

    value: Tensor
    """`[n]` float32, of the best candidate."""
    best: Tensor
    """`[n]` int64: which one it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer(ABC):
    """A way of scoring, over the edits of one memory."""

    candidates: tuple[frozenset[str], ...]
    """Ids of the edits that each stands for."""

    @abstractmethod
    def scores(self, readings: Sequence[Reading]) -> Scores:
        """At least one reading."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpsilonBall(Scorer):
    """GRACE's (Hartvigsen et al. 2023): the Euclidean distance to a key, of which the threshold is the radius. All
    balls are of one size, and none is split."""

    block: int
    keys: Tensor
    """`[candidates, f]` activations at the ends of the edits' prompts."""

    def scores(self, readings: Sequence[Reading]) -> Scores:
        return _best(-torch.cdist(_activations(readings, self.block), self.keys))


@dataclass(frozen=True, kw_only=True, eq=False)
class Cosine(Scorer):
    """The cosine to a key, of activations as they are or in a space."""

    block: int
    keys: Tensor
    """`[candidates, f]` activations at the ends of the edits' prompts."""
    space: KeySpace | None = None

    def scores(self, readings: Sequence[Reading]) -> Scores:
        return _best(_cosines(self._unit(_activations(readings, self.block)), self._unit(self.keys)))

    def _unit(self, activations: Tensor) -> Tensor:
        return normalize(activations, dim=-1) if self.space is None else self.space.keys(activations)


@dataclass(frozen=True, kw_only=True, eq=False)
class LargestActivation(Scorer):
    """WISE-Retrieve's (Wang et al. 2024): D, the length of what a slot would add, of the slot that has the largest."""

    block: int
    weights: Tensor
    """`[candidates, d, f]` of slots."""

    def scores(self, readings: Sequence[Reading]) -> Scores:
        activations = _activations(readings, self.block)
        return _best(torch.stack([activation_score(linear(activations, slot)) for slot in self.weights], dim=-1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Served(Scorer):
    """The router of a side memory that needs nothing but activations, by its own evidence."""

    block: int
    memory: SideMemory

    def scores(self, readings: Sequence[Reading]) -> Scores:
        found = self.memory.evidence(_activations(readings, self.block))
        return Scores(found.value, found.key)


@dataclass(frozen=True, kw_only=True, eq=False)
class Named(Scorer):
    """The hybrid router: of the edits whose subject a text names, the one whose question it asks, by its own evidence.

    0 where no edit is looked at, or no answer may begin. The last of the candidates stands for none of the edits.
    """

    memory: SideMemory
    sequences: SequenceReader
    """By which its router is told what is read."""

    def scores(self, readings: Sequence[Reading]) -> Scores:
        found = [self._of(reading) for reading in readings]
        return Scores(torch.cat([one.value for one in found]), torch.cat([one.best for one in found]))

    def _of(self, reading: Reading) -> Scores:
        m = reading.routed
        with self.sequences.showing(Rows(ids=(np.array(reading.ids),), places=(np.arange(m),), size=m)):
            found = self.memory.evidence(torch.zeros(m, 1))  # it goes by the ids alone
        none = len(self.candidates) - 1
        return Scores(found.value, torch.where(found.slot == NO_SLOT, none, found.slot))


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded(Scorer):
    """The cosine of two texts' sentence embeddings. It is asked once of a text, and holds for all of its tokens."""

    embedder: Embedder
    keys: Tensor
    """`[candidates, e]`, of the edits' prompts."""

    def scores(self, readings: Sequence[Reading]) -> Scores:
        found = _best(_cosines(self.embedder([reading.text for reading in readings]), self.keys))
        counts = torch.tensor([reading.routed for reading in readings])
        return Scores(found.value.repeat_interleave(counts), found.best.repeat_interleave(counts))


def _activations(readings: Sequence[Reading], block: int) -> Tensor:
    return torch.cat([reading.activations[block] for reading in readings])


def _cosines(rows: Tensor, keys: Tensor) -> Tensor:
    """Of unit rows `[n, r]` and `[candidates, r]`, rounded: two prompts may end in the same words, and a threshold is
    not to tell apart what only the order of sums does."""
    cosines: Tensor = (rows @ keys.T).round(decimals=DECIMALS)
    return cosines


def _best(scores: Tensor) -> Scores:
    """`[n, candidates]`"""
    found = scores.max(-1)
    return Scores(found.values, found.indices)
