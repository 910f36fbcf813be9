"""The engine that runs the model in this process: one thread, step by step, for all requests at once.

A step decodes one token of every sequence whose prompt is read, and reads some columns of every new prompt, so that
neither a long prompt nor many prompts delay other answers. Sequences join and leave between steps. Sequences that are
decoded share one left-padded cache, and prompts that are read share another.

It does not use transformers' continuous batching: that runs all requests of a step under one state of the model, so
requests could not keep the memory with which they began; it samples for all requests from one seed; and whether it
samples at all is one setting of its manager.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
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
from wise.serving.engines import BusyError, Delta, EngineError, GenerationRequest, Job, MemoryHandle, RoutedToken
from wise.serving.engines.grammar import Grammars
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

    def run(
        self, memories: Sequence[SideMemory | None], ids: Tensor, mask: Tensor, cache: DynamicCache, keep: int
    ) -> Tensor:
        """New ids `[rows, n]` behind the cache, mask `[rows, all]` -> logits of the last `[rows, keep, vocabulary]`."""
        self.memory.rows = memories
        inputs: dict[str, Any] = {self.cache_name: cache}
        if self.takes_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=keep, **inputs)
        logits: Tensor = out.logits[:, -keep:]
        return logits.float()


class Batch:
    """Sequences, one for each row, with their cache and its mask `[rows, tokens]`."""

    def __init__(self, runner: Runner, members: Sequence[GeneratedSequence] = ()) -> None:
        self.runner = runner
        self.members: list[GeneratedSequence] = list(members)
        self.mask = torch.zeros(len(members), 0, dtype=torch.long, device=runner.device)
        self.cache: Any = DynamicCache()

    def __len__(self) -> int:
        return len(self.members)

    @torch.no_grad()
    def feed(self, ids: Tensor, mask: Tensor, keep: int = 1) -> Tensor:
        """Runs new tokens `[rows, n]`, mask of the same shape -> logits of the last `[rows, keep, vocabulary]`."""
        self.mask = torch.cat([self.mask, mask], dim=1)
        return self.runner.run([member.memory for member in self.members], ids, self.mask, self.cache, keep)

    def join(self, batch: Batch) -> None:
        """Takes over the members of another batch, which must not be used afterwards. Either cache may be empty."""
        if not self.members:
            self.members, self.mask, self.cache = batch.members, batch.mask, batch.cache
            return
        width = max(self.mask.shape[1], batch.mask.shape[1])
        self.mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, batch.mask)])
        new_layers = batch.cache.layers or [None] * len(self.cache.layers)
        for layer, new_layer in zip(self.cache.layers, new_layers, strict=True):
            for name in ("keys", "values"):
                states = getattr(layer, name)
                new = states.new_zeros(len(batch), *states.shape[1:]) if new_layer is None else getattr(new_layer, name)
                setattr(layer, name, torch.cat([_pad_left(states, width), _pad_left(new, width)]))
        self.members = [*self.members, *batch.members]

    def take(self, rows: Sequence[int]) -> Batch:
        """These rows as a batch of their own; they leave this one."""
        batch = copy(self)
        batch.cache = copy(self.cache)
        batch.cache.layers = [copy(layer) for layer in self.cache.layers]
        batch.keep(rows)
        self.keep([row for row in range(len(self)) if row not in rows])
        return batch

    def keep(self, rows: Sequence[int]) -> None:
        """Removes all other rows, and the columns that only they used."""
        if len(rows) == len(self.members):
            return
        if not rows:
            self.members, self.mask, self.cache = [], self.mask[:0, :0], DynamicCache()
            return
        indices = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[indices]
        unused = int((mask.cumsum(-1) == 0).sum(-1).min())
        self.members = [self.members[row] for row in rows]
        self.mask = mask[:, unused:].clone()
        for layer in self.cache.layers:
            layer.keys = layer.keys[indices, :, unused:].clone()
            layer.values = layer.values[indices, :, unused:].clone()


def _pad_left(states: Tensor, width: int) -> Tensor:
    """`[rows, heads, tokens, size]`, padded before its tokens."""
    return pad(states, (0, 0, width - states.shape[2], 0))


class Prefill:
    """Reads prompts into a cache, some columns of each in every step; more prompts may be added between steps.

    All rows read the same number of tokens in a step. Only the first part of a row may be shorter, and is padded on the
    left, so that the rest is read in whole steps.
    """

    def __init__(self, runner: Runner, tokens: int) -> None:
        """tokens: of one step, over all rows; a step reads one column at least."""
        self.batch = Batch(runner)
        self._tokens = tokens
        self._prompts: list[Sequence[int]] = []
        self.done: list[int] = []
        """Tokens of each row that are in the cache."""

    def add(self, members: Sequence[GeneratedSequence], prompts: Sequence[Sequence[int]]) -> None:
        self.batch.join(Batch(self.batch.runner, members))
        self._prompts += prompts
        self.done += [0] * len(prompts)

    def step(self, *, every: bool = False) -> Tensor:
        """Reads the next columns -> logits `[rows, n, vocabulary]`: of `every` column that was read, or of the last."""
        rows = [*zip(self._prompts, self.done, strict=True)]
        remaining = [len(prompt) - done for prompt, done in rows]
        width = min(max(1, self._tokens // len(rows)), max(remaining), *(len(ids) - done for ids, done in rows if done))
        new = [ids[done : done + (width if done else (len(ids) - 1) % width + 1)] for ids, done in rows]
        ids, mask = left_pad(new, device=self.batch.runner.device)
        logits = self.batch.feed(ids, mask, width if every else 1)
        self.done = [done + len(ids) for done, ids in zip(self.done, new, strict=True)]
        return logits

    @property
    def complete(self) -> list[int]:
        """The rows whose prompts are read."""
        return [row for row, done in enumerate(self.done) if done == len(self._prompts[row])]

    def take(self, rows: Sequence[int]) -> Batch:
        """These rows as a batch; they leave."""
        remaining = [row for row in range(len(self.done)) if row not in rows]
        self._prompts, self.done = [self._prompts[row] for row in remaining], [self.done[row] for row in remaining]
        return self.batch.take(rows)


def _compute_with(threads: int) -> None:
    """Sets the number of CPU threads of this Python thread; Python threads that begin to compute later use one each.

    OpenMP keeps a team of CPU threads for each Python thread. If there are more of them than cores, they sleep between
    two operations: SmolLM2 then takes 1.4 times as long.
    """
    torch.set_num_threads(threads)
    torch.get_num_threads()  # else this thread would take the last number that any thread set, at its first operation
    thread = threading.Thread(target=torch.set_num_threads, args=(1,))
    thread.start()
    thread.join()


class LocalEngine:
    """Runs `model`, which no other part may use from then on. Implements `Engine`."""

    def __init__(self, model: WiseModel, settings: Settings, metrics: Metrics, grammars: Grammars) -> None:
        self._tokenizer, self._ends, self._grammars = model.tokenizer, model.encoder.stops, grammars
        self._settings, self._metrics = settings, metrics
        metrics.cache_limit.set(settings.cache_tokens)
        self._memory = BatchedMemory(None if model.inputs is None else model.inputs.sequences)
        model.layer.memory = self._memory
        model.model.eval()  # type: ignore[no-untyped-call]
        self._runner = Runner(model.model, self._memory)
        self._batch = Batch(self._runner)
        self._prefill = Prefill(self._runner, settings.prefill_tokens)
        self._queue: deque[GeneratedSequence] = deque()
        """Accepted sequences whose prompts are not being read yet."""
        self._accepted: list[GeneratedSequence] = []
        """Accepted sequences that have not ended."""
        self._changed = threading.Condition()
        """Guards these two and `_open`, which other threads change."""
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
        if self._thread.ident is not None:  # or it never started
            self._thread.join(JOIN_TIMEOUT)

    wrong_answers: Mapping[str, str] = {}
    """Empty: the editor verified each edit in the same model."""

    def prepare(self, handles: Sequence[MemoryHandle]) -> None:
        """Does nothing: each request brings its memory."""

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> int:
        return len(self._accepted)

    def submit(self, requests: Sequence[GenerationRequest], *, seconds: float) -> Job:
        job = Job(loop=asyncio.get_running_loop(), deadline=time.monotonic() + seconds)
        new = [
            GeneratedSequence(job, i, request, self._tokenizer, self._ends, self._grammars)
            for i, request in enumerate(requests)
        ]
        size = self._settings.max_batch_size
        with self._changed:
            if not self._open or not self.alive:
                raise EngineError("the engine does not run; see the log, then start the service again")
            if self.busy + len(new) > self._settings.max_queue + size:
                after = max(1, math.ceil(self._seconds_per_answer * (len(self._queue) + len(new)) / size))
                raise BusyError(f"{self.busy} answers are waited for already; try again in {after} s", after)
            self._queue.extend(new)
            self._accepted += new
            self._changed.notify_all()
        return job

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        _compute_with(self._settings.threads)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open or self._accepted)
                if not self._open:
                    break
            with self._failing(self._accepted):
                self._step()
            self._deliver()
        self._fail(self._accepted, EngineError("the service ends"))
        self._deliver()

    @torch.no_grad()
    def _step(self) -> None:
        start = time.perf_counter()
        self._cut()
        self._admit()
        if len(self._prefill.batch):
            with self._failing(self._prefill.batch.members):
                self._step_prefill()
        if len(self._batch):
            with self._failing(self._batch.members):
                self._decode()
        self._drop()
        self._metrics.step.observe(time.perf_counter() - start)
        self._metrics.running.set(len(self._accepted) - len(self._queue))
        self._metrics.queue.set(len(self._queue))
        self._metrics.cached.set(self._batch.mask.numel() + self._prefill.batch.mask.numel())

    def _cut(self) -> None:
        """Ends the sequences whose time is over, with the text so far."""
        now = time.monotonic()
        with self._changed:
            late = [sequence for sequence in self._accepted if sequence.job.deadline < now and not sequence.has_ended]
        for sequence in late:
            with self._failing([sequence]):
                self._out.append((sequence.job, sequence.end("deadline")))
        self._drop()

    def _drop(self) -> None:
        """Removes sequences that have ended."""
        with self._changed:
            if any(sequence.has_ended for sequence in self._accepted):
                self._accepted = [sequence for sequence in self._accepted if not sequence.has_ended]
                self._queue = deque(sequence for sequence in self._queue if not sequence.has_ended)
        if finished_rows := [i for i, sequence in enumerate(self._prefill.batch.members) if sequence.has_ended]:
            self._prefill.take(finished_rows)
        self._batch.keep([i for i, sequence in enumerate(self._batch.members) if not sequence.has_ended])

    def _admit(self) -> None:
        """Begins to read as many of the queued prompts as there is room for, in their order."""
        settings, new = self._settings, []
        members = [*self._batch.members, *self._prefill.batch.members]
        longest = max((sequence.longest for sequence in members), default=0)
        with self._changed:
            while self._queue and len(members) < settings.max_batch_size:
                longest = max(longest, self._queue[0].longest)
                if members and (len(members) + 1) * longest > settings.cache_tokens:
                    break
                new.append(self._queue.popleft())
                members.append(new[-1])
        if new:
            self._prefill.add(new, [sequence.request.prompt for sequence in new])

    def _step_prefill(self) -> None:
        prefill = self._prefill
        members, before = prefill.batch.members, prefill.done
        logits = prefill.step(every=any(sequence.request.prompt_logprobs is not None for sequence in members))
        counts = [now - then for now, then in zip(prefill.done, before, strict=True)]
        self._metrics.prompt_tokens.inc(sum(counts))
        width = max(counts)
        self._note_routes(members, [done - width for done in prefill.done], width)
        for sequence, first, row_logits, count in zip(members, before, logits, counts, strict=True):
            with self._failing([sequence]):
                sequence.read(first, row_logits[-count:])
        if complete := prefill.complete:
            last = logits[complete, -1]
            batch = prefill.take(complete)
            self._advance(batch, last)
            self._batch.join(batch)

    def _decode(self) -> None:
        members = self._batch.members
        ids = torch.tensor([[sequence.tokens[-1]] for sequence in members], device=self._runner.device)
        logits = self._batch.feed(ids, torch.ones_like(ids))[:, -1]
        self._note_routes(members, [len(sequence.request.prompt) + len(sequence.tokens) - 1 for sequence in members], 1)
        self._advance(self._batch, logits)

    def _advance(self, batch: Batch, logits: Tensor) -> None:
        """Draws the next token of every sequence, and removes sequences that end. logits: `[rows, vocabulary]`."""
        likeliest = logits.argmax(-1).tolist()  # for all rows at once: on an accelerator each copy waits
        for sequence, row_logits, token in zip(batch.members, logits, likeliest, strict=True):
            if not sequence.has_ended:
                with self._failing([sequence]):
                    self._observe(sequence, sequence.advance(row_logits, token))
        batch.keep([i for i, sequence in enumerate(batch.members) if not sequence.has_ended])

    def _observe(self, sequence: GeneratedSequence, delta: Delta) -> None:
        self._out.append((sequence.job, delta))
        now = time.monotonic()
        if delta.tokens:
            self._metrics.tokens.inc()
            (self._metrics.first if len(sequence.tokens) == 1 else self._metrics.between).observe(now - sequence.last)
        sequence.last = now
        if sequence.finish is not None:
            self._seconds_per_answer += 0.1 * (now - sequence.queued_at - self._seconds_per_answer)

    @contextmanager
    def _failing(self, members: Sequence[GeneratedSequence]) -> Iterator[None]:
        """An error in this block ends these sequences, and no others."""
        try:
            yield
        except Exception as error:
            logger.exception("the engine failed on %d of %d answers", len(members), len(self._accepted))
            if not isinstance(error, EngineError):
                error = EngineError(f"the model failed on this request: {type(error).__name__}; see the log")
            self._fail(members, error)

    def _fail(self, members: Sequence[GeneratedSequence], error: Exception) -> None:
        for job in {sequence.job for sequence in members if not sequence.has_ended}:
            job.failed = True
            self._out.append((job, error))

    def _note_routes(self, members: Sequence[GeneratedSequence], firsts: Sequence[int], count: int) -> None:
        """Notes the routes of the `count` tokens just read; firsts: the position of each row's first, pads below 0."""
        for record in self._memory.records:
            group = [members[row] for row in record.rows]
            opened = record.route.open.view(len(group), count)
            if not any(sequence.request.trace for sequence in group) and not bool(opened.any()):
                continue
            routes = _routed_tokens(record, group, [firsts[row] for row in record.rows])
            for sequence, route in zip(group, routes, strict=True):
                sequence.note(route)
                self._metrics.routed.inc(sum(token.open and token.position >= 0 for token in route))

    def _deliver(self) -> None:
        """Hands over all deltas of a step, in one call for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Delta | Exception]]] = {}
        for job, delta in self._out:
            by_loop.setdefault(job.loop, []).append((job, delta))
        self._out = []
        for loop, deltas in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed: its callers have ended
                loop.call_soon_threadsafe(_put_deltas, deltas)


def _put_deltas(deltas: Sequence[tuple[Job, Delta | Exception]]) -> None:
    for job, delta in deltas:
        job.deltas.put_nowait(delta)


def _routed_tokens(
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
