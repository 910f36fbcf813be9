"""Sharding: which edits share a slot, by the order of the stream as in WISE (arXiv 2405.14768), or by meaning.

By meaning, similar edits share a slot, so that a token that comes nearer to the key of another edit than to its own
still finds the slot in which its own was written. What is similar is told by the keys of the edits' prompts alone, the
same keys by which tokens find a slot. It has its price: a slot that must tell like edits apart carries each of them
less far, and slots are written more often and left less full.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from wise.config import WiseConfig
from wise.edits import Edit
from wise.memory.key_space import KeySpace
from wise.memory.state import MemoryState
from wise.training.encoding import Encoder
from wise.training.splice import SplicedModel
from wise.training.writers.base import SlotTask

FEATURES_PER_EDIT = 44
"""Input features of the value projection per edit of a slot, where `slot_capacity` is left open.

An unrelated token scores about sqrt(edits / features) of what an edited one does, so a slot that holds more than a
small share of its features cannot keep silent.
"""
NEAR = 0.5
"""Cosine to the nearest edit from which an edit must share its slot, which is split where it is full."""
ROUNDS = 8
"""In which two halves settle; they seldom take five."""
BATCH = 64
"""Prompts of which the base is asked at once."""


class Sharding(Protocol):
    """Says what slots are to hold."""

    def tasks(self, state: MemoryState, edits: Sequence[Edit]) -> list[SlotTask]:
        """The slots to be written for `edits` to join those of `state`, each of which holds its edits or is left out.

        Ascending in their numbers; those of new slots follow on those of `state`.
        """
        ...

    def sparing(self, edit_ids: Collection[str]) -> Self:
        """One that also leaves the slots of these edits as they are; itself where there is nothing more to leave."""
        ...


def make_sharding(config: WiseConfig, spliced: SplicedModel, encoder: Encoder, key_space: KeySpace) -> Sharding:
    """The one that the settings name. In `merge` all edits share one slot, in `hybrid` none do."""
    if config.mode == "merge":
        return ByOrder(capacity=None)
    if config.mode == "hybrid":
        return ByOrder(capacity=1)
    capacity = config.slot_capacity or max(8, spliced.projection.in_features // FEATURES_PER_EDIT)
    if config.sharding == "order":
        return ByOrder(capacity=capacity)
    return ByMeaning(capacity=capacity, spliced=spliced, encoder=encoder, key_space=key_space)


@dataclass(frozen=True, kw_only=True)
class ByOrder:
    """The last slot is filled, then the next one is opened."""

    capacity: int | None
    """Edits a slot may hold; None for any number."""

    def tasks(self, state: MemoryState, edits: Sequence[Edit]) -> list[SlotTask]:
        """See `Sharding`."""
        held = list(state.slots[-1].edit_ids) if state.slots else []
        size = self.capacity or len(held) + len(edits)
        if len(held) >= size:
            held = []
        ids = [*held, *(edit.id for edit in edits)]
        first = len(state.slots) - bool(held)
        return _tasks(state, edits, {first + n: ids[at : at + size] for n, at in enumerate(range(0, len(ids), size))})

    def sparing(self, edit_ids: Collection[str]) -> Self:
        """Itself: where an edit goes depends on nothing but how many there are."""
        return self


@dataclass(frozen=True, kw_only=True)
class ByMeaning:
    """An edit goes into the slot of the edit that it is nearest to; a full slot is split in two for it.

    Where none is as near as `NEAR` it goes into the nearest slot that has room, or else opens one. Of a split slot the
    half with the oldest edit keeps the number. A half that an edit has left is written from nothing.
    """

    capacity: int
    spliced: SplicedModel
    encoder: Encoder
    key_space: KeySpace
    spared: frozenset[str] = frozenset()
    """Edits whose slots no other joins."""

    def tasks(self, state: MemoryState, edits: Sequence[Edit]) -> list[SlotTask]:
        """See `Sharding`."""
        keys = {i: own[0] for i, own in state.keys.items()} | self._keys(edits)
        held = {slot.id: slot.edit_ids for slot in state.slots if self.spared.isdisjoint(slot.edit_ids)}
        return _tasks(state, edits, grouped(held, keys, [edit.id for edit in edits], self.capacity, len(state.slots)))

    def sparing(self, edit_ids: Collection[str]) -> Self:
        """See `Sharding`."""
        return self if self.spared.issuperset(edit_ids) else replace(self, spared=self.spared.union(edit_ids))

    def _keys(self, edits: Sequence[Edit]) -> dict[str, Tensor]:
        """Of each edit its key at the end of its prompt, `[r]`."""
        found: dict[str, Tensor] = {}
        for start in range(0, len(edits), BATCH):
            part = edits[start : start + BATCH]
            activations, _, _ = self.spliced.observe([self.encoder.prompt(edit.prompt) for edit in part])
            found |= zip((edit.id for edit in part), self.key_space.keys(activations[:, -1]), strict=True)
        return found


def grouped(
    held: Mapping[int, Sequence[str]], keys: Mapping[str, Tensor], fresh: Sequence[str], capacity: int, count: int
) -> dict[int, list[str]]:
    """The edits of each slot once those of `fresh` have come to those `held`, one after the other, by slot number.

    keys: `[r]` unit, of each edit. count: the number of the next slot that is opened.
    """
    groups = {number: list(members) for number, members in held.items()}
    home = {i: number for number, members in groups.items() for i in members}
    for edit_id in fresh:
        others = list(home)
        cosines = torch.stack([keys[edit_id], *(keys[i] for i in others)])[1:] @ keys[edit_id]
        nearest = list(dict.fromkeys(home[others[i]] for i in cosines.argsort(descending=True, stable=True).tolist()))
        if not others or cosines.max() < NEAR:
            nearest = [number for number in nearest if len(groups[number]) < capacity] or [count]
        parts = {nearest[0]: [*groups.get(nearest[0], ()), edit_id]}
        if len(parts[nearest[0]]) > capacity:
            oldest, other = halves(parts[nearest[0]], keys)
            parts = {nearest[0]: oldest, count: other}
        groups |= parts
        home |= {i: number for number, members in parts.items() for i in members}
        count += count in parts
    return groups


def halves(members: Sequence[str], keys: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Two or more edits in two groups of which neither is empty, each in its order; the first edit is in the first.

    2-means of unit keys: begun from each edit and the one least like it, and of these the one that settles best.
    """
    own = torch.stack([keys[i] for i in members])
    centres = torch.stack([own, own[(own @ own.T).argmin(1)]])  # [2, begun, r]
    for _ in range(ROUNDS):
        nearer = centres[0] @ own.T >= centres[1] @ own.T  # [begun, members]
        sums = torch.stack([nearer.float() @ own, (~nearer).float() @ own])
        centres = normalize(sums, dim=-1)
    first = nearer[sums.norm(dim=-1).sum(0).argmax()]
    if first.all() or not first.any():  # all are alike
        first = torch.arange(len(own)) < (len(own) + 1) // 2
    first = first == first[0]
    sides = ([i for i, side in zip(members, first.tolist(), strict=True) if side is wanted] for wanted in (True, False))
    return next(sides), next(sides)


def _tasks(state: MemoryState, edits: Sequence[Edit], groups: Mapping[int, Sequence[str]]) -> list[SlotTask]:
    """Of the slots that are to hold `groups` those that hold something else; begun anew where an edit has left."""
    known = {edit.id: edit for edit in (*state.edits, *edits)}
    tasks = []
    for number, members in sorted(groups.items()):
        slot = state.slots[number] if number < len(state.slots) else None
        held = [] if slot is None else list(slot.edit_ids)
        if list(members) != held:
            start = slot if list(members[: len(held)]) == held else None
            tasks.append(SlotTask(id=number, edits=tuple(known[i] for i in members), start=start))
    return tasks
