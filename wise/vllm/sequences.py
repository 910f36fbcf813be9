"""The sequences that a worker follows: the requests that carry an edit, and the rows that are added at each step.

Uses no type of vLLM. A request that carries nothing is not followed and costs one look-up of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wise.memory.side_memory import NO_SLOT
from wise.memory.state import MemoryState
from wise.router.course import Course, Plan
from wise.router.hybrid import HybridRouter
from wise.vllm.addition import Addition
from wise.vllm.runners import StepLayout

PROBE = "probe"
"""Carried by the request of the self-test."""
PROBE_SIZE = 1e3
"""Magnitude of the numbers that a probe adds, with alternating sign, so that every later layer passes an effect on."""
MOST_RECORDED = 4096
"""Requests whose additions are recorded at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedMemory:
    """The memory of one namespace in one version."""

    state: MemoryState
    router: HybridRouter

    def value(self, slot: int, place: int) -> Tensor:
        """`[d]`."""
        values: Tensor = self.state.slots[slot].values[place]  # type: ignore[attr-defined]
        return values


class FollowedSequence:
    """One request: its ids as they are read, and their course under its memory."""

    def __init__(self, prompt: Sequence[int], memory: ServedMemory, plan: Plan) -> None:
        self.memory = memory
        self._ids = np.array([*prompt], dtype=np.int64)
        self._length = len(prompt)
        """The number of known ids."""
        self._course = Course(memory.router, plan)

    def read(self, ids: np.ndarray | None, first: int, count: int) -> list[tuple[int, int, int]]:
        """Reads `count` tokens from position `first` on. Returns position, slot and value index of each addition.

        ids: of these tokens; None if they are of the prompt, which is known.
        """
        end = first + count
        if first > self._length:
            raise RuntimeError(f"vLLM reads token {first} of a sequence of which {self._length} are known")
        if ids is not None:
            if end > len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros(max(end, 256), dtype=np.int64)])
            self._ids[first:end] = ids
            self._length = max(self._length, end)
        steps = self._course.read(self._ids[:end], first)
        return [(place, decision.slot, value) for place, decision, value in steps if value != NO_SLOT]

    def knows(self, end: int) -> bool:
        """Whether the ids up to `end` belong to the prompt."""
        return end <= self._course.planned


class FollowedSequences:
    """All followed sequences of a worker. A runner's adapter (`wise.vllm.runners`) calls it at each step."""

    def __init__(self, addition: Addition, *, record: bool = False) -> None:
        """record: record the additions of each request, for a check."""
        self._addition = addition
        self._probe = PROBE_SIZE * torch.tensor([1.0, -1.0]).repeat(addition.width // 2 + 1)[: addition.width]
        self.memories: dict[tuple[int, str], ServedMemory] = {}
        """By version and namespace."""
        self._sequences: dict[str, FollowedSequence | int] = {}
        """By request; for a probe, its position."""
        self._not_laid_out: set[str] = set()
        """Followed requests of the current step whose rows are not laid out yet."""
        self.recorded: dict[str, dict[int, str]] | None = {} if record else None
        """By request and position, the edit that was added."""

    @property
    def adds(self) -> bool:
        """Whether this rank adds; other ranks need no memory."""
        return self._addition.adds

    def wants(self, request: str) -> bool:
        """Whether the adapter must lay out the rows of a request."""
        return request in self._sequences

    def begin(self, scheduled: Any) -> None:
        """Begins a step. scheduled: vLLM's SchedulerOutput, with its new and its finished requests."""
        if not self.adds:
            return
        for request in scheduled.finished_req_ids:
            self._sequences.pop(request, None)
        for new in scheduled.scheduled_new_reqs:
            carried = ((new.sampling_params and new.sampling_params.extra_args) or {}).get("wise")
            if carried and new.req_id not in self._sequences:
                self._follow(new.req_id, new.prompt_token_ids, carried)
        self._not_laid_out = {request for request in self._sequences if request in scheduled.num_scheduled_tokens}
        self._addition.clear()

    def _follow(self, request: str, prompt: Sequence[int], carried: Mapping[str, Any]) -> None:
        if carried.get(PROBE):
            self._sequences[request] = len(prompt) - 1
            return
        key = int(carried["version"]), str(carried["namespace"])
        if key not in self.memories:
            versions = sorted({version for version, _ in self.memories})
            raise RuntimeError(f"a request carries version {key[0]} of {key[1]!r}; versions {versions} are loaded")
        plan = Plan.from_json(carried["plan"])
        if plan.length != len(prompt):
            raise RuntimeError(f"a request carries a plan of {plan.length} tokens and has {len(prompt)}")
        self._sequences[request] = FollowedSequence(prompt, self.memories[key], plan)

    def lay_out(self, layout: StepLayout) -> None:
        """Prepares the additions of a step, once its tokens are known."""
        self._not_laid_out -= {row.request for row in layout.rows}
        rows: list[int] = []
        values: list[Tensor] = []
        ids = None
        for row in layout.rows:
            sequence = self._sequences[row.request]
            if isinstance(sequence, int):
                place = sequence - row.first
                if 0 <= place < row.count:
                    rows.append(row.start + place)
                    values.append(self._probe)
                continue
            new = None
            if not sequence.knows(row.first + row.count):
                ids = layout.ids.cpu().numpy() if ids is None else ids
                new = ids[row.start : row.start + row.count]
            added = sequence.read(new, row.first, row.count)
            for position, slot, value in added:
                rows.append(row.start + position - row.first)
                values.append(sequence.memory.value(slot, value))
            self._record(row.request, row.first, sequence, added)
        self._addition.prepare(rows, values)

    def end(self) -> None:
        """Ends a step. Raises RuntimeError if an edit was not added: vLLM must not answer without it."""
        if self._not_laid_out:
            count = len(self._not_laid_out)
            raise RuntimeError(f"vLLM ran a step of {count} requests with edits and did not lay it out")
        self._addition.check()
        self._addition.clear()

    def _record(
        self, request: str, first: int, sequence: FollowedSequence, added: Sequence[tuple[int, int, int]]
    ) -> None:
        if self.recorded is None:
            return
        additions = self.recorded.pop(request, {})
        for place in [place for place in additions if place >= first]:
            del additions[place]  # of a draft that was refused
        additions |= {place: sequence.memory.state.slots[slot].edit_ids[0] for place, slot, _ in added}
        self.recorded[request] = additions
        while len(self.recorded) > MOST_RECORDED:
            del self.recorded[next(iter(self.recorded))]

    def drop(self, version: int) -> None:
        """Removes a version. Requests that carry it keep it."""
        for key in [key for key in self.memories if key[0] == version]:
            del self.memories[key]

