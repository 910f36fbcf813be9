"""The truth about a memory: its edits, slots and keys, and the space in which keys are compared.

Everything that serves (the stacked weights, the resident key matrix, the FAISS index) is derived from this.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from wise.edits import Edit
from wise.memory.key_space import KeySpace
from wise.memory.keys import KeyIndex
from wise.memory.slot import Slot


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryState:
    """An immutable snapshot of all that has been edited."""

    edits: tuple[Edit, ...] = ()
    """The live edits, in the order in which they came."""
    slots: tuple[Slot, ...] = ()
    """Slot i has id i."""
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    """Edit id -> `[m, r]` unit keys, one for each position at which the edit must speak; in `hybrid` a unit subject
    key and a unit relation key side by side."""
    key_space: KeySpace | None = None
    """Of activations at the edited layer."""
    subject_space: KeySpace | None = None
    """Of the base's value vectors (`hybrid`)."""

    @property
    def edit_ids(self) -> tuple[str, ...]:
        return tuple(edit.id for edit in self.edits)

    @cached_property
    def index(self) -> KeyIndex:
        """The keys with their slots, searchable."""
        index = KeyIndex(next(iter(self.keys.values())).shape[1] if self.keys else 1)
        index.add_all((edit_id, slot.id, self.keys[edit_id]) for slot in self.slots for edit_id in slot.edit_ids)
        return index

    def without(self, edit_ids: Collection[str]) -> MemoryState:
        """The snapshot in which these edits are no longer live. A slot that was an edit's own goes with it."""
        slots = [slot.without(edit_ids) for slot in self.slots]
        kept = [slot for slot in slots if slot.edit_ids or slot.shared]
        return replace(
            self,
            edits=tuple(edit for edit in self.edits if edit.id not in edit_ids),
            slots=tuple(replace(slot, id=i) for i, slot in enumerate(kept)),
            keys={i: keys for i, keys in self.keys.items() if i not in edit_ids},
        )
