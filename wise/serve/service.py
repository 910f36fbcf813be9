"""The parts of a service, held together: what the routes are given."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from wise.errors import ConfigError, WiseError, did_you_mean
from wise.memory.store.store import Store
from wise.model import WiseModel
from wise.serve.commands import handed_on
from wise.serve.edition import DEFAULT, Edition, Voice
from wise.serve.engine import Engine
from wise.serve.follower import Follower
from wise.serve.link import FAILING, READY, WAITING, Link, Worker
from wise.serve.metrics import Metrics
from wise.serve.problems import missing, unavailable
from wise.serve.row import Job, Piece, Wish
from wise.serve.security import Tokens
from wise.serve.settings import Settings

logger = logging.getLogger(__name__)

CANARY_SECONDS = 60.0


class Service:
    """Answers from one model and one store."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        model: WiseModel,
        store: Store,
        tokens: Tokens,
        editor: Callable[[Connection], Worker],
        canaries: Sequence[str] = (),
    ) -> None:
        """model: for answering alone; store: not its writer. Raises StoreError where the two do not go together."""
        self.settings, self.name, self.store, self.tokens = settings, name, store, tokens
        self.metrics = Metrics()
        self.tokenizer, self.encoder = model.tokenizer, model.encoder
        self._canaries = [self.encoder.prompt(text) for text in canaries]
        self.follower = Follower(store, model, self.metrics, on_version=self._watch)
        self.engine = Engine(
            model,
            metrics=self.metrics,
            rows=settings.rows,
            waiting=settings.waiting,
            cache_tokens=settings.cache_tokens,
            prefill_tokens=settings.prefill_tokens,
        )
        self.editor = Link(editor)
        self.draining = threading.Event()
        """Set when the service is to end: nothing new is taken in, and streams of events end."""
        self.begun = time.time()

    def start(self) -> None:
        self.engine.start()
        self.editor.start()
        self.follower.start()
        if self._canaries:
            threading.Thread(target=self._watch, args=(self.follower.current,), daemon=True).start()

    def close(self) -> None:
        """Ends all of it; edits that are being trained are queued again when the store is next opened."""
        self.draining.set()
        self.editor.close(self.settings.drain)
        self.follower.close()
        self.engine.close()
        self.store.close()

    def not_ready(self) -> str | None:
        """Why requests should go elsewhere, if so. Said to anyone: what names a store or a file is in the log alone."""
        if self.draining.is_set():
            return "the service is about to end"
        if not self.engine.alive:
            return "the engine has ended; see the log"
        if self.follower.trouble:
            return "the store cannot be read, or a version not taken over; see the log"
        if self.editor.state not in (READY, WAITING):
            return f"the editor is {self.editor.state}; see the log"
        return None

    def editor_works(self) -> bool:
        return self.editor.state in (READY, FAILING)

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Has the store's writer do one of its commands: the editor here, or that of another replica.

        Raises what the writer raised, or StoreError where there is none, or it takes too long.
        """
        if self.editor.state == WAITING:
            return handed_on(self.store, name, arguments)
        return self.editor.call(name, **arguments)

    # -- answering --------------------------------------------------------------------------------

    def voice(self, model: str | None) -> Voice:
        """What answers to a model's name: `NAME`, or `NAME@NAMESPACE`. Raises Problem for one that is not there."""
        name, at, namespace = (model or self.name).partition("@")
        current = self.follower.current
        names = self.model_names(current)
        if name != self.name or (at and not namespace):
            raise missing(f"model: {model!r:.80} is not served; {did_you_mean(str(model), names)}", "model_not_found")
        try:
            return current.voice(namespace or DEFAULT)
        except ConfigError as error:
            raise missing(f"model: {error}", "model_not_found") from None

    def model_names(self, edition: Edition) -> list[str]:
        return [self.name if space == DEFAULT else f"{self.name}@{space}" for space in edition.voices]

    def submit(self, wishes: Sequence[Wish], seconds: float | None = None) -> Job:
        """Raises BusyError, or a Problem where the service is about to end."""
        if self.draining.is_set():
            raise unavailable("the service is about to end; ask another replica, or try again")
        limit = self.settings.deadline
        return self.engine.submit(wishes, seconds=min(limit, seconds or limit))

    # -- the canary set ---------------------------------------------------------------------------

    def _watch(self, edition: Edition) -> None:
        """Whether an edit speaks where none may."""
        if not self._canaries:
            return
        with suppress(WiseError):
            routed = asyncio.run(self._routed(edition))
            tokens = sum(map(len, self._canaries)) * len(edition.voices)
            self.metrics.canary_tokens.set(tokens)
            self.metrics.false_routes.set(routed)
            alarm = routed > self.settings.canary_limit * tokens
            self.metrics.alarm.set(alarm)
            if alarm:
                told = {"version": edition.version, "routed": routed, "tokens": tokens}
                logger.warning("edits speak on the canary set", extra={"told": told})

    async def _routed(self, edition: Edition) -> int:
        """Tokens of the canary set at which an edit of any namespace speaks."""
        wishes = [
            Wish(prompt=tuple(ids), voice=voice, max_new_tokens=1)
            for voice in edition.voices.values()
            if voice.memory is not None
            for ids in self._canaries
        ]
        routed = 0
        for wish in wishes:  # one at a time: answering goes before
            job = self.engine.submit([wish], seconds=CANARY_SECONDS)
            piece = await job.pieces.get()
            if isinstance(piece, Piece):
                routed += len(piece.spoken)
        return routed
