"""The interface of a writer: slots in, slots out, and what happened to each edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from wise.edits import Edit
from wise.memory.slot import Slot

Progress = Callable[[int], None]
"""Called with the number of edits that are through."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlotTask:
    """A slot to be written."""

    id: int
    edits: tuple[Edit, ...]
    """All edits the slot is to hold: those it held before, then the new ones."""
    start: Slot | None = None
    """What it was before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """What fitting did for one edit."""

    fitted: bool
    """The target is what the base decodes with the slot speaking where it must, and the score is high enough."""
    steps: int
    """Optimisation steps in which this edit was worked on."""
    loss: float
    """Mean negative log-likelihood of the target in nats at the end."""
    keys: Tensor
    """`[m, r]` the edit's keys, float32 on the CPU."""
    score: float
    """A routing score that it reaches, as it will be served, wherever it must speak and a little around it."""
    also_answers: tuple[str, ...] = ()
    """Other questions about its subject that are taken for the edit's."""
    tried: str = ""
    """What was done for it, for a report of edits that do not hold."""


class Writer(Protocol):
    """Writes slots that own separate parameters; many are written in one batch."""

    efforts: int
    """Ways of trying that it has, one harder than the other."""

    def write(
        self, tasks: Sequence[SlotTask], progress: Progress | None = None, effort: int = 0
    ) -> list[tuple[Slot, list[Written]]]:
        """One new slot per task, and what happened to each of its edits, in the order of the tasks.

        effort: from 0, for edits that did not hold with less.
        """
        ...
