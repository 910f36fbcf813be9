"""WISE's own router: the size of what the side memory would add decides whether it may.

    D(a) = || a (W' - W)^T ||_2          (arXiv 2405.14768, equation 5)

taken on the layer's output difference, per token, against a threshold that is a pure function of the
edits now in the slot.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from wise.memory.key_space import KeySpace
from wise.memory.side_memory import NO_SLOT, Evidence, Route, Router, SlotBank


def activation_score(delta: Tensor) -> Tensor:
    """D for each token: `[..., d] -> [...]`, in float32 whatever the model's precision."""
    score: Tensor = torch.linalg.vector_norm(delta.float(), dim=-1)
    return score


def closeness(cosine: Tensor, threshold: float) -> Tensor:
    """A cosine as a multiple of its threshold: at least 1 exactly where it reaches it.

    A threshold of 0 or less is no scale to measure by; there the distance to it, moved to 1, is taken.
    """
    return cosine / threshold if threshold > 0 else 1 + cosine - threshold


class ActivationRouter(Router):
    """One memory, one threshold (WISE-Merge)."""

    threshold: Tensor

    def __init__(self, threshold: Tensor) -> None:
        """threshold: `[1]`."""
        super().__init__()
        self.threshold = threshold.float()

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        delta = bank(activation.to(bank.weights.dtype))
        score = activation_score(delta)
        return Route(torch.zeros_like(score, dtype=torch.long), score, self.threshold.expand_as(score), delta)


class RetrievalRouter(Router):
    """Several memories (WISE-Retrieve): the slot of the nearest edit key, then that slot's own score.

    The paper asks every memory for its score and takes the largest, which costs one dense layer per memory
    and compares numbers of different scale. Here the nearest key names the slot, and D of that slot decides.
    A token with no key near it is the base's, and costs no dense layer at all.
    """

    thresholds: Tensor
    keys: Tensor
    key_slots: Tensor
    projection: Tensor
    shift: Tensor

    def __init__(
        self, *, thresholds: Tensor, keys: Tensor, key_slots: Tensor, space: KeySpace, key_threshold: float
    ) -> None:
        """thresholds `[k]`; keys `[n, r]`, of unit length in `space`; key_slots `[n]`.

        key_threshold: cosine under which the nearest key is none.
        """
        super().__init__()
        self.key_threshold = key_threshold
        self.thresholds = thresholds.float()
        self.keys = keys.float()
        self.key_slots = key_slots
        self.projection, self.shift = space.projection.float(), space.shift

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        product, key, length = self._nearest(activation)
        near = product >= self.key_threshold * length
        slot = torch.where(near, self.key_slots[key], NO_SLOT)
        delta = bank(activation.to(bank.weights.dtype), slot)
        threshold = torch.where(near, self.thresholds[slot], float("inf"))
        return Route(slot, activation_score(delta), threshold, delta)

    def evidence(self, activation: Tensor, bank: SlotBank) -> Evidence:
        """The smaller of two multiples: cosine to the nearest key over its threshold, its slot's D over the threshold.

        The slot is the nearest key's, and D is taken of it, also where that key is further than that threshold.
        """
        route: Route = self(activation, bank)
        product, key, length = self._nearest(activation)
        slot = self.key_slots[key]
        near = route.slot != NO_SLOT
        further = bank(activation.to(bank.weights.dtype), torch.where(near, NO_SLOT, slot))
        score = torch.where(near, route.score, activation_score(further))
        value = torch.minimum(closeness(product / length, self.key_threshold), score / self.thresholds[slot])
        return Evidence.of(route, value, slot, key)

    def _nearest(self, activation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Per token `[n]`: its product with the nearest key, that key's place, and its own length in key space."""
        query = linear(activation.float(), self.projection, self.shift)
        product, key = linear(query, self.keys).max(-1)
        return product, key, torch.linalg.vector_norm(query, dim=-1)
