"""Ways of scoring a token against edits: what a router goes by, without its threshold.

Each gives, for every token that is routed, the score of the candidate that fits best and which one that is. A candidate
stands for one edit, or for the edits of a slot. Larger is nearer in all of them, and no two share a scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from wise.eval.routers.reading import Reading
from wise.memory.key_space import KeySpace, of_whom
from wise.memory.side_memory import SideMemory
from wise.router.activation import activation_score
from wise.training.baselines.embedding import Embedder

DECIMALS = 5
"""Of cosines."""
RELATION, SUBJECT = "relation alone", "subject alone"
LESSER, SUM, SHORTFALL = "both, lesser over floors", "both, summed", "both, by shortfall"
COMBINED: Mapping[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    LESSER: lambda relation, subject, asks, whom: torch.minimum(relation / asks, subject / whom),
    SUM: lambda relation, subject, asks, whom: relation + subject,
    SHORTFALL: lambda relation, subject, asks, whom: -torch.maximum(_short(relation, asks), _short(subject, whom)),
}
"""Relation and subject cosines with the floors of both -> what they come to together.

The first opens from 1 and can be no more than one over the subject's floor. The last is how far the lesser falls short
of its key, in units of what its floor allows, which is what the router goes by: it opens from -1, and 0 is the key.
"""
EVIDENCE = (RELATION, SUBJECT, *COMBINED)


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
class Hybrid(Scorer):
    """The hybrid router's evidence: what is asked, of whom, or both.

    The floor of a relation is its space's. Served, an edit whose own prompt comes near its key elsewhere has a higher
    one, and one whose own prompt does not look like a question is compared without the gate; that is left out here.
    """

    block: int
    by: str
    """One of `EVIDENCE`."""
    relation: KeySpace
    subject: KeySpace
    relation_keys: Tensor
    """`[candidates, r]` of unit length."""
    subject_keys: Tensor
    """`[candidates, parts s]`, see `of_whom`."""

    def scores(self, readings: Sequence[Reading]) -> Scores:
        found = [_best(self._of(reading)) for reading in readings]
        return Scores(torch.cat([one.value for one in found]), torch.cat([one.best for one in found]))

    def _of(self, reading: Reading) -> Tensor:
        """`[m, candidates]`"""
        if self.by == SUBJECT:
            return self._subject(reading)
        relation = _cosines(self.relation.queries(reading.beside(self.block, self.relation.recent)), self.relation_keys)
        if self.by == RELATION:
            return relation
        asks, whom = (space.floor(len(self.relation_keys)) for space in (self.relation, self.subject))
        return COMBINED[self.by](relation, self._subject(reading), asks, whom)

    def _subject(self, reading: Reading) -> Tensor:
        """The likest of the tokens that each routed one sees: `[m, candidates]`."""
        keys = self.subject_keys.view(-1, len(self.subject.projection))
        nearest = _cosines(self.subject.named(reading.values), keys).amax(0)
        nearest = nearest.amax(0, keepdim=True) if reading.routed == 1 else nearest.cummax(0).values[-reading.routed :]
        return of_whom(nearest, self.subject.parts).round(decimals=DECIMALS)


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


def _short(cosine: Tensor, floor: float) -> Tensor:
    short: Tensor = (1 - cosine) / max(1 - floor, 10**-DECIMALS)
    return short


def _cosines(rows: Tensor, keys: Tensor) -> Tensor:
    """Of rows `[n, r]`, unit or shortened by a gate, and `[candidates, r]`, rounded: what a subject stands behind is
    often the same in two prompts, and a threshold is not to tell apart what only the order of sums does."""
    cosines: Tensor = (rows @ keys.T).round(decimals=DECIMALS)
    return cosines


def _best(scores: Tensor) -> Scores:
    """`[n, candidates]`"""
    found = scores.max(-1)
    return Scores(found.values, found.indices)
