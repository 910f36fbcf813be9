"""The service: its engine, follower, editor and canaries in one object, which the routes are given."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from multiprocessing.connection import Connection
from typing import Annotated, Any, TypeVar

from fastapi import Depends

from wise.errors import ConfigError, StartError, WiseError, did_you_mean
from wise.memory.store.store import Store
from wise.model import WiseModel
from wise.serving.auth import Tokens, sees
from wise.serving.canaries import Canaries
from wise.serving.editor_client import ENDED, FAILING, PREPARING, STARTING, WAITING, EditorClient, Worker
from wise.serving.engines import BusyError, Engine, GenerationRequest, Job, MemoryHandle
from wise.serving.engines.grammar import Grammars
from wise.serving.engines.local import LocalEngine
from wise.serving.follower import Follower
from wise.serving.http_errors import bad_request, not_found
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings
from wise.serving.store_service import StoreService, service_of
from wise.serving.token_text import TokenText

logger = logging.getLogger(__name__)

LEAST_SECONDS_TO_END = 2.0
"""Seconds that the parts have to end if answers took all of the shutdown's time."""
SILENCE_LIMIT = 10.0
"""Seconds without a sign of life after which an editor gets no CPU, or was stopped."""
PROMPT_THREADS = 4
T = TypeVar("T")


class Service(StoreService):
    """Answers from one model and one store."""

    follower: Follower

    def __init__(
        self,
        settings: Settings,
        *,
        model: WiseModel,
        store: Store,
        tokens: Tokens,
        editor: Callable[[Connection], Worker],
        canaries: Sequence[str] = (),
    ) -> None:
        """store: not opened as its writer. editor: makes its process. Raises StoreError if the model does not fit."""
        super().__init__(settings, store=store, tokens=tokens, encoder=model.encoder)
        self.metrics = Metrics()
        self.tokenizer = model.tokenizer
        prompts, allow = [self._canary(text) for text in canaries], settings.allow_precision
        self.canaries = Canaries(prompts, lambda: self.engine, self.metrics, settings.canary_limit)
        self.follower = Follower(store, model, self.metrics, on_version=self.canaries.check, allow_precision=allow)
        self.token_text = TokenText(model.tokenizer)
        self.prompt_threads = ThreadPoolExecutor(PROMPT_THREADS, "wise-prompts")
        """For tokenizing prompts and decoding answers, which would block the event loop."""
        self.grammars = Grammars(model.tokenizer, model.encoder.stops)
        self.engine = _engine(model, settings, self.metrics, self.grammars)
        self.editor = EditorClient(editor, self.metrics.editor_restarts.inc)
        self._end = float("inf")
        """When all parts must have ended, on the monotonic clock."""

    def start(self) -> None:
        """Raises ConfigError, or StartError with the reason, after it has ended the parts that had started."""
        try:
            self.engine.start()
            self.follower.serve_with(self.engine)
            self.editor.start()
            self.follower.start()
            self.canaries.start()
            self.canaries.check(self.follower.current)
        except Exception as error:
            logger.debug("the service cannot start", exc_info=True)
            self.close()
            if isinstance(error, ConfigError):
                raise
            why = str(error) if isinstance(error, WiseError) else f"{type(error).__name__}: {error}"
            raise StartError(f"the service cannot start: {why}; log_level=debug says where") from error

    def drain(self) -> None:
        """Begins the shutdown: nothing new is accepted, and the editor ends. A signal handler may call it."""
        self.draining.set()
        self.follower.wake()  # those that wait for events are to go elsewhere
        if self._end == float("inf"):
            self._end = time.monotonic() + self.settings.shutdown_timeout
            self.editor.leave()

    def close(self) -> None:
        """Ends all parts; edits in training are queued again when the store is next opened. Parts that have not ended
        when the time is over end with the process."""
        self.drain()
        self.canaries.close()
        end = max(self._end, time.monotonic() + LEAST_SECONDS_TO_END)
        closers = (partial(self.editor.close, end - time.monotonic()), self.follower.close, self.engine.close)
        closing = [threading.Thread(target=closer, daemon=True) for closer in closers]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(0.0, end - time.monotonic()))
        self.prompt_threads.shutdown(wait=False, cancel_futures=True)
        self.store.close()

    def not_ready(self) -> str | None:
        """Why requests should go elsewhere, if so. Anyone may read it, so it names no store and no file."""
        if self.draining.is_set():
            return "the service is about to end"
        if not self.engine.alive:
            return "the engine has ended; see the log"
        if self.follower.trouble:
            return "the store cannot be read, or a version not taken over; GET /v1/status and the log say why"
        return None

    def not_editing(self) -> str | None:
        """Why edits are not trained here, if so. It names no store and no file either."""
        editor, say_why = self.editor, "GET /v1/status and the log say why"
        if editor.silent > SILENCE_LIMIT:
            return f"the editor was not heard of for {editor.silent:.0f} s: it was stopped, or gets no CPU"
        seconds = f"for {time.monotonic() - editor.since:.0f} s"
        share = "" if editor.cpu_share is None else f", with {100 * editor.cpu_share:.0f}% of a CPU"
        return {
            STARTING: f"the editor starts, {seconds}",
            WAITING: "the editor waits for the store: another process is its writer, or it does not fit this model",
            PREPARING: f"the editor prepares: {editor.stage}, {seconds}{share}",
            FAILING: f"the store does not take what is trained; {say_why}",
            ENDED: f"the editor ended {editor.restarts} times, and is started again; {say_why}",
        }.get(editor.state)

    def _canary(self, text: str) -> list[int]:
        """The token ids of a canary. Raises ConfigError if the model cannot read it."""
        ids = self.encoder.prompt(text)
        if not 0 < len(ids) < self.encoder.context:
            context = self.encoder.context
            raise ConfigError(f"canaries: {text!r:.60} has {len(ids)} tokens; 1 to {context - 1} were expected")
        return ids

    async def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """By the editor here, if it is the writer."""
        if self.editor.state == WAITING:
            return await super().command(name, **arguments)
        return await self.editor.call(name, **arguments)

    @property
    def wrong_answers(self) -> Mapping[str, str]:
        return self.engine.wrong_answers

    # -- answering --------------------------------------------------------------------------------

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs a long computation in a thread, with the context of the request."""
        run = partial(copy_context().run, function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self.prompt_threads, run)

    def handle(self, model: str | None) -> MemoryHandle:
        """The memory that answers to a model's name. Raises HTTPError if there is none, as `namespace` does."""
        namespace, handles = self.namespace(model), self.follower.current.handles
        if namespace not in handles:
            near = did_you_mean(namespace, filter(sees, handles))
            raise not_found(f"model: no edit is live in the namespace {namespace!r}; {near}", "model_not_found")
        return handles[namespace]

    def submit(self, requests: Sequence[GenerationRequest], seconds: float | None = None) -> Job:
        """Raises BusyError, or HTTPError at shutdown or for more answers than the queue can ever hold."""
        self.refuse_if_draining()
        most = self.settings.max_queue + self.settings.max_batch_size
        if len(requests) > most:
            raise bad_request(f"n: {len(requests)} answers were asked for and {most} are held at once; ask for less")
        limit = self.settings.request_timeout
        try:
            return self.engine.submit(requests, seconds=min(limit, seconds or limit))
        except BusyError:  # counted here, since canaries ask a full engine again and again
            self.metrics.refused.inc()
            raise


def _engine(model: WiseModel, settings: Settings, metrics: Metrics, grammars: Grammars) -> Engine:
    if settings.engine == "local":
        return LocalEngine(model, settings, metrics, grammars)
    from wise.serving.engines.vllm import VllmEngine

    return VllmEngine(model, settings, metrics)


ServiceDep = Annotated[Service, Depends(service_of)]
"""The parameter of a route that needs the service."""
