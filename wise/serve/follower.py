"""Follows a store: the version that new requests get, and word of all that happens.

Whoever is the writer, this process or another one on another machine, its versions arrive here: a thread asks the
journal for what is new. An event is passed on only when the version that it belongs to is served, so that whoever
hears that an edit is live finds it answered.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from wise.errors import StoreError
from wise.memory.store.edit_request import FAILED, LIVE, Event, now
from wise.memory.store.journal import Journal
from wise.memory.store.store import Store
from wise.model import WiseModel
from wise.namespaces import check_fits, check_settings
from wise.serve.edition import Edition, edition_of
from wise.serve.heap import trim
from wise.serve.metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL = 0.1
"""Seconds between two looks at the journal."""
TROUBLED = 1.0
"""Seconds until a store that could not be read is asked again."""


class Follower:
    """See the head of this file."""

    def __init__(
        self, store: Store, model: WiseModel, metrics: Metrics, *, on_version: Callable[[Edition], None]
    ) -> None:
        """on_version: called from the thread with each version once it is served.

        Raises StoreError where the store cannot be read, or as `check_fits` does.
        """
        self._store, self._model, self._metrics, self._on_version = store, model, metrics, on_version
        snapshot = store.read()
        check_fits(model, snapshot, store.backend.place)
        self.current = edition_of(model, snapshot)
        self.seen = last_event(store.journal)
        """The last event that was passed on."""
        self.trouble = ""
        """Why the store cannot be read, where it cannot."""
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wise-follower", daemon=True)
        self._measure()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5 * INTERVAL)
        self._wake()

    def listen(self) -> Listening:
        """For the length of a `with` block, in an event loop: waits for what is new."""
        return Listening(self._listeners)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
                self.trouble = ""
            except StoreError as error:
                self.trouble = str(error)
                logger.error("the store cannot be read: %s", error)
                self._stop.wait(TROUBLED)
            except Exception:
                logger.exception("a version could not be taken over")
                self.trouble = "a version could not be taken over; see the log"
                self._stop.wait(TROUBLED)
            self._stop.wait(INTERVAL)

    def _look(self) -> None:
        events = self._store.journal.events(since=self.seen)  # before the version: it is at least as new
        if self._store.journal.version().number != self.current.version:
            snapshot = self._store.read()
            check_settings(self._model, snapshot, self._store.backend.place)  # it may have been empty at the start
            self.current = edition_of(self._model, snapshot)
            self._measure()
            trim()
            self._on_version(self.current)
        if events:
            self._count(events)
            self.seen = events[-1].number
            self._wake()

    def _wake(self) -> None:
        for loop, event in tuple(self._listeners):
            with suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(event.set)

    def _measure(self) -> None:
        self._metrics.version.set(self.current.version)
        self._metrics.live.set(len(self.current.edits))

    def _count(self, events: tuple[Event, ...]) -> None:
        done = {event.ticket: event.kind for event in events if event.kind in (LIVE, FAILED) and event.ticket}
        for ticket in self._store.journal.tickets(numbers=sorted(done)):
            self._metrics.edits.labels(done[ticket.number]).inc()
            taken = datetime.fromisoformat(now()) - datetime.fromisoformat(ticket.accepted_at)
            self._metrics.edit_seconds.observe(taken.total_seconds())


class Listening:
    """What `Follower.listen` gives."""

    def __init__(self, listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        self._listeners = listeners
        self._event = asyncio.Event()
        self._entry = (asyncio.get_running_loop(), self._event)

    def __enter__(self) -> Listening:
        self._listeners.add(self._entry)
        return self

    def __exit__(self, *_: object) -> None:
        self._listeners.discard(self._entry)

    async def news(self, seconds: float) -> bool:
        """Whether anything happened since the last call, waiting so long for it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        told = self._event.is_set()
        self._event.clear()
        return told


def last_event(journal: Journal) -> int:
    """The number of the last event. Numbers have no gaps, so it is found in a few questions."""
    step = 1
    while journal.events(since=step - 1, limit=1):
        step *= 2
    low, high = step // 2, step  # event `low` is there (or it is 0), `high` is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if journal.events(since=middle - 1, limit=1) else (low, middle)
    return low
