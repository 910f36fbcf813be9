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
    device, tokens = activation.device, len(activation)
    keys, key_slots, projection, shift = (
        part.to(device) for part in (*state.key_matrix(), state.key_space.projection, state.key_space.shift)
    )
    served = activation.to(memory.bank.weights.dtype)
    chosen = [torch.full((tokens,), slot.id, device=device) for slot in state.slots]
    scores = torch.stack([activation_score(memory.bank(served, slots)) for slots in chosen], dim=1)
    thresholds = scores.new_tensor([slot.threshold for slot in state.slots])
    evidence = (scores / thresholds)[:, key_slots]
    cosine = normalize(linear(activation.float(), projection, shift), dim=-1) @ keys.T
    if isinstance(memory.router, RetrievalRouter):
        evidence = torch.minimum(closeness(cosine, memory.router.key_threshold), evidence)
    return KeyDiagnostics(evidence=evidence, rank=cosine)
