"""How near every edit came at a token: what is told of a route beside the one edit that the router chose.

A router looks for the edit that speaks, as fast as it can. Here each key is weighed by itself, as if there were no
other, which says who else would have spoken and what was wanting. Nothing of it is on the path of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from wise.errors import ConfigError
from wise.memory.context import visible
from wise.memory.key_space import KeySpace
from wise.memory.side_memory import SideMemory
from wise.memory.state import MemoryState
from wise.router.activation import RetrievalRouter, activation_score, closeness
from wise.router.hybrid import HybridRouter, named, weighed


@dataclass(frozen=True, kw_only=True, eq=False)
class Kinds:
    """The two kinds of evidence that `hybrid` goes by."""

    relation: Tensor
    """`[t, n]` cosine of what is asked at a token to what each key asks."""
    subject: Tensor
    """`[t, n]` the largest cosine, of the tokens that the token sees, to the subject of each key."""
    relation_floors: Tensor
    """`[n]` from where each counts."""
    subject_floor: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearness:
    """Of `t` tokens and the `n` keys of a memory, in the order of `key_matrix`. Float32, where the tokens are."""

    evidence: Tensor
    """`[t, n]` of each key alone; its edit could speak from 1."""
    rank: Tensor
    """`[t, n]` by which keys are nearer than others."""
    kinds: Kinds | None = None
    """In `hybrid`."""

    def select(self, tokens: slice) -> Nearness:
        """Of these tokens, on the CPU."""
        kinds = self.kinds and Kinds(
            relation=self.kinds.relation[tokens].cpu(),
            subject=self.kinds.subject[tokens].cpu(),
            relation_floors=self.kinds.relation_floors.cpu(),
            subject_floor=self.kinds.subject_floor,
        )
        return Nearness(evidence=self.evidence[tokens].cpu(), rank=self.rank[tokens].cpu(), kinds=kinds)


def nearness(
    state: MemoryState, memory: SideMemory, activation: Tensor, row: int
) -> Nearness:
    """How near each key of `state`, which `memory` serves, comes at the tokens of one row of the last forward.

    activation: `[rows, tokens, f]` of that forward.

    Raises ConfigError where the keys cannot be compared, since the state has no space for them.
    """
    if state.key_space is None:
        raise ConfigError("this memory has no key space, so how near its edits come cannot be said: make them anew")
    own = activation[row]
    if isinstance(memory.router, HybridRouter):
        return _hybrid(memory.router, activation, row)
    keys, key_slots = (part.to(activation.device) for part in state.key_matrix())
    scores = torch.stack([_slot_scores(memory, own, slot.id) for slot in state.slots], dim=1)
    thresholds = scores.new_tensor([slot.threshold for slot in state.slots])
    evidence = (scores / thresholds)[:, key_slots]
    cosine = _directions(own, state.key_space) @ keys.T
    if isinstance(memory.router, RetrievalRouter):
        evidence = torch.minimum(closeness(cosine, memory.router.floor), evidence)
    return Nearness(evidence=evidence, rank=cosine)


def _hybrid(router: HybridRouter, rows: Tensor, row: int) -> Nearness:
    """rows: `[rows, tokens, f]` activations, of which those of one are looked at."""
    reader = router.reader
    if reader.values is None:
        raise ConfigError("attention was not run: run the model as a whole")
    x, values = rows[row].float(), reader.values[row].float()
    counts = torch.where(router.gated, router.relation.asks(x)[:, None], 1)
    places = torch.arange(len(x), device=x.device)
    everything = router.reader.beside(rows.float().flatten(0, 1), row * len(x) + places, router.relation.recent)
    relation = (router.relation(everything) @ router.relation_keys.T) * counts
    seen = visible(reader.mask, row, places, len(x), len(values))
    subject = named(values, seen, router.subject_projection, router.subject_shift, router.subject_keys, router.parts)
    evidence = weighed(relation, subject, router.relation_floors, router.subject_floor)
    # As the router has it: of those that reach both floors the one with the most in sum, before all that do not.
    rank = torch.where(evidence >= 1, 3 + relation + subject, evidence)
    kinds = Kinds(
        relation=relation,
        subject=subject,
        relation_floors=router.relation_floors,
        subject_floor=float(router.subject_floor),
    )
    return Nearness(evidence=evidence, rank=rank, kinds=kinds)


def _directions(vectors: Tensor, space: KeySpace) -> Tensor:
    """Unit keys `[t, r]` of vectors `[t, f]`, where these are."""
    device = vectors.device
    return normalize(linear(vectors.float(), space.projection.to(device), space.shift.to(device)), dim=-1)


def _slot_scores(memory: SideMemory, activation: Tensor, slot: int) -> Tensor:
    """`[t]` the size of what one slot would add."""
    chosen = torch.full((len(activation),), slot, device=activation.device)
    return activation_score(memory.bank(activation.to(memory.bank.weights.dtype), chosen))
