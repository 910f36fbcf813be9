"""How close every edit came at a token, for the routes that are reported in `merge` and `retrieve`.

A router looks for one edit, as fast as it can. Here the evidence of each key is taken by itself, as if there were no
other key. Nothing of it is on the path of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from wise.errors import ConfigError
from wise.memory.key_space import KeySpace
from wise.memory.side_memory import SideMemory
from wise.memory.state import MemoryState
from wise.router.activation import RetrievalRouter, activation_score, closeness


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyDiagnostics:
    """Of `t` tokens and the `n` keys of a memory, in the order of `key_matrix`. Float32, where the tokens are."""

    evidence: Tensor
    """`[t, n]` of each key alone; its edit could speak from 1."""
    rank: Tensor
    """`[t, n]` by which keys are nearer than others."""

    def select(self, tokens: slice) -> KeyDiagnostics:
        """Of these tokens, on the CPU."""
        return KeyDiagnostics(evidence=self.evidence[tokens].cpu(), rank=self.rank[tokens].cpu())


def key_diagnostics(state: MemoryState, memory: SideMemory, activation: Tensor) -> KeyDiagnostics:
    """How near each key of `state`, which `memory` serves, comes at the tokens of one row.

    activation: `[tokens, f]` of it.

    Raises ConfigError where the keys cannot be compared, since the state has no space for them.
    """
    if not isinstance(state.key_space, KeySpace):
        raise ConfigError("this memory has no key space, so how near its edits come cannot be said: make them anew")
    keys, key_slots = (part.to(activation.device) for part in state.key_matrix())
    scores = torch.stack([_slot_scores(memory, activation, slot.id) for slot in state.slots], dim=1)
    thresholds = scores.new_tensor([slot.threshold for slot in state.slots])
    evidence = (scores / thresholds)[:, key_slots]
    cosine = _directions(activation, state.key_space) @ keys.T
    if isinstance(memory.router, RetrievalRouter):
        evidence = torch.minimum(closeness(cosine, memory.router.key_threshold), evidence)
    return KeyDiagnostics(evidence=evidence, rank=cosine)


def _directions(vectors: Tensor, space: KeySpace) -> Tensor:
    """Unit keys `[t, r]` of vectors `[t, f]`, where these are."""
    device = vectors.device
    return normalize(linear(vectors.float(), space.projection.to(device), space.shift.to(device)), dim=-1)


def _slot_scores(memory: SideMemory, activation: Tensor, slot: int) -> Tensor:
    """`[t]` the size of what one slot would add."""
    chosen = torch.full((len(activation),), slot, device=activation.device)
    return activation_score(memory.bank(activation.to(memory.bank.weights.dtype), chosen))
