"""The engine that runs the model in this process: one thread, step by step, for all requests at once.

A step decodes one token of every sequence and reads some columns of the newest prompts. Sequences join and leave
between steps. They share one left-padded cache.

It does not use transformers' continuous batching. That runs all requests of a step under one state of the model, so
requests could not keep the memory that they began with; it draws for all requests from one seed; and whether it draws
at all is one setting of its manager.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from wise.memory.batched_memory import BatchedMemory, RoutingRecord
from wise.memory.modules import execution_device
from wise.memory.sequences import CACHE_NAMES
from wise.memory.side_memory import SideMemory
from wise.model import WiseModel
from wise.serving.engines import (
    BusyError,
    DeadlineError,
    Delta,
    EngineError,
    GenerationRequest,
    Job,
    MemoryHandle,
    RoutedToken,
)
from wise.serving.engines.sequence import GeneratedSequence
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings
from wise.training.generation import left_pad

logger = logging.getLogger(__name__)

JOIN_TIMEOUT = 5.0
"""Seconds that the thread has to end."""


class Runner:
    """Calls the model's forward with a memory for each row."""

    def __init__(self, model: PreTrainedModel, memory: BatchedMemory) -> None:
        """memory: is in the model's layer already."""
        parameters = inspect.signature(model.forward).parameters
        self.model: Any = model
        self.memory = memory
        self.device = execution_device(model)
        self.cache_name = next(name for name in CACHE_NAMES if name in parameters)
        self.takes_positions = "position_ids" in parameters

    def run(self, memories: Sequence[SideMemory | None], ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """New ids `[rows, n]` behind the cache, mask `[rows, all]` -> logits after the last `[rows, vocabulary]`."""
        self.memory.rows = memories
        inputs: dict[str, Any] = {self.cache_name: cache}
        if self.takes_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **inputs)
        logits: Tensor = out.logits[:, -1]
        return logits.float()


class Batch:
    """Members, one for each row, with their cache and its mask `[rows, tokens]`."""

    def __init__(self, runner: Runner, members: Sequence[GeneratedSequence] = ()) -> None:
        self.runner = runner
        self.members: list[GeneratedSequence] = list(members)
        self.mask = torch.zeros(len(members), 0, dtype=torch.long, device=runner.device)
        self.cache = DynamicCache()

    def __len__(self) -> int:
        return len(self.members)

    @torch.no_grad()
    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Runs new tokens `[rows, n]`, mask of the same shape -> logits after the last, `[rows, vocabulary]`."""
        self.mask = torch.cat([self.mask, mask], dim=1)
        return self.runner.run([member.memory for member in self.members], ids, self.mask, self.cache)

    def join(self, other: Batch) -> None:
        """Takes over the members of another batch, which must not be used afterwards."""
        if not other.members:
            return
        if not self.members:
            self.members, self.mask, self.cache = other.members, other.mask, other.cache
            return
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)])
        for own, new in zip(_layers(self.cache), _layers(other.cache), strict=True):
            own.keys = torch.cat([_widened(own.keys, width), _widened(new.keys, width)])
            own.values = torch.cat([_widened(own.values, width), _widened(new.values, width)])
        self.members = [*self.members, *other.members]

    def keep(self, rows: Sequence[int]) -> None:
        """Removes all other rows, and the columns that only they used."""
        if len(rows) == len(self.members):
            return
        if not rows:
            self.members, self.mask, self.cache = [], self.mask[:0, :0], DynamicCache()
            return
        kept = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[kept]
        unused = int((mask.cumsum(-1) == 0).sum(-1).min())
        self.members = [self.members[row] for row in rows]
        self.mask = mask[:, unused:].clone()
        for layer in _layers(self.cache):
            layer.keys = layer.keys[kept, :, unused:].clone()
            layer.values = layer.values[kept, :, unused:].clone()


def _layers(cache: DynamicCache) -> list[Any]:
    return list(cache.layers)


def _widened(states: Tensor, width: int) -> Tensor:
    """`[rows, heads, tokens, size]`, padded before its tokens."""
    return pad(states, (0, 0, width - states.shape[2], 0))


class Prefill:
    """Reads prompts into a cache a few columns at a time, so that a long prompt does not hold up decoding."""

    def __init__(
        self, runner: Runner, members: Sequence[GeneratedSequence], prompts: Sequence[Sequence[int]], chunk: int
    ) -> None:
        """chunk: tokens of one step, over all rows; a step reads one column at least."""
        self.batch = Batch(runner, members)
        self._ids, self._mask = left_pad(prompts, device=runner.device)
        self._columns = max(1, chunk // len(members))
        self.done = 0
        """Columns that are in the cache."""

    def step(self) -> Tensor | None:
        """Runs the next columns; the logits after the prompts `[rows, vocabulary]` once all are read."""
        end = min(self.done + self._columns, self._ids.shape[1])
        logits = self.batch.feed(self._ids[:, self.done : end], self._mask[:, self.done : end])
        self.done = end
        return logits if end == self._ids.shape[1] else None


class LocalEngine:
    """Runs `model`, which nothing else may use from then on. Implements `Engine`."""

    def __init__(self, model: WiseModel, settings: Settings, metrics: Metrics) -> None:
        self._tokenizer, self._ends = model.tokenizer, model.encoder.stops
        self._settings, self._metrics = settings, metrics
        self._memory = BatchedMemory(None if model.inputs is None else model.inputs.sequences)
        model.layer.memory = self._memory
        model.model.eval()  # type: ignore[no-untyped-call]
        self._runner = Runner(model.model, self._memory)
        self._batch = Batch(self._runner)
        self._prefill: Prefill | None = None
        self._queue: deque[GeneratedSequence] = deque()
        self._changed = threading.Condition()
        """Guards the queue and `_open`, which other threads change."""
        self._open = True
        self._seconds_per_answer = 1.0
        """A moving average."""
        self._out: list[tuple[Job, Delta | Exception]] = []
        self._thread = threading.Thread(target=self._run, name="wise-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._thread.join(JOIN_TIMEOUT)

    def prepare(self, handles: Sequence[MemoryHandle]) -> None:
        """Nothing is to be done: a request brings its memory."""

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> int:
        return len(self._queue) + len(self._running())

    def submit(self, requests: Sequence[GenerationRequest], *, seconds: float) -> Job:
        job = Job(loop=asyncio.get_running_loop(), deadline=time.monotonic() + seconds)
        new = [GeneratedSequence(job, i, one, self._tokenizer, self._ends) for i, one in enumerate(requests)]
        size = self._settings.max_batch_size
        with self._changed:
            if not self._open or not self.alive:
                raise EngineError("the engine does not run; see the log, then start the service again")
            ahead = len(self._queue)
            if ahead + len(new) > self._settings.max_queue + max(0, size - self.busy):
                after = max(1, math.ceil(self._seconds_per_answer * (ahead + len(new)) / size))
                self._metrics.refused.inc()
                raise BusyError(f"{ahead} answers are waited for already; try again in {after} s", after)
            self._queue.extend(new)
            self._changed.notify_all()
        return job

    # -- the thread -------------------------------------------------------------------------------

    def _running(self) -> list[GeneratedSequence]:
        prefill = self._prefill
        return [*(prefill.batch.members if prefill is not None else ()), *self._batch.members]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open or self.busy)
                if not self._open:
                    break
            try:
                self._step()
            except Exception as error:
                logger.exception("a step of the engine failed")
                self._fail(EngineError(f"the model failed on this request: {type(error).__name__}; see the log"))
            self._deliver()
        self._fail(EngineError("the service ends"))
        self._deliver()

    @torch.no_grad()
    def _step(self) -> None:
        begun = time.perf_counter()
        self._drop()
        self._admit()
        if self._prefill is not None:
            self._read(self._prefill)
        if len(self._batch):
            self._decode()
        self._metrics.step.observe(time.perf_counter() - begun)
        self._metrics.running.set(len(self._batch))
        self._metrics.queue.set(len(self._queue))

    def _drop(self) -> None:
        """Removes sequences whose client left, or whose time is over."""
        now = time.monotonic()
        with self._changed:
            for job in {one.job for one in (*self._queue, *self._running()) if one.job.deadline < now and not one.gone}:
                job.failed = True
                self._out.append((job, DeadlineError("the request took longer than it may; ask for less at once")))
            if any(one.gone for one in self._queue):
                self._queue = deque(one for one in self._queue if not one.gone)
        if self._prefill is not None and all(one.gone for one in self._prefill.batch.members):
            self._prefill = None
        self._batch.keep([i for i, one in enumerate(self._batch.members) if not one.gone])

    def _admit(self) -> None:
        """Starts as many of the queued sequences as there is room for, in their order."""
        if self._prefill is not None:
            return
        taken: list[GeneratedSequence] = []
        longest = max((one.longest for one in self._batch.members), default=0)
        tokens, settings = 0, self._settings
        with self._changed:
            while self._queue and len(self._batch) + len(taken) < settings.max_batch_size:
                first = self._queue[0]
                longest = max(longest, first.longest)
                full = (len(self._batch) + len(taken) + 1) * longest > settings.cache_tokens
                too_many = tokens + len(first.request.prompt) > settings.prefill_tokens
                if (full and (taken or len(self._batch))) or (too_many and taken):
                    break
                tokens += len(first.request.prompt)
                taken.append(self._queue.popleft())
        if taken:
            self._prefill = Prefill(self._runner, taken, [one.request.prompt for one in taken], settings.prefill_tokens)

    def _read(self, prefill: Prefill) -> None:
        start, members = prefill.done, prefill.batch.members
        logits = prefill.step()
        lengths = [len(one.request.prompt) for one in members]
        self._note_routes(members, [start - (max(lengths) - length) for length in lengths], prefill.done - start)
        if logits is None:
            return
        self._metrics.prompt_tokens.inc(sum(lengths))
        self._prefill = None
        self._advance(prefill.batch, logits)
        self._batch.join(prefill.batch)

    def _decode(self) -> None:
        members = self._batch.members
        ids = torch.tensor([[one.tokens[-1]] for one in members], device=self._runner.device)
        logits = self._batch.feed(ids, torch.ones_like(ids))
        self._note_routes(members, [len(one.request.prompt) + len(one.tokens) - 1 for one in members], 1)
        self._advance(self._batch, logits)

    def _advance(self, batch: Batch, logits: Tensor) -> None:
        """Takes the next token of every sequence; those that are finished leave."""
        likeliest = logits.argmax(-1).tolist()  # for all at once: on an accelerator each copy waits
        before = len(self._out)
        for one, own, token in zip(batch.members, logits, likeliest, strict=True):
            if not one.gone:
                self._out.append((one.job, one.advance(own, token)))
            if one.finish is not None:
                self._seconds_per_answer += 0.1 * (time.monotonic() - one.begun - self._seconds_per_answer)
        self._metrics.tokens.inc(len(self._out) - before)
        batch.keep([i for i, one in enumerate(batch.members) if one.finish is None and not one.gone])

    def _note_routes(self, members: Sequence[GeneratedSequence], firsts: Sequence[int], count: int) -> None:
        """Notes the routes of the `count` tokens just read; firsts: the position of each row's first, pads below 0."""
        for record in self._memory.records:
            own = [members[row] for row in record.rows]
            opened = record.route.open.view(len(own), count)
            if not any(one.request.trace for one in own) and not bool(opened.any()):
                continue
            routes = _routed(record, own, [firsts[row] for row in record.rows])
            for one, route in zip(own, routes, strict=True):
                one.note(route)
                self._metrics.routed.inc(sum(token.open and token.position >= 0 for token in route))

    def _fail(self, error: Exception) -> None:
        """Ends all running sequences; queued ones go on, unless the engine ends."""
        failed = self._running()
        with self._changed:
            if not self._open:
                failed += self._queue
                self._queue.clear()
        for job in {one.job for one in failed if not one.gone}:
            job.failed = True
            self._out.append((job, error))
        self._prefill, self._batch = None, Batch(self._runner)

    def _deliver(self) -> None:
        """Hands over all deltas of a step, in one call for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Delta | Exception]]] = {}
        for job, delta in self._out:
            by_loop.setdefault(job.loop, []).append((job, delta))
        self._out = []
        for loop, own in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(_put, own)


def _put(deltas: Sequence[tuple[Job, Delta | Exception]]) -> None:
    for job, delta in deltas:
        job.deltas.put_nowait(delta)


def _routed(
    record: RoutingRecord, members: Sequence[GeneratedSequence], firsts: Sequence[int]
) -> list[list[RoutedToken]]:
    """The routes of each row's new tokens. The rows share one memory."""
    slots, opened = record.route.slot.tolist(), record.route.open.tolist()
    scores, thresholds = record.route.score.tolist(), record.route.threshold.tolist()
    handle = members[0].request.handle
    shared = any(o and handle.is_shared(slot) for o, slot in zip(opened, slots, strict=True))
    keys = record.keys() if shared else [-1] * len(slots)
    tokens = [
        RoutedToken(
            position=firsts[i // record.width] + i % record.width,
            edit=handle.edit_id(slots[i], keys[i]) if opened[i] else None,
            slot=slots[i],
            score=scores[i],
            threshold=thresholds[i],
            open=opened[i],
        )
        for i in range(len(slots))
    ]
    return [tokens[i : i + record.width] for i in range(0, len(tokens), record.width)]
