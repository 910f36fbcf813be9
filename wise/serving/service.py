"""The service: its engine, follower, editor and canary check in one object, which the routes are given."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Annotated, Any

from fastapi import Depends, Request

from wise.errors import WiseError, did_you_mean
from wise.memory.store.store import Store
from wise.model import WiseModel
from wise.serving.auth import Tokens
from wise.serving.editor_process import READY, WAITING, EditorClient, Worker, send_to_writer
from wise.serving.engines import Delta, Engine, GenerationRequest, Job, MemoryHandle
from wise.serving.engines.grammar import Grammars
from wise.serving.engines.local import LocalEngine
from wise.serving.follower import DEFAULT_NAMESPACE, Follower, ServedVersion
from wise.serving.http_errors import bad_request, not_found, unavailable
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings
from wise.serving.token_text import TokenText

logger = logging.getLogger(__name__)

CANARY_TIMEOUT = 60.0
PROMPT_THREADS = 4


class Service:
    """Answers from one model and one store."""

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
        """model: used for nothing else; store: not opened as its writer; editor: makes the editor's process.

        Raises StoreError if the store does not fit the model.
        """
        self.settings, self.store, self.tokens = settings, store, tokens
        self.name = settings.served_name()
        self.metrics = Metrics()
        self.tokenizer, self.encoder = model.tokenizer, model.encoder
        self._canaries = [self.encoder.prompt(text) for text in canaries]
        self.follower = Follower(
            store,
            model,
            self.metrics,
            on_version=self._check_canaries,
            allow_precision=settings.allow_precision,
        )
        self.token_text = TokenText(model.tokenizer)
        self.prompt_threads = ThreadPoolExecutor(PROMPT_THREADS, "wise-prompts")
        """Tokenize, so that the event loop does not."""
        self.grammars = Grammars(model.tokenizer, model.encoder.stops)
        self.engine: Engine = LocalEngine(model, settings, self.metrics, self.grammars)
        self.editor = EditorClient(editor)
        self.draining = threading.Event()
        """Set at shutdown: nothing new is accepted, and streams of events end."""

    def start(self) -> None:
        self.engine.start()
        self.editor.start()
        self.follower.start()
        if self._canaries:
            threading.Thread(target=self._check_canaries, args=(self.follower.current,), daemon=True).start()

    def close(self) -> None:
        """Ends all parts; edits that are being trained are queued again when the store is next opened."""
        self.draining.set()
        self.editor.close(self.settings.shutdown_timeout)
        self.follower.close()
        self.engine.close()
        self.prompt_threads.shutdown(wait=False, cancel_futures=True)
        self.store.close()

    def not_ready(self) -> str | None:
        """Why requests should go elsewhere, if so. Anyone may read it, so it names no store and no file."""
        if self.draining.is_set():
            return "the service is about to end"
        if not self.engine.alive:
            return "the engine has ended; see the log"
        if self.follower.trouble:
            return "the store cannot be read, or a version not taken over; see the log"
        if self.editor.state not in (READY, WAITING):
            return f"the editor is {self.editor.state}; see the log"
        return None

    def refuse_if_draining(self) -> None:
        """Raises HTTPError 503 at shutdown."""
        if self.draining.is_set():
            raise unavailable("the service is about to end; ask another replica, or try again")

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Has the store's writer run a command: the editor here, or that of another replica.

        Raises what the writer raised, or StoreError if there is none or it takes too long.
        """
        if self.editor.state == WAITING:
            return send_to_writer(self.store, name, arguments)
        return self.editor.call(name, **arguments)

    # -- answering --------------------------------------------------------------------------------

    def namespace(self, model: str | None) -> str:
        """The namespace that a model's name means: `NAME`, or `NAME@NAMESPACE`. Raises HTTPError 404 for others."""
        name, at, namespace = (model or self.name).partition("@")
        if name != self.name or (at and not namespace.strip()):
            known = did_you_mean(str(model), self.model_names(self.follower.current))
            raise not_found(f"model: {model!r:.80} is not served; {known}", "model_not_found")
        return namespace or DEFAULT_NAMESPACE

    def handle(self, model: str | None) -> MemoryHandle:
        """The memory that answers to a model's name. Raises HTTPError 404 if there is none."""
        namespace, handles = self.namespace(model), self.follower.current.handles
        if namespace not in handles:
            near = did_you_mean(namespace, handles)
            raise not_found(f"model: no edit is live in the namespace {namespace!r}; {near}", "model_not_found")
        return handles[namespace]

    def model_names(self, version: ServedVersion) -> list[str]:
        return [self.name if space == DEFAULT_NAMESPACE else f"{self.name}@{space}" for space in version.handles]

    def submit(self, requests: Sequence[GenerationRequest], seconds: float | None = None) -> Job:
        """Raises BusyError, or HTTPError at shutdown or for more answers than the service ever holds."""
        self.refuse_if_draining()
        most = self.settings.max_queue + self.settings.max_batch_size
        if len(requests) > most:
            raise bad_request(f"n: {len(requests)} answers were asked for and {most} are held at once; ask for less")
        limit = self.settings.request_timeout
        return self.engine.submit(requests, seconds=min(limit, seconds or limit))

    # -- the canary set ---------------------------------------------------------------------------

    def _check_canaries(self, version: ServedVersion) -> None:
        """Measures at how many tokens of the canary set an edit is active, and raises the alarm if too many."""
        if not self._canaries:
            return
        with suppress(WiseError):
            routed = asyncio.run(self._routed_canaries(version))
            tokens = sum(map(len, self._canaries)) * len(version.handles)
            self.metrics.canary_tokens.set(tokens)
            self.metrics.false_routes.set(routed)
            alarm = routed > self.settings.canary_limit * tokens
            self.metrics.alarm.set(alarm)
            if alarm:
                fields = {"version": version.version, "routed": routed, "tokens": tokens}
                logger.warning("edits are active at the canary set", extra={"fields": fields})

    async def _routed_canaries(self, version: ServedVersion) -> int:
        """Tokens of the canary set at which an edit of any namespace is active."""
        routed = 0
        for handle in version.handles.values():
            for ids in self._canaries if handle.memory is not None else ():
                request = GenerationRequest(prompt=tuple(ids), handle=handle, max_new_tokens=1)
                job = self.engine.submit([request], seconds=CANARY_TIMEOUT)  # one at a time: users go first
                delta = await job.deltas.get()
                if isinstance(delta, Delta):
                    routed += len(delta.routed)
        return routed


def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service_of)]
"""The parameter of a route that needs the service."""
