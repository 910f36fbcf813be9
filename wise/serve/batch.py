"""Rows of unlike length that share the model's steps: one left-padded cache, joined and left between steps.

transformers' continuous batching is not used, for three reasons that its source gives: it runs all requests of a step
under one state of the model, so that a request could not keep the memory it began with unless all are drained at each
edit; it draws for all requests from one seed; and whether it draws at all is one setting of the manager. What is
here runs any causal LM that takes a cache and a mask, with whatever attention it has.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from wise.memory.batched_memory import BatchedMemory
from wise.memory.layer import execution_device
from wise.memory.sequences import CACHE_NAMES
from wise.memory.side_memory import SideMemory
from wise.training.generation import left_pad


class Member(Protocol):
    """Who has a row in a batch."""

    @property
    def memory(self) -> SideMemory | None: ...


M = TypeVar("M", bound=Member)


class Runner:
    """The model with a memory for each row, and how its forward is called."""

    def __init__(self, model: PreTrainedModel, memory: BatchedMemory) -> None:
        """memory: it stands in the model's layer already."""
        taken = inspect.signature(model.forward).parameters
        self.model: Any = model
        self.memory = memory
        self.device = execution_device(model)
        self.cache_name = next(name for name in CACHE_NAMES if name in taken)
        self.positions = "position_ids" in taken

    def run(self, memories: Sequence[SideMemory | None], ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """New ids `[rows, n]` behind the cache, mask `[rows, all]` -> logits after the last `[rows, vocabulary]`."""
        self.memory.rows = memories
        places = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]} if self.positions else {}
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_name: cache},
            **places,
        )
        logits: Tensor = out.logits[:, -1]
        return logits.float()


class Batch(Generic[M]):
    """Members, each a row; their cache and its mask `[rows, tokens]`."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.members: list[M] = []
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=runner.device)
        self.cache = DynamicCache()

    def __len__(self) -> int:
        return len(self.members)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return self.mask.shape[1]

    @torch.no_grad()
    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Runs new tokens `[rows, n]`, mask of the same shape -> logits after the last, `[rows, vocabulary]`."""
        self.mask = torch.cat([self.mask, mask], dim=1)
        return self.runner.run([member.memory for member in self.members], ids, self.mask, self.cache)

    def join(self, other: Batch[M]) -> None:
        """Takes in the members of another batch, which is used up."""
        if not other.members:
            return
        if not self.members:
            self.members, self.mask, self.cache = other.members, other.mask, other.cache
            return
        width = max(self.width, other.width)
        self.mask = torch.cat([_widened(self.mask, width), _widened(other.mask, width)])
        for own, new in zip(_layers(self.cache), _layers(other.cache), strict=True):
            own.keys = torch.cat([_longer(own.keys, width), _longer(new.keys, width)])
            own.values = torch.cat([_longer(own.values, width), _longer(new.values, width)])
        self.members = [*self.members, *other.members]

    def keep(self, rows: Sequence[int]) -> None:
        """Lets all others go, and with them the columns that were theirs alone."""
        if len(rows) == len(self.members):
            return
        if not rows:
            self.members, self.mask, self.cache = [], self.mask[:0, :0], DynamicCache()
            return
        places = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[places]
        unused = int((mask.cumsum(-1) == 0).sum(-1).min())
        self.members = [self.members[row] for row in rows]
        self.mask = mask[:, unused:].clone()
        for layer in _layers(self.cache):
            layer.keys = layer.keys[places, :, unused:].clone()
            layer.values = layer.values[places, :, unused:].clone()


class Prefill(Generic[M]):
    """Prompts on their way into a cache, some columns at a time, so that those who decode wait for no long prompt."""

    def __init__(self, runner: Runner, members: Sequence[M], prompts: Sequence[Sequence[int]], chunk: int) -> None:
        """chunk: tokens of one step, over all rows; a step is one column at the least."""
        self.batch = Batch[M](runner)
        self.batch.members = list(members)
        self.batch.mask = self.batch.mask.new_zeros(len(members), 0)
        self._ids, self._mask = left_pad(prompts, device=runner.device)
        self._columns = max(1, chunk // len(members))
        self.done = 0
        """Columns that are in the cache."""

    @property
    def last(self) -> int:
        """Columns that the next step runs."""
        return min(self._columns, self._ids.shape[1] - self.done)

    def step(self) -> Tensor | None:
        """Runs the next columns; the logits after the prompts `[rows, vocabulary]` once all are through."""
        end = self.done + self.last
        logits = self.batch.feed(self._ids[:, self.done : end], self._mask[:, self.done : end])
        self.done = end
        return logits if end == self._ids.shape[1] else None


def _layers(cache: DynamicCache) -> list[Any]:
    return list(cache.layers)


def _widened(mask: Tensor, width: int) -> Tensor:
    return pad(mask, (width - mask.shape[1], 0))


def _longer(states: Tensor, width: int) -> Tensor:
    """`[rows, heads, tokens, size]`, padded before its tokens."""
    return pad(states, (0, 0, width - states.shape[2], 0))
