"""The service's client of its editor: it starts the process, follows its status, and sends it commands.

Whoever sends a command only puts it into a queue, which a thread of its own empties into the pipe. So an editor that
reads nothing, because it was stopped or gets no CPU, blocks no request: the command is answered when its time is over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

from wise.errors import ConfigError, ConflictError, EditError, StoreError, WiseError
from wise.memory.store.store import Store
from wise.serving.engines import BusyError

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT = 120.0
"""Seconds that a command may take."""
MOST_COMMANDS = 64
"""Commands that may be under way at once."""
POLL = 0.05
"""Seconds between two looks for the answer of another replica."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until an editor that ended is started again: doubled each time it ends before it was ready."""
STARTING, WAITING, PREPARING, READY, FAILING, ENDED = (
    "starting", "waiting", "preparing", "ready", "failing", "ended"
)  # fmt: skip
"""States of the editor: not yet heard of; waiting for another writer to end; the writer, whose model is being prepared;
working; refused by the store; not running, and started again soon."""
STATES = (STARTING, WAITING, PREPARING, READY, FAILING, ENDED)
ENDED_MEANWHILE = "the editor ended meanwhile; see whether it was done, and try again"
NOT_THE_WRITER = {"kind": "StoreError", "problem": "another process is the writer of this store by now; try again"}
"""The answer to a command by an editor that has no store."""

Worker = BaseProcess | threading.Thread
"""What runs the editor's end: a process, or a thread in tests."""


class EditorClient:
    """Starts the editor, follows its state, and sends it commands. Its methods may be called from any thread."""

    def __init__(self, make: Callable[[Connection], Worker], restarted: Callable[[], None] = lambda: None) -> None:
        """make: a worker, not started, for the other end of a pipe. restarted: called when one ended by itself."""
        self._make, self._restarted = make, restarted
        self._lock = threading.Lock()
        self._pending: dict[int, Future[dict[str, Any]]] = {}
        self._count = 0
        self._closing = threading.Event()
        self._outbox: SimpleQueue[bytes | None] | None = None
        self._worker: Worker | None = None
        self._endings = 0
        """How often in a row it ended before it was ready."""
        self.state = STARTING
        self.why = ""
        """The reason for a state in which it does not work."""
        self.stage = ""
        """What it does while it prepares."""
        self.training: Sequence[str] = ()
        """Ids of the edits that it trains, of which so many are `done`."""
        self.done = self.restarts = 0
        self.since = time.monotonic()
        """When state or stage last changed."""
        self._cpu: tuple[float, float] | None = None
        """When it was last heard of, and its CPU time then."""
        self.cpu_share: float | None = None
        """CPU seconds that it had in each second between its last signs of life."""
        self._thread = threading.Thread(target=self._run, name="wise-editor-client", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Tells the editor to end, after the commands that it has been sent. A signal handler may call it."""
        self._closing.set()
        outbox = self._outbox
        if outbox is not None:
            outbox.put(json.dumps({"leave": True}).encode())

    def close(self, seconds: float) -> None:
        """Ends the editor; kills it after so many seconds, or at once if it was not heard of yet."""
        with self._lock:
            self.leave()
            has_started = self.state != STARTING
        if self._thread.ident is not None:
            self._thread.join(seconds if has_started else 0)
        worker = self._worker
        if isinstance(worker, BaseProcess) and worker.pid is not None and worker.is_alive():
            worker.kill()  # the store survives it
            worker.join()

    @property
    def silent(self) -> float:
        """Seconds since it was last heard of; 0 if it does not run."""
        return 0.0 if self._cpu is None else time.monotonic() - self._cpu[0]

    async def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Has the editor run a command. Raises what that raised, BusyError if too many are under way, or StoreError if
        it does not run or takes too long."""
        number, answer = self._submit(name, arguments)
        try:
            waiting: asyncio.Future[dict[str, Any]] = asyncio.wrap_future(answer)
            return command_result(await asyncio.wait_for(waiting, COMMAND_TIMEOUT))
        except TimeoutError:
            limit = f"within {COMMAND_TIMEOUT:.0f} s"
            raise StoreError(f"the editor did not answer {limit}; it may still do it") from None
        finally:
            with self._lock:
                if self._pending.pop(number, None) is not None and self._outbox is not None:
                    self._outbox.put(json.dumps({"cancel": number}).encode())

    def _submit(self, name: str, arguments: Mapping[str, Any]) -> tuple[int, Future[dict[str, Any]]]:
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._outbox is None or self.state not in (PREPARING, READY, FAILING):
                raise StoreError(f"the editor here is {self.state} {self.why}".rstrip() + "; try again later")
            if len(self._pending) >= MOST_COMMANDS:
                raise BusyError(f"{len(self._pending)} commands are under way; try again in 1 s", 1)
            self._count += 1
            self._pending[self._count] = answer
            self._outbox.put(json.dumps({"id": self._count, "do": name, "with": arguments}).encode())
            return self._count, answer

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._serve()
            except Exception as error:
                logger.exception("the editor could not be started")
                self.why = f"{type(error).__name__}: {error}"
            with self._lock:
                self.state, self.since, self._cpu = ENDED, time.monotonic(), None
                self.stage, self.training, self.done, self.cpu_share = "", (), 0, None
                pending, self._pending = self._pending, {}
            for answer in pending.values():
                with suppress(InvalidStateError):
                    answer.set_exception(StoreError(ENDED_MEANWHILE))
            if self._closing.is_set():
                return
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._endings)
            self._endings, self.restarts = min(self._endings + 1, 30), self.restarts + 1
            self._restarted()
            logger.error("the editor ended (%s); it is started again in %g s", self.why or "no reason given", pause)
            self._closing.wait(pause)

    def _serve(self) -> None:
        """Starts an editor and hears what it says, until it ends."""
        connection, others = multiprocessing.Pipe()
        outbox: SimpleQueue[bytes | None] = SimpleQueue()
        with connection:
            with self._lock, ExitStack() as unused:
                unused.callback(others.close)
                if self._closing.is_set():
                    return
                self.state, self.why, self.since = STARTING, "", time.monotonic()
                worker = self._worker = self._make(others)
                with _interrupts_blocked():
                    worker.start()
                self._outbox = outbox
                if isinstance(worker, threading.Thread):  # a process has its own; with this one its end went unnoticed
                    unused.pop_all()
            arguments = (connection, outbox)
            sender = threading.Thread(target=_send_all, args=arguments, name="wise-editor-sender", daemon=True)
            sender.start()
            with suppress(EOFError, OSError):
                while True:
                    self._receive(json.loads(connection.recv_bytes()))
            with self._lock:
                self._outbox = None
            outbox.put(None)
            sender.join()  # the other end is closed, so it blocks no more; only then is this one
        worker.join()
        if isinstance(worker, BaseProcess) and worker.exitcode:
            self.why = self.why or f"exit code {worker.exitcode}"

    def _receive(self, message: dict[str, Any]) -> None:
        if "status" in message:
            self._note(message["status"])
            return
        with self._lock:
            answer = self._pending.pop(message["id"], None)
        if answer is not None:
            with suppress(InvalidStateError):  # its client left
                answer.set_result(message["answer"])

    def _note(self, status: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if "cpu" in status:
            if self._cpu is not None:
                self.cpu_share = (status["cpu"] - self._cpu[1]) / max(now - self._cpu[0], 1e-3)
            self._cpu = now, status["cpu"]
        if any(name in status and status[name] != getattr(self, name) for name in ("state", "stage")):
            self.since = now  # not with each attempt of one that waits for the store, or is refused by it
        for name in ("training", "done", "stage", "why", "state"):  # the state last: others read it first
            setattr(self, name, status.get(name, getattr(self, name)))
        if self.state == READY:
            self._endings = 0


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started within the block ignores Ctrl-C, which a terminal sends to all; the service ends it."""
    _start_tracker()  # as it starts, it unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Starts Python's tracker of semaphores, which all processes of the service share. It removes what a killed process
    left behind, and would say so on stderr as text, where all is JSON."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before or 'default'},ignore:resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        os.environ.update({} if before is None else {"PYTHONWARNINGS": before})


def _send_all(connection: Connection, outbox: SimpleQueue[bytes | None]) -> None:
    with suppress(OSError):  # the reader notices that it has ended
        while (message := outbox.get()) is not None:
            connection.send_bytes(message)


# -- commands to another replica ------------------------------------------------------------------


KINDS: dict[str, type[WiseError]] = {kind.__name__: kind for kind in (ConfigError, ConflictError, EditError)}
"""What a command may raise besides StoreError, by name."""


def command_result(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What was done. Raises what the writer raised."""
    if "done" in answer:
        return dict(answer["done"])
    raise KINDS.get(answer["kind"], StoreError)(answer["problem"])


async def send_to_writer(store: Store, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Has the store's writer, in another replica, run a command. Cancelled, it withdraws the command, which ends there
    too. Raises what the writer raised, or StoreError if none takes it up or it takes too long."""
    queued = asyncio.ensure_future(asyncio.to_thread(store.commands.enqueue, name, arguments, COMMAND_TIMEOUT))
    try:
        command = await asyncio.shield(queued)
        end = time.monotonic() + COMMAND_TIMEOUT
        while time.monotonic() < end:
            answer = await asyncio.to_thread(store.commands.take_answer, command)
            if answer is not None:
                return command_result(answer)
            await asyncio.sleep(POLL)
    except asyncio.CancelledError:  # its client left
        with suppress(StoreError):  # it was not queued, or ends by its time
            await asyncio.to_thread(store.commands.withdraw, await queued)
        raise
    limit = f"within {COMMAND_TIMEOUT:.0f} s"
    if await asyncio.to_thread(store.commands.withdraw, command):
        raise StoreError(f"no writer took it up {limit}, and none will; see that a replica can write")
    raise StoreError(f"the writer did not answer {limit}; it may still do it")
