"""The service's client of its editor: it starts the process, follows its status, and sends it commands.

A command is put into a queue, which a thread empties into the pipe. So an editor that reads nothing, because it was
stopped or gets no CPU, blocks no caller: the command fails when its time is over.
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
"""States of the editor: it has not reported yet; it waits for another writer to end; it is the writer and prepares its
model; it works; the store refuses its writes; it does not run, and is started again soon."""
STATES = (STARTING, WAITING, PREPARING, READY, FAILING, ENDED)
ENDED_MEANWHILE = "the editor ended meanwhile; see whether it was done, and try again"
NOT_THE_WRITER = {"kind": "StoreError", "problem": "another process is the writer of this store by now; try again"}
"""The answer to a command by an editor that has no store."""

Worker = BaseProcess | threading.Thread
"""Runs the editor's end: a process, or a thread in tests."""


class EditorClient:
    """Starts the editor, follows its state, and sends it commands. Its methods may be called from any thread."""

    def __init__(self, make: Callable[[Connection], Worker], on_restart: Callable[[], None] = lambda: None) -> None:
        """make: a worker, not started, for the other end of a pipe. on_restart: called when a worker ended by
        itself."""
        self._make, self._on_restart = make, on_restart
        self._lock = threading.Lock()
        self._pending: dict[int, Future[dict[str, Any]]] = {}
        self._count = 0
        self._closing = threading.Event()
        self._outbox: SimpleQueue[bytes | None] | None = None
        self._worker: Worker | None = None
        self._endings = 0
        """How many times in a row it ended before it was ready."""
        self.state = STARTING
        self.why = ""
        """The reason for a state in which it does not work."""
        self.stage = ""
        """The current step of its preparation."""
        self.training: Sequence[str] = ()
        """Ids of the edits that it trains; `done` of them are finished."""
        self.done = self.restarts = 0
        self.since = time.monotonic()
        """When state or stage last changed."""
        self._cpu: tuple[float, float] | None = None
        """The time of its last sign of life, and its CPU time then."""
        self.cpu_share: float | None = None
        """CPU seconds in each second between its last two signs of life."""
        self._thread = threading.Thread(target=self._run, name="wise-editor-client", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Asks the editor to end after the commands that were sent before. A signal handler may call it."""
        self._closing.set()
        outbox = self._outbox
        if outbox is not None:
            outbox.put(json.dumps({"leave": True}).encode())

    def close(self, seconds: float) -> None:
        """Ends the editor; kills it after so many seconds, or at once if it has not reported yet."""
        with self._lock:
            self.leave()
            has_reported = self.state != STARTING
        if self._thread.ident is not None:
            self._thread.join(seconds if has_reported else 0)
        worker = self._worker
        if isinstance(worker, BaseProcess) and worker.pid is not None and worker.is_alive():
            worker.kill()  # the store survives it
            worker.join()

    @property
    def silent(self) -> float:
        """Seconds since its last sign of life; 0 if it does not run."""
        return 0.0 if self._cpu is None else time.monotonic() - self._cpu[0]

    async def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Has the editor run a command. Raises errors of the command, BusyError if too many are under way, or
        StoreError if the editor does not run or takes too long."""
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
                unanswered, self._pending = self._pending, {}
            for answer in unanswered.values():
                with suppress(InvalidStateError):
                    answer.set_exception(StoreError(ENDED_MEANWHILE))
            if self._closing.is_set():
                return
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._endings)
            self._endings, self.restarts = min(self._endings + 1, 30), self.restarts + 1
            self._on_restart()
            logger.error("the editor ended (%s); it is started again in %g s", self.why or "no reason given", pause)
            self._closing.wait(pause)

    def _serve(self) -> None:
        """Starts an editor and receives its messages until it ends."""
        near_end, far_end = multiprocessing.Pipe()
        outbox: SimpleQueue[bytes | None] = SimpleQueue()
        with near_end:
            with self._lock, ExitStack() as unused:
                unused.callback(far_end.close)
                if self._closing.is_set():
                    return
                self.state, self.why, self.since = STARTING, "", time.monotonic()
                worker = self._worker = self._make(far_end)
                with _interrupts_blocked():
                    worker.start()
                self._outbox = outbox
                if isinstance(worker, threading.Thread):  # a process has a copy; with this one its end is unnoticed
                    unused.pop_all()
            sender = threading.Thread(target=_send_all, args=(near_end, outbox), name="wise-editor-sender", daemon=True)
            sender.start()
            with suppress(EOFError, OSError):
                while True:
                    self._receive(json.loads(near_end.recv_bytes()))
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
            with suppress(InvalidStateError):  # its caller does not wait any more
                answer.set_result(message["answer"])

    def _note(self, status: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if "cpu" in status:
            if self._cpu is not None:
                self.cpu_share = (status["cpu"] - self._cpu[1]) / max(now - self._cpu[0], 1e-3)
            self._cpu = now, status["cpu"]
        if any(name in status and status[name] != getattr(self, name) for name in ("state", "stage")):
            self.since = now  # not with each attempt to open the store, or to write to it
        for name in ("training", "done", "stage", "why", "state"):  # the state last: others read it first
            setattr(self, name, status.get(name, getattr(self, name)))
        if self.state == READY:
            self._endings = 0


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started within the block ignores Ctrl-C, which a terminal sends to all: a message ends it."""
    _start_tracker()  # its start unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Starts Python's tracker of semaphores, which all processes of the service share. It removes the semaphores of a
    killed process, and would report that on stderr as text, where all lines are JSON."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before or 'default'},ignore:resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        os.environ.update({} if before is None else {"PYTHONWARNINGS": before})


def _send_all(connection: Connection, outbox: SimpleQueue[bytes | None]) -> None:
    with suppress(OSError):  # the thread that reads notices the end
        while (message := outbox.get()) is not None:
            connection.send_bytes(message)


# -- commands to another replica ------------------------------------------------------------------


KINDS: dict[str, type[WiseError]] = {kind.__name__: kind for kind in (ConfigError, ConflictError, EditError)}
"""What a command may raise besides StoreError, by name."""


def command_result(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a command. Raises the writer's error."""
    if "done" in answer:
        return dict(answer["done"])
    raise KINDS.get(answer["kind"], StoreError)(answer["problem"])


async def send_to_writer(store: Store, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Has the store's writer, in another replica, run a command. If this call is cancelled, the command is withdrawn
    and ends there too. Raises the writer's error, or StoreError if no writer runs it or it takes too long."""
    queued = asyncio.ensure_future(asyncio.to_thread(store.commands.enqueue, name, arguments, COMMAND_TIMEOUT))
    try:
        command = await asyncio.shield(queued)
        end = time.monotonic() + COMMAND_TIMEOUT
        while time.monotonic() < end:
            answer = await asyncio.to_thread(store.commands.take_answer, command)
            if answer is not None:
                return command_result(answer)
            await asyncio.sleep(POLL)
    except asyncio.CancelledError:  # the caller does not wait any more
        with suppress(StoreError):  # it was not queued, or ends by its time
            await asyncio.to_thread(store.commands.withdraw, await queued)
        raise
    limit = f"within {COMMAND_TIMEOUT:.0f} s"
    if await asyncio.to_thread(store.commands.withdraw, command):
        raise StoreError(f"no writer took it up {limit}, and none will; see that a replica can write")
    raise StoreError(f"the writer did not answer {limit}; it may still do it")
