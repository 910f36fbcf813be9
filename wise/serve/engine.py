"""The engine: one thread that runs the model, step by step, for all requests at once.

A step decodes one token of every row and, beside it, some columns of the prompts that came last. Rows join and leave
between steps. Each keeps the voice, a version and a namespace, that it was given when it was handed in, so that an
answer is consistent with exactly one version while edits go live around it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wise.errors import WiseError
from wise.memory.batched_memory import BatchedMemory, RoutingRecord
from wise.model import WiseModel
from wise.serve.batch import Batch, Prefill, Runner
from wise.serve.metrics import Metrics
from wise.serve.row import Job, Piece, Row, Spoken, Wish

logger = logging.getLogger(__name__)

ENDING = 5.0
"""Seconds that the thread has to end."""


class BusyError(WiseError, RuntimeError):
    """More is waiting than the service takes; `retry_after` seconds from now there may be room."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(WiseError, TimeoutError):
    """A request took longer than it may."""


class EngineError(WiseError, RuntimeError):
    """The model failed in a step, or the engine does not run."""


@dataclass
class _Inbox:
    """What other threads hand in."""

    rows: deque[Row] = field(default_factory=deque)
    changed: threading.Condition = field(default_factory=threading.Condition)
    open: bool = True


class Engine:
    """Runs `model`, which must be used by nothing else from then on."""

    def __init__(
        self, model: WiseModel, *, metrics: Metrics, rows: int, waiting: int, cache_tokens: int, prefill_tokens: int
    ) -> None:
        """rows: answers that share a step; waiting: those that may wait; cache_tokens: rows times the longest;
        prefill_tokens: of prompts, that a step reads beside what it decodes."""
        self.encoder = model.encoder
        self.tokenizer = model.tokenizer
        self.rows, self.waiting, self.cache_tokens, self.prefill_tokens = rows, waiting, cache_tokens, prefill_tokens
        self._metrics = metrics
        self._memory = BatchedMemory(None if model.inputs is None else model.inputs.sequences)
        model.layer.memory = self._memory
        model.model.eval()  # type: ignore[no-untyped-call]
        self._runner = Runner(model.model, self._memory)
        self._batch: Batch[Row] = Batch(self._runner)
        self._prefill: Prefill[Row] | None = None
        self._inbox = _Inbox()
        self._row_seconds = 1.0
        self._out: list[tuple[Job, Piece | Exception]] = []
        self._thread = threading.Thread(target=self._run, name="wise-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; what is still on its way gets an EngineError."""
        with self._inbox.changed:
            self._inbox.open = False
            self._inbox.changed.notify_all()
        self._thread.join(ENDING)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> int:
        """Answers that are waited for."""
        prefill = 0 if self._prefill is None else len(self._prefill.batch)
        return len(self._inbox.rows) + prefill + len(self._batch)

    # -- called from an event loop ----------------------------------------------------------------

    def submit(self, wishes: Sequence[Wish], *, seconds: float) -> Job:
        """Takes in the answers of one request, which may take so many seconds.

        Raises BusyError where too many wait, EngineError where the engine does not run.
        """
        job = Job(loop=asyncio.get_running_loop(), deadline=time.monotonic() + seconds)
        made = [Row(job, i, wish, self.tokenizer, self.encoder.stops) for i, wish in enumerate(wishes)]
        with self._inbox.changed:
            if not self._inbox.open or not self.alive:
                raise EngineError("the engine does not run; see the log, then start the service again")
            ahead = len(self._inbox.rows)
            if ahead + len(made) > self.waiting + max(0, self.rows - self.busy):
                after = max(1, math.ceil(self._row_seconds * (ahead + len(made)) / self.rows))
                self._metrics.refused.inc()
                raise BusyError(f"{ahead} answers are waited for already; try again in {after} s", after)
            self._inbox.rows.extend(made)
            self._inbox.changed.notify_all()
        return job

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._inbox.changed:
                self._inbox.changed.wait_for(lambda: not self._inbox.open or self.busy)
                if not self._inbox.open:
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
        self._metrics.rows.set(len(self._batch))
        self._metrics.queue.set(len(self._inbox.rows))

    def _drop(self) -> None:
        """Lets rows go that nobody waits for any more, or that took too long."""
        now = time.monotonic()
        prefill = self._prefill.batch.members if self._prefill is not None else []
        with self._inbox.changed:
            everyone = [*self._inbox.rows, *prefill, *self._batch.members]
            for job in {row.job for row in everyone if row.job.deadline < now and not row.gone}:
                job.failed = True
                self._out.append((job, DeadlineError("the request took longer than it may; ask for less at once")))
            if any(row.gone for row in self._inbox.rows):
                self._inbox.rows = deque(row for row in self._inbox.rows if not row.gone)
        if prefill and all(row.gone for row in prefill):
            self._prefill = None
        self._batch.keep([i for i, row in enumerate(self._batch.members) if not row.gone])

    def _admit(self) -> None:
        """As many of those who wait as there is room for, in their order."""
        if self._prefill is not None:
            return
        taken: list[Row] = []
        longest = max((row.longest for row in self._batch.members), default=0)
        tokens = 0
        with self._inbox.changed:
            while self._inbox.rows and len(self._batch) + len(taken) < self.rows:
                row = self._inbox.rows[0]
                longest = max(longest, row.longest)
                full = (len(self._batch) + len(taken) + 1) * longest > self.cache_tokens
                many = tokens + len(row.wish.prompt) > self.prefill_tokens
                if (full and (taken or len(self._batch))) or (many and taken):
                    break
                tokens += len(row.wish.prompt)
                taken.append(self._inbox.rows.popleft())
        if taken:
            prompts = [row.wish.prompt for row in taken]
            self._prefill = Prefill(self._runner, taken, prompts, self.prefill_tokens)

    def _read(self, prefill: Prefill[Row]) -> None:
        start, count = prefill.done, prefill.last
        logits = prefill.step()
        width = max(len(row.wish.prompt) for row in prefill.batch.members)
        firsts = [start - (width - len(row.wish.prompt)) for row in prefill.batch.members]
        self._listen(prefill.batch.members, firsts, count)
        if logits is None:
            return
        self._metrics.prompt_tokens.inc(sum(len(row.wish.prompt) for row in prefill.batch.members))
        self._prefill = None
        self._advance(prefill.batch, logits)
        self._batch.join(prefill.batch)

    def _decode(self) -> None:
        members = self._batch.members
        ids = torch.tensor([[row.new[-1]] for row in members], device=self._runner.device)
        logits = self._batch.feed(ids, torch.ones_like(ids))
        self._listen(members, [len(row.wish.prompt) + len(row.new) - 1 for row in members], 1)
        self._advance(self._batch, logits)

    def _advance(self, batch: Batch[Row], logits: Tensor) -> None:
        """The next token of every row; those that are through leave."""
        likeliest = logits.argmax(-1).tolist()  # at once: on an accelerator each look waits for it
        before = len(self._out)
        for row, own, token in zip(batch.members, logits, likeliest, strict=True):
            if not row.gone:
                self._out.append((row.job, row.advance(own, token)))
            if row.finish is not None:
                self._row_seconds += 0.1 * (time.monotonic() - row.begun - self._row_seconds)
        self._metrics.tokens.inc(len(self._out) - before)
        batch.keep([i for i, row in enumerate(batch.members) if row.finish is None and not row.gone])

    def _listen(self, members: Sequence[Row], firsts: Sequence[int], count: int) -> None:
        """Notes who spoke at the `count` tokens just read; firsts: the place of the first in each row, pads below 0."""
        for record in self._memory.records:
            told = [members[i].wish.trace for i in record.rows]
            opened = record.route.open.view(len(record.rows), count)
            if not any(told) and not bool(opened.any()):
                continue
            spoken = _spoken(record, [members[i] for i in record.rows], [firsts[i] for i in record.rows])
            for i, route in zip(record.rows, spoken, strict=True):
                members[i].note(route)
                self._metrics.routed.inc(sum(one.open and one.place >= 0 for one in route))

    def _fail(self, error: Exception) -> None:
        """All that is on its way in the model ends; what waits goes on, unless the engine ends."""
        prefill = self._prefill.batch.members if self._prefill is not None else []
        rows = [*prefill, *self._batch.members]
        with self._inbox.changed:
            if not self._inbox.open:
                rows += self._inbox.rows
                self._inbox.rows.clear()
        for job in {row.job for row in rows if not row.gone}:
            job.failed = True
            self._out.append((job, error))
        self._prefill, self._batch = None, Batch(self._runner)

    def _deliver(self) -> None:
        """All pieces of a step in one call for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Piece | Exception]]] = {}
        for job, piece in self._out:
            by_loop.setdefault(job.loop, []).append((job, piece))
        self._out = []
        for loop, own in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(_hand_over, own)


def _hand_over(pieces: Sequence[tuple[Job, Piece | Exception]]) -> None:
    for job, piece in pieces:
        job.pieces.put_nowait(piece)


def _spoken(record: RoutingRecord, rows: Sequence[Row], firsts: Sequence[int]) -> list[list[Spoken]]:
    """The routes of each row's new tokens."""
    slots, opened = record.route.slot.tolist(), record.route.open.tolist()
    scores, thresholds = record.route.score.tolist(), record.route.threshold.tolist()
    voice = rows[0].wish.voice  # the same for all: it is whose memory this is
    shared = any(o and voice.shared(s) for o, s in zip(opened, slots, strict=True))
    keys = record.keys() if shared else [-1] * len(slots)
    told = [
        Spoken(
            place=firsts[i // record.width] + i % record.width,
            edit=voice.edit_of(slots[i], keys[i]) if opened[i] else None,
            slot=slots[i],
            score=scores[i],
            threshold=thresholds[i],
            open=opened[i],
        )
        for i in range(len(slots))
    ]
    return [told[i : i + record.width] for i in range(0, len(told), record.width)]
