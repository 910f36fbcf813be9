"""The state of a memory: its edits, slots and keys, and the space in which keys are compared.

Everything that serves (the stacked weights, the resident key matrix, the router's catalog) is derived from this.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress, count
from operator import attrgetter, is_not

import torch
from torch import Tensor

from wise.edits import Edit
from wise.errors import EditError, did_you_mean
from wise.memory.key_space import Space
from wise.memory.slot import Slot, bitwise_equal


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryState:
    """An immutable snapshot of all that has been edited."""

    edits: tuple[Edit, ...] = ()
    """The live edits, in the order in which they came."""
    slots: tuple[Slot, ...] = ()
    """Slot i has id i."""
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    """Edit id -> `[k, r]` unit keys: in `retrieve` float32, one for each position at which the edit must speak; in
    `hybrid` float16, one for each wording that is known to ask for it."""
    key_space: Space | None = None
    """What keys were made in: of activations at the edited layer (`retrieve`), or of a relation reader (`hybrid`)."""

    @cached_property
    def edit_ids(self) -> tuple[str, ...]:
        return tuple(edit.id for edit in self.edits)

    @cached_property
    def by_id(self) -> Mapping[str, Edit]:
        return {edit.id: edit for edit in self.edits}

    @cached_property
    def _filled(self) -> bool:
        return all(map(attrgetter("edit_ids"), self.slots))

    @cached_property
    def key_owners(self) -> tuple[str, ...]:
        """The edit that each key belongs to, in the order of `key_matrix`."""
        return tuple(edit_id for edit_id in sorted(self.keys) for _ in range(len(self.keys[edit_id])))

    def key_matrix(self) -> tuple[Tensor, Tensor]:
        """All keys `[n, r]` and the slot of each `[n]` int64, by edit id and position; there is one at least."""
        slots = {edit_id: slot.id for slot in self.slots for edit_id in slot.edit_ids}
        return (
            torch.cat([self.keys[edit_id] for edit_id in sorted(self.keys)]),
            torch.tensor([slots[edit_id] for edit_id in self.key_owners]),
        )

    def live(self, edit_ids: Iterable[str]) -> tuple[str, ...]:
        """These ids, each once. Raises EditError for one that no live edit has, or where there are none."""
        wanted = tuple(dict.fromkeys(edit_ids))
        if not wanted:
            raise EditError("no edit was named: give the id of at least one that is live")
        live = {*self.edit_ids}
        for edit_id in wanted:
            if edit_id not in live:
                hint = did_you_mean(str(edit_id), live) if live else "no edit is"
                raise EditError(f"edit {edit_id!r} is not live: {hint}")
        return wanted

    def sharing(self, edit_ids: Collection[str]) -> tuple[str, ...]:
        """The other edits of those slots that bear traces of these ones, in their order."""
        if not edit_ids:
            return ()
        removed = {*edit_ids}
        touched = (slot for slot in self.slots if slot.shared and not removed.isdisjoint(slot.edit_ids))
        return tuple(edit_id for slot in touched for edit_id in slot.edit_ids if edit_id not in removed)

    def same(self, other: MemoryState) -> bool:
        """Whether another snapshot serves the same edits with the same tensors, bit for bit."""
        if self is other:
            return True
        return (
            len(self.edits) == len(other.edits)
            and len(self.slots) == len(other.slots)
            and (self.key_space is other.key_space or self.key_space == other.key_space)
            and all(map(bitwise_equal, self.edits, other.edits))
            and self.keys.keys() == other.keys.keys()
            and all(bitwise_equal(keys, other.keys[i]) for i, keys in self.keys.items())
            and all(map(Slot.same, self.slots, other.slots))
        )

    def without(self, edit_ids: Collection[str]) -> MemoryState:
        """The snapshot in which these edits are no longer live; a slot that holds no other goes with them.

        A slot that they share with others stays as it was written, and with it their trace (`sharing`). What does not
        change is the very same object, so that it is not looked at again.
        """
        edit_ids = frozenset(edit_ids)
        if not edit_ids and self._filled:
            return self
        kept = [slot for slot in (slot.without(edit_ids) for slot in self.slots) if slot.edit_ids]
        return replace(
            self,
            edits=tuple(edit for edit in self.edits if edit.id not in edit_ids),
            slots=tuple(slot.numbered(i) for i, slot in enumerate(kept)),
            keys={i: keys for i, keys in self.keys.items() if i not in edit_ids},
        )


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items, from the first on, are the very same objects in both."""
    return next(compress(count(), map(is_not, one, other)), min(len(one), len(other)))


@contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection within a `with` block that makes a memory: half of the time would go to it, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
