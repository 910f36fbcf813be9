"""WISE's own router: the size of what the side memory would add decides whether it may.

    D(a) = || a (W' - W)^T ||_2          (arXiv 2405.14768, equation 5)

taken on the layer's output difference, per token, against a threshold that is a pure function of the
edits now in the slot.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from wise.memory.side_memory import Route, Router, SlotBank


def activation_score(delta: Tensor) -> Tensor:
    """D for each token: `[..., d] -> [...]`, in float32 whatever the model's precision."""
    return torch.linalg.vector_norm(delta.float(), dim=-1)


class ActivationRouter(Router):
    """One memory, one threshold (WISE-Merge)."""

    threshold: Tensor

    def __init__(self, threshold: Tensor) -> None:
        """threshold: `[1]`."""
        super().__init__()
        self.register_buffer("threshold", threshold.float(), persistent=False)

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        delta = bank(activation.to(bank.weights.dtype))
        score = activation_score(delta)
        return Route(torch.zeros_like(score, dtype=torch.long), score, self.threshold.expand_as(score), delta)


class RetrievalRouter(Router):
    """Several memories (WISE-Retrieve): the slot of the nearest edit key, then that slot's own score.

    The paper asks every memory for its score and takes the largest, which costs one dense layer per memory
    and compares numbers of different scale. Here the nearest key names the slot, so that the cost of a token
    is one dense layer and a small product whatever the number of slots, and D of that slot decides.
    """

    thresholds: Tensor
    keys: Tensor
    key_slots: Tensor
    projection: Tensor
    shift: Tensor

    def __init__(
        self, *, thresholds: Tensor, keys: Tensor, key_slots: Tensor, projection: Tensor, mean: Tensor
    ) -> None:
        """thresholds `[k]`; keys `[n, r]`, unit length; key_slots `[n]`; projection `[r, f]`; mean `[f]`."""
        super().__init__()
        self.register_buffer("thresholds", thresholds.float(), persistent=False)
        self.register_buffer("keys", keys.float(), persistent=False)
        self.register_buffer("key_slots", key_slots, persistent=False)
        self.register_buffer("projection", projection.float(), persistent=False)
        self.register_buffer("shift", -(projection.float() @ mean.float()), persistent=False)

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        query = linear(activation.float(), self.projection, self.shift)
        # The length of the query does not change which key is nearest, so it is not divided out.
        slot = self.key_slots[linear(query, self.keys).argmax(-1)]
        delta = bank(activation.to(bank.weights.dtype), slot)
        return Route(slot, activation_score(delta), self.thresholds[slot], delta)
