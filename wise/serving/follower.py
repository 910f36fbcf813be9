"""Follows a store: builds the version that new requests get, and announces the store's events.

The writer may be this replica's editor or another machine's. A thread polls the journal for new events. An event is
announced only when its version is served here, so that a client that reads of a live edit gets answers with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from wise.edits import DEFAULT_NAMESPACE, Edit
from wise.errors import StoreError
from wise.memory.state import MemoryState
from wise.memory.store.edit_request import FAILED, LIVE, Event, now
from wise.memory.store.store import Store
from wise.memory.store.versions import Snapshot
from wise.model import WiseModel
from wise.namespaces import ask_again, check_base, check_fits, check_settings, split
from wise.progress import SECONDS_A_LINE, Progress
from wise.router.assemble import assemble
from wise.serving.engines import Engine, MemoryHandle
from wise.serving.metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL = 0.1
"""Seconds between two polls of the journal."""
RETRY = 1.0
"""Seconds until a store that could not be read is polled again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedVersion:
    """The memory of each namespace in one version. Immutable: a request that began with it keeps it."""

    version: int
    edits: Mapping[str, Edit]
    handles: Mapping[str, MemoryHandle]
    """By namespace: those with live edits, and the default one."""


def served_version(model: WiseModel, snapshot: Snapshot, before: ServedVersion | None = None) -> ServedVersion:
    """Builds the served version of a snapshot on `model`, whose own memory is not changed. Unchanged namespaces use the
    memories of `before` again."""
    handles = {}
    states = {DEFAULT_NAMESPACE: MemoryState()} | split(snapshot.state)
    for namespace, state in sorted(states.items()):
        old = before.handles.get(namespace) if before is not None else None
        memory = old.memory if old is not None and old.state.same(state) else assemble(
            state, model.wise_config, inputs=model.inputs, device=model.layer.device(), dtype=model.model.dtype
        )
        handles[namespace] = MemoryHandle(version=snapshot.version, namespace=namespace, state=state, memory=memory)
    edits = {edit.id: edit for edit in snapshot.state.edits}
    return ServedVersion(version=snapshot.version, edits=edits, handles=handles)


def _log_progress(start: float) -> Progress:
    """Logs the progress of asking edits again, which delays the start: one line in `SECONDS_A_LINE`."""
    last = start

    def show(namespace: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_A_LINE:
            last = time.monotonic()
            logger.info("namespace %s: %d of %d edits were asked again in this precision", namespace, done, total)

    return show


def trim_heap() -> None:
    """Returns freed memory to the system, in a few milliseconds; does nothing if the C library is not GNU's. That
    library keeps the large blocks of old versions: under load a service used twice the memory that it needs."""
    if malloc_trim := os.name == "posix" and getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)


class Follower:
    """Holds the version that is served, and keeps it up to date."""

    def __init__(
        self,
        store: Store,
        model: WiseModel,
        metrics: Metrics,
        *,
        on_version: Callable[[ServedVersion], None],
        allow_precision: bool = False,
    ) -> None:
        """on_version: called from the thread with each new version once it is served. allow_precision: ask each edit
        again that was made in another precision. Raises StoreError if the store cannot be read, or as `check_fits`."""
        self._store, self._model, self._metrics, self._on_version = store, model, metrics, on_version
        self._base, self._allow_precision = model.fingerprint(), allow_precision  # an engine may free the weights
        self.last_event = store.anchor().event  # before the version: events that come meanwhile are announced later
        """The number of the last event that was announced."""
        snapshot = store.read()
        if not check_fits(model, snapshot, store.backend.place, allow_precision=allow_precision):
            ask_again(model, snapshot, _log_progress(time.monotonic()))
        self.current = served_version(model, snapshot)
        self.trouble = ""
        """Why the store cannot be read, if it cannot."""
        self._counted: tuple[int, tuple[Mapping[str, int], str | None]] = (-1, ({}, None))
        """The last event before the tickets were counted, and the counts."""
        self._engine: Engine | None = None
        self._listeners: set[Listener] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wise-follower", daemon=True)
        self._measure()

    def serve_with(self, engine: Engine) -> None:
        """Gives the current version to an engine, and each later one before requests get it. Raises EngineError."""
        self._engine = engine
        engine.prepare([*self.current.handles.values()])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:  # or the service never started
            self._thread.join(5 * INTERVAL)
        self.wake()

    def queue(self) -> tuple[Mapping[str, int], str | None]:
        """Tickets by status, and when the oldest queued one was accepted: counted again if anything happened, and the
        last ones while the store cannot be read."""
        last, journal = self.last_event, self._store.journal
        if self._counted[0] != last:
            with suppress(StoreError):
                self._counted = last, (journal.counts(), journal.oldest_queued())
        return self._counted[1]

    def listen(self) -> Listener:
        """Waits for news within a `with` block, in an event loop."""
        return Listener(self._listeners)

    def _run(self) -> None:
        logged = ""
        while not self._stop.is_set():
            try:
                self._poll()
                self.trouble = logged = ""
            except Exception as error:
                again, logged = repr(error) == logged, repr(error)
                of_store = isinstance(error, StoreError)
                self.trouble = str(error) if of_store else "a version could not be taken over; see the log"
                message = f"the store cannot be read: {error}" if of_store else "a version could not be taken over"
                if not again:  # each problem is logged once, not with every poll
                    logger.error("%s", message, exc_info=not of_store)
            self._stop.wait(RETRY if self.trouble else INTERVAL)

    def _poll(self) -> None:
        events = self._store.journal.events(since=self.last_event)  # before the version: it is at least as new
        if self._store.journal.version().number != self.current.version:
            snapshot = self._store.read()
            self._check(snapshot)
            served = served_version(self._model, snapshot, self.current)
            if self._engine is not None:
                self._engine.prepare([*served.handles.values()])
            self.current = served
            self._measure()
            trim_heap()
            self._on_version(self.current)
        if events:
            self._count(events)
            self.last_event = max(self.last_event, events[-1].number)
            self.wake()

    def _check(self, snapshot: Snapshot) -> None:
        """Raises StoreError if a store that was empty at the start, without a base, does not fit any more."""
        place, allow = self._store.backend.place, self._allow_precision
        check_settings(self._model, snapshot, place)
        if not self.current.version and not check_base(self._base, snapshot, place, allow_precision=allow):
            raise StoreError(f"{place}: its edits are of another precision: start anew, so that each is asked again")

    def wake(self) -> None:
        """Wakes the listeners. May be called from any thread."""
        for listener in tuple(self._listeners):
            listener.wake()

    def _measure(self) -> None:
        self._metrics.version.set(self.current.version)
        self._metrics.live.set(len(self.current.edits))

    def _count(self, events: tuple[Event, ...]) -> None:
        outcomes = {event.ticket: event for event in events if event.kind in (LIVE, FAILED) and event.ticket}
        self._metrics.clock_jumps.inc(sum(event.jumped is not None for event in events))
        for ticket in self._store.journal.tickets(numbers=sorted(outcomes)):
            event = outcomes[ticket.number]
            came_back = ticket.retired_in is not None and ticket.retired_in < (event.version or 0)  # by a rollback
            if not ticket.problem and not came_back:
                self._metrics.edits.labels(event.kind).inc()
                duration = datetime.fromisoformat(now()) - datetime.fromisoformat(ticket.accepted_at)
                self._metrics.edit_seconds.observe(duration.total_seconds())


class Listener:
    """Waits in an event loop for the follower's announcements."""

    def __init__(self, listeners: set[Listener]) -> None:
        self._listeners = listeners
        self._event, self._loop = asyncio.Event(), asyncio.get_running_loop()

    def __enter__(self) -> Listener:
        self._listeners.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._listeners.discard(self)

    def wake(self) -> None:
        """May be called from any thread."""
        with suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self._event.set)

    async def news(self, seconds: float) -> bool:
        """Whether there was an announcement since the last call; waits up to `seconds` for one."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        happened = self._event.is_set()
        self._event.clear()
        return happened
