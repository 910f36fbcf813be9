"""The interface of a writer, which fits the slots of edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from wise.edits import Edit
from wise.memory.slot import Slot

Progress = Callable[[int], None]
"""Called with the number of edits that are done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlotTask:
    """A slot to be written."""

    id: int
    edits: tuple[Edit, ...]
    """All edits the slot is to hold: those it held before, then the new ones."""
    start: Slot | None = None
    """The slot as it was before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """The result of fitting one edit."""

    fitted: bool
    """With the slot active, the base decodes the target, and the score is high enough."""
    steps: int
    """Optimisation steps in which this edit was worked on."""
    loss: float
    """Mean negative log-likelihood of the target in nats at the end."""
    keys: Tensor
    """`[m, r]` the edit's keys, float32 on the CPU."""
    score: float
    """A routing score that the edit reaches at every token where it must be active, with a margin for rounding."""
    also_answers: tuple[str, ...] = ()
    """Other questions about its subject that the edit would answer."""
    tried: str = ""
    """The attempt that was made, for reports."""


class Writer(Protocol):
    """Writes slots that own separate parameters; many are written in one batch."""

    efforts: int
    """Number of efforts, each greater than the one before."""

    def write(
        self, tasks: Sequence[SlotTask], progress: Progress | None = None, effort: int = 0
    ) -> list[tuple[Slot, list[Written]]]:
        """One new slot per task with the result of each of its edits, in the order of the tasks.

        effort: counted from 0; a greater one takes longer, for edits that failed with less.
        """
        ...
