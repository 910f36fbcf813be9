"""Sharding: which edits share a slot. The last slot is filled, then a new one is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wise.config import WiseConfig
from wise.edits import Edit
from wise.memory.state import MemoryState
from wise.training.writers.base import SlotTask

FEATURES_PER_EDIT = 44
"""Input features of the value projection per edit of a slot, if `slot_capacity` is None.

An unrelated token scores about sqrt(edits / features) of what an edited one does, so a slot that holds more than a
small share of its features cannot keep silent.
"""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Fills slots in the order of the stream."""

    capacity: int | None
    """Edits a slot may hold; None for any number."""

    @classmethod
    def of(cls, config: WiseConfig, features: int) -> Sharding:
        """In `merge` all edits share one slot, in `hybrid` none do. features: f of the value projection."""
        if config.mode == "merge":
            return cls(capacity=None)
        if config.mode == "hybrid":
            return cls(capacity=1)
        return cls(capacity=config.slot_capacity or max(8, features // FEATURES_PER_EDIT))

    def tasks(self, state: MemoryState, edits: Sequence[Edit]) -> list[SlotTask]:
        """The slots to be written for `edits` to join those of `state`, ascending; new slots follow on its own."""
        held = list(state.slots[-1].edit_ids) if state.slots else []
        size = self.capacity or len(held) + len(edits)
        if len(held) >= size:
            held = []
        first = len(state.slots) - bool(held)
        joined = [edit for edit in state.edits if edit.id in held] if held else []
        known = {edit.id: edit for edit in (*joined, *edits)}
        ids = [*held, *(edit.id for edit in edits)]
        tasks = []
        for number, at in enumerate(range(0, len(ids), size), start=first):
            start = state.slots[number] if number < len(state.slots) else None
            tasks.append(SlotTask(id=number, edits=tuple(known[i] for i in ids[at : at + size]), start=start))
        return tasks
