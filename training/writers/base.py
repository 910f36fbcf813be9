"""The interface of a writer, which fits the slots of edits, and the sharding that says which edits share a slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from wise.config import WiseConfig
from wise.edits import Edit
from wise.memory.slot import Slot
from wise.memory.state import MemoryState

FEATURES_PER_EDIT = 44
"""Input features of the edited module per edit of a slot, if `slot_capacity` is None.

An unrelated token scores about sqrt(edits / features) of what an edited one does, so a slot that holds more than a
small share of its features cannot keep silent.
"""

EditsDone = Callable[[int], None]
"""Called with the number of edits that are done."""


def silent(done: int) -> None:
    """An `EditsDone` that shows nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlotTask:
    """A slot to be written."""

    id: int
    edits: tuple[Edit, ...]
    """All edits the slot is to hold: those it held before, then the new ones."""
    start: Slot | None = None
    """The slot as it was before."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Fills slots in the order of the stream: the last slot first, then new ones."""

    capacity: int | None
    """Edits a slot may hold; None for any number."""

    @classmethod
    def of(cls, config: WiseConfig, features: int) -> Sharding:
        """In `merge` all edits share one slot, in `hybrid` none do. features: f of the edited module."""
        if config.mode == "merge":
            return cls(capacity=None)
        if config.mode == "hybrid":
            return cls(capacity=1)
        return cls(capacity=config.slot_capacity or max(8, features // FEATURES_PER_EDIT))

    def tasks(self, state: MemoryState, edits: Sequence[Edit]) -> list[SlotTask]:
        """The slots to be written for `edits` to join those of `state`, ascending; new slots follow on its own."""
        last_ids = list(state.slots[-1].edit_ids) if state.slots else []
        size = self.capacity or len(last_ids) + len(edits)
        if len(last_ids) >= size:
            last_ids = []
        first = len(state.slots) - bool(last_ids)
        joined = [edit for edit in state.edits if edit.id in last_ids] if last_ids else []
        by_id = {edit.id: edit for edit in (*joined, *edits)}
        ids = [*last_ids, *(edit.id for edit in edits)]
        tasks = []
        for number, at in enumerate(range(0, len(ids), size), start=first):
            start = state.slots[number] if number < len(state.slots) else None
            tasks.append(SlotTask(id=number, edits=tuple(by_id[i] for i in ids[at : at + size]), start=start))
        return tasks


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """The result of fitting one edit."""

    fitted: bool
    """With the slot active, the base decodes the target, and the score is high enough."""
    steps: int
    """Optimisation steps in which this edit was worked on."""
    loss: float
    """Mean negative log-likelihood of the target in nats at the end."""
    keys: Tensor
    """`[m, r]` the edit's keys on the CPU, in the precision of `MemoryState.keys`."""
    score: float
    """A routing score that the edit reaches at every token where it must be active, with a margin for rounding."""
    tried: str = ""
    """The attempt that was made, for reports."""


SlotResults = list[tuple[Slot, list[FitResult]]]
"""A new slot for each task, and the result of each of its edits."""


class Writer(Protocol):
    """Writes slots that own separate parameters; many are written in one batch."""

    efforts: int
    """Number of efforts, each greater than the one before."""

    @property
    def at_once(self) -> int:
        """Edits that are best written together: more would wait for each other and take no less time."""
        ...

    def write(self, tasks: Sequence[SlotTask], progress: EditsDone = silent, effort: int = 0) -> SlotResults:
        """Writes the slots, in the order of the tasks.

        effort: counted from 0; a greater one takes longer, for edits that failed with less.
        """
        ...
