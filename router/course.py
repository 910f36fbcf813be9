"""The course of one sequence: which edits speak at which of its tokens, followed as the sequence grows.

For an engine that runs the model itself and tells only which ids it reads. What a prompt says is decided before it is
run, as a `Plan`: where answers begin, and which edits give them. A plan is small and holds no text, so it can go with a
request into another process. Whether an answer goes on is then a comparison of ids. A new answer can only begin in
generated text where `Plan.open_ended` says so; there the router is asked again.

The decisions are those of `HybridRouter`, since a decision depends on the ids up to its token alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from wise.memory.sequences import Ids
from wise.memory.state import MemoryState
from wise.router.chat_template import NEVER
from wise.router.hybrid import Decision, HybridRouter

Step = tuple[int, Decision, int]
"""A position, the decision there, and which value of the decision's slot is added; NO_SLOT where none is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is decided about a prompt before it is run, under one memory."""

    length: int
    """Tokens of the prompt."""
    chat_start: int
    """The token from which on the prompt is a chat; `length` if it is none."""
    begins: tuple[tuple[int, int], ...]
    """The last token before each answer, and the slot of the edit that gives it; ascending."""
    open_ended: bool
    """Whether an answer may also begin in what is generated."""

    @property
    def idle(self) -> bool:
        """Nothing can ever be added to this sequence."""
        return not self.begins and not self.open_ended

    def to_json(self) -> dict[str, Any]:
        """All that `from_json` needs, as numbers and lists."""
        return {**vars(self), "begins": [list(pair) for pair in self.begins]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises ValueError for anything else."""
        try:
            begins = tuple((int(begin), int(slot)) for begin, slot in data["begins"])
            plan = cls(**{**data, "begins": begins})
            length, inside = plan.length, 0 <= plan.chat_start <= plan.length
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{data!r:.200} is no plan: {error!r}") from error
        inside = inside and all(0 <= at < length and slot >= 0 for at, slot in begins)
        if not inside or sorted(begins) != list(begins):
            raise ValueError(f"{data!r:.200} is no plan: ascending positions of its prompt were expected")
        return plan

    def digest(self, state: MemoryState) -> str:
        """Identifies what is added to the prompt and to the answers that begin in it: the same digest over the same ids
        is the same computation, also under different versions of a memory.

        state: the memory's; its slots are those of `begins`.
        """
        digest = hashlib.sha256()
        for begin, slot in self.begins:
            digest.update(begin.to_bytes(8, "little"))
            for name, tensor in sorted(state.slots[slot].tensors().items()):
                digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


class Course:
    """Follows one sequence under one memory. Not safe to use from several threads at once."""

    def __init__(self, router: HybridRouter, plan: Plan | None = None) -> None:
        """plan: of the sequence's prompt, if it was made elsewhere; otherwise the prompt is decided as it is read."""
        self._router = router
        self.planned = 0 if plan is None else plan.length
        """Tokens about which everything is decided."""
        self._open_ended = plan is None or plan.open_ended
        self._chat_start = NEVER if plan is None or plan.chat_start == plan.length else plan.chat_start
        self._quiet: int | None = None
        """So many tokens were searched last, and nothing in them can ask; None if something can."""
        self._begins: dict[int, Decision | None] = {
            # Open decisions that were made elsewhere: their scores went into their provenance there.
            begin: Decision(slot=slot, score=1.0, threshold=0.0)
            for begin, slot in (() if plan is None else plan.begins)
        }
        """Of the answers known so far, by the last token before each: its decision."""

    def read(self, ids: Ids, first: int) -> list[Step]:
        """What is decided at the tokens from `first` on.

        ids: all tokens up to the last that is read now; first: the first of these. What was read earlier at `first` or
        later is forgotten: a draft that was refused, or a sequence that is computed again.
        """
        start = max(first, self.planned)
        new: Sequence[int] = ()
        if self._open_ended and start < len(ids):
            if start != self._quiet or not self._router.is_quiet(ids[start:]):
                self._chat_start, new = self._router.begins(ids, start)
                self._begins = {begin: decision for begin, decision in self._begins.items() if begin < start}
            self._quiet = None if new else len(ids)
        steps = list(self._router.answer_places(ids, first, [*self._begins, *new], self._chat_start, self._begins))
        self._begins = {begin: answer for begin, answer in self._begins.items() if answer is not None and answer.open}
        return steps

    def plan(self, prompt: Sequence[int], stops: Collection[int]) -> Plan:
        """The plan of the prompt, which was read.

        stops: ids at which generation ends. A chat whose openings contain one of them cannot begin a turn by itself.
        """
        template = self._router.inputs.template
        chat_start = min(self._chat_start, len(prompt))
        settled = chat_start < len(prompt) and template is not None and not set(stops).isdisjoint(template.opening)
        begins = tuple((begin, answer.slot) for begin, answer in self._begins.items() if answer and begin < len(prompt))
        return Plan(length=len(prompt), chat_start=chat_start, begins=begins, open_ended=not settled)
