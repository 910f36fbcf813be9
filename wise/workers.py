"""Workers: other processes that fit the edits of a model (`hybrid`), each with a base of its own.

An edit has a slot of its own, so the batches in which edits are fitted (`AnswerWriter.parts`) need nothing of one
another. Each is a call of an executor. The process that edits does all else: it verifies, finds conflicts and serves.
The batches are the same without workers, and so are the bytes that come out.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing.connection import wait as wait_for_end
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import torch

from wise.config import WiseConfig
from wise.errors import ConfigError, EditError, WorkerError
from wise.memory.fingerprint import Fingerprint
from wise.memory.key_space import Space
from wise.training.generation import between_steps, checking
from wise.training.writers.answer import AnswerWriter
from wise.training.writers.base import EditsDone, SlotResults, SlotTask, silent

if TYPE_CHECKING:
    from wise.model import WiseModel

logger = logging.getLogger(__name__)

RETRIES = 2
"""Times that what a dead worker was fitting is fitted again, in one call."""
LOOK = 0.05
"""Seconds between two checks whether to go on, while workers fit."""

Traits = tuple[Fingerprint, WiseConfig, Space | None]
"""What a worker's model must have in common with the one that is edited: base, settings, space of keys."""


class Workers:
    """Fits edits in other processes, once it is given to `WiseModel.use_workers`. Close it, or use it in `with`."""

    def __init__(
        self, load: Callable[[], WiseModel], executor: int | Callable[[], Executor] = 2, *,
        cpu_seconds: float = float("inf"),
    ) -> None:
        """load: makes the model that is edited once more, in a worker; a function of a module, or a `partial` of one.
        executor: how many processes; or makes an executor, which is called again when a worker has died.
        cpu_seconds: a batch of edits may take.

        Raises ConfigError for less than one process.
        """
        if isinstance(executor, int) and executor < 1:
            raise ConfigError(f"workers={executor}: expected at least 1")
        self._load, self._cpu_seconds = load, cpu_seconds
        self._make = partial(process_pool, executor) if isinstance(executor, int) else executor
        self._key = uuid4().hex
        self._executor: Executor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, after what they do now. They are started again when something is to be fitted."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    def fit(
        self, batches: Sequence[Sequence[SlotTask]], effort: int, traits: Traits, done: EditsDone
    ) -> list[SlotResults]:
        """What a writer writes of each batch. done: called with the number of edits.

        Raises WorkerError if workers die again and again, ConfigError if their model is another one, and what the check
        between two steps raises. What was begun is then finished by the workers, and lost.
        """
        results: dict[int, SlotResults] = {}
        arguments = (self._key, self._load, traits, torch.get_num_threads(), self._cpu_seconds)
        for attempt in range(1 + RETRIES):
            pending: dict[Future[SlotResults], int] = {}
            try:
                self._executor = self._executor or self._make()
                for i, tasks in enumerate(batches):
                    if i not in results:
                        pending[self._executor.submit(fit_batch, *arguments, list(tasks), effort)] = i
                while pending:
                    between_steps()
                    for future in wait(pending, LOOK, FIRST_COMPLETED).done:
                        results[pending.pop(future)] = future.result()
                        done(sum(len(batches[i]) for i in results))
                return [results[i] for i in range(len(batches))]
            except BrokenExecutor as error:
                self.close()
                broken = error
                if attempt < RETRIES:
                    logger.warning("a worker died; what it fitted is fitted again (%d of %d)", attempt + 1, RETRIES)
            finally:
                for future in pending:
                    future.cancel()
        raise WorkerError(
            f"workers died {1 + RETRIES} times while they fitted {sum(map(len, batches))} edits, of which nothing was "
            "applied: see that there is memory for a model in each, give fewer workers, or edit without them"
        ) from broken


class SharedWriter:
    """Writes as `writer` does; several batches are fitted by workers, a single one here."""

    def __init__(self, writer: AnswerWriter, workers: Workers, traits: Traits) -> None:
        self.writer, self.workers, self.traits, self.efforts = writer, workers, traits, writer.efforts
        self.at_once = writer.at_once

    def write(self, tasks: Sequence[SlotTask], progress: EditsDone = silent, effort: int = 0) -> SlotResults:
        """See `Writer`. Raises as `Workers.fit` does."""
        parts = self.writer.parts(tasks)
        if len(parts) < 2:
            return self.writer.write(tasks, progress, effort)
        batches = [[tasks[i] for i in part] for part in parts]
        results = self.workers.fit(batches, effort, self.traits, progress)
        numbered = (zip(part, batch, strict=True) for part, batch in zip(parts, results, strict=True))
        written = {i: result for batch in numbered for i, result in batch}
        return [written[i] for i in range(len(tasks))]


def traits_of(model: WiseModel) -> Traits:
    return model.fingerprint(), model.wise_config, None if model.inputs is None else model.inputs.reader.key_space


# -- in a worker ----------------------------------------------------------------------------------

_models: dict[str, WiseModel] = {}
"""The model that a worker fits with, by the key of its `Workers`."""


def fit_batch(
    key: str, load: Callable[[], WiseModel], traits: Traits, threads: int, cpu_seconds: float, tasks: list[SlotTask],
    effort: int,
) -> SlotResults:
    """Fits one batch; loads the model if this process has not done so.

    threads: as many as where there are no workers, since sums depend on it.

    Raises ConfigError if the model is not the one that is edited, EditError if it takes too much CPU time.
    """
    torch.set_num_threads(threads)
    if key not in _models:
        model = load()
        names = ("base", "settings", "relation reader")
        compared = zip(names, traits_of(model), traits, strict=True)
        differing = [name for name, actual, expected in compared if actual != expected]
        if differing:
            raise ConfigError(
                f"the model that the workers loaded has another {' and '.join(differing)} than the one that is edited: "
                "have `load` make the same"
            )
        model.prepare()
        _models.clear()
        _models[key] = model
    start = time.thread_time()

    def check() -> None:
        if time.thread_time() - start > cpu_seconds:
            raise EditError(f"fitting {len(tasks)} edits took more than {cpu_seconds:g} s of CPU time")

    model = _models[key]
    with model.evaluating(), checking(check):
        return model.trainer.writer.write(tasks, silent, effort)


# -- executors ------------------------------------------------------------------------------------


def begin_worker() -> None:
    """A worker ends with its parent, however that ends; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow(sentinel: int) -> None:
        wait_for_end([sentinel])
        os._exit(0)

    threading.Thread(target=follow, args=(parent.sentinel,), daemon=True).start()


def process_pool(count: int, begin: Callable[..., object] = begin_worker, *arguments: Any) -> Executor:
    """So many processes of this machine. begin: called in each with what is given, and calls `begin_worker`."""
    context = multiprocessing.get_context("spawn")  # a forked torch hangs
    return ProcessPoolExecutor(count, context, initializer=begin, initargs=arguments)


class RayTasks(Executor):
    """Tasks of Ray, on all machines of its cluster. Ray starts a task again whose worker died."""

    def __init__(self, **options: Any) -> None:
        """options: those of a task of Ray, such as `num_gpus=1`: what each worker has for itself."""
        self._options = options

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        import ray

        task = ray.remote(function).options(**self._options)
        future: Future[Any] = task.remote(*arguments, **named).future()
        return future
