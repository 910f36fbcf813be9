"""Between the service and its editor: JSON messages over a pipe, and the process at its other end.

The editor is a process of its own, so that training takes neither the interpreter lock from answering nor its
threads, gives way to it (`nice`), and cannot take it down. A process that ends is started again; all that it had
promised is in the store.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from wise.errors import StoreError
from wise.serve.commands import PATIENCE, answer_of, result_of
from wise.serve.editor import Editor

logger = logging.getLogger(__name__)

IDLE = 0.1
"""Seconds between two looks at the queue."""
RETRY = 1.0
"""Seconds until the store is asked again to take this process as its writer, or to write."""

OF_ANOTHER = {"kind": "StoreError", "problem": "another process is the writer of this store by now; try again"}

STARTING, WAITING, READY, FAILING, ENDED = "starting", "waiting", "ready", "failing", "ended"
"""What the editor is doing: loading, waiting for another writer to end, working, refused by the store, not there."""


class Worker(Protocol):
    """What runs the other end: a process, or a thread in tests."""

    def start(self) -> None: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


class Link:
    """The service's end. Every method may be called from any thread."""

    def __init__(self, make: Callable[[Connection], Worker]) -> None:
        """make: a worker that serves the other end of a connection, not started yet."""
        self._make = make
        self._guard = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._count = 0
        self._closing = False
        self._connection: Connection | None = None
        self._worker: Worker | None = None
        self.state = STARTING
        self.why = ""
        """Of a state in which it does not work."""
        self._thread = threading.Thread(target=self._run, name="wise-editor-link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Ends the editor after what it is at; it has so many seconds."""
        with self._guard:
            self._closing = True
            if self._connection is not None:
                with suppress(OSError):
                    self._connection.send_bytes(json.dumps({"leave": True}).encode())
        self._thread.join(seconds)
        if self._thread.is_alive() and isinstance(self._worker, BaseProcess):
            self._worker.kill()  # the store is made for it

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Has the editor do one of its commands.

        Raises what the editor raised, or StoreError where it is not there, or takes too long.
        """
        answer: Future[dict[str, Any]] = Future()
        with self._guard:
            if self._connection is None or self.state not in (READY, FAILING):
                raise StoreError(f"the editor here is {self.state} {self.why}".rstrip() + "; try again later")
            self._count += 1
            number = self._count
            self._waiting[number] = answer
            self._connection.send_bytes(json.dumps({"id": number, "do": name, "with": arguments}).encode())
        try:
            return result_of(answer.result(PATIENCE))
        except TimeoutError:
            raise StoreError(f"the editor did not answer within {PATIENCE:.0f} s; it may still do it") from None

    def _run(self) -> None:
        while not self._closing:
            own, others = multiprocessing.Pipe()
            self._worker = self._make(others)
            with self._guard:
                self._connection = own
                if self._closing:
                    return
            self._worker.start()
            if isinstance(self._worker, BaseProcess):
                others.close()  # or its end would not be seen
            with suppress(EOFError, OSError):
                while True:
                    self._take(json.loads(own.recv_bytes()))
            self._lost()
            self._worker.join()
            if not self._closing:
                logger.error("the editor ended; it is started again")
                time.sleep(RETRY)

    def _take(self, message: dict[str, Any]) -> None:
        if "state" in message:
            self.state, self.why = message["state"], message.get("why", "")
            return
        with self._guard:
            answer = self._waiting.pop(message["id"])
        answer.set_result(message["answer"])

    def _lost(self) -> None:
        with self._guard:
            self.state, self.why, self._connection = ENDED, "", None
            lost, self._waiting = self._waiting, {}
        for answer in lost.values():
            answer.set_exception(StoreError("the editor ended meanwhile; see whether it was done, and try again"))


class Leave(Exception):
    """The service has closed its end."""


def serve(connection: Connection, open_editor: Callable[[], Editor]) -> None:
    """The editor's end: works off the queue, and does what it is told in between, until the service closes its end.

    open_editor: raises StoreError while another process is the writer, and is then called again.
    """
    with connection, suppress(Leave):
        editor = _opened(connection, open_editor)
        while True:
            if not _work(connection, editor):
                _answer(connection, editor, IDLE)
            _answer(connection, editor, 0)


def _opened(connection: Connection, open_editor: Callable[[], Editor]) -> Editor:
    while True:
        try:
            editor = open_editor()
        except StoreError as error:
            _tell(connection, state=WAITING, why=f"({error})")
            if connection.poll(RETRY):
                _answer(connection, None, 0)
            continue
        _tell(connection, state=READY)
        return editor


def _work(connection: Connection, editor: Editor) -> bool:
    """Whether there was anything to do."""
    try:
        done = editor.work()
    except StoreError as error:
        logger.error("the store does not take what was trained: %s", error)
        _tell(connection, state=FAILING, why=f"({error})")
        _answer(connection, editor, RETRY)
        return True
    if done:
        _tell(connection, state=READY)
    return done


def _answer(connection: Connection, editor: Editor | None, seconds: float) -> None:
    """Does the commands that come within so many seconds. Raises Leave where none can come any more."""
    while connection.poll(seconds):
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            raise Leave from None
        if "leave" in message:
            raise Leave
        answer = OF_ANOTHER if editor is None else answer_of(editor, message["do"], message["with"])
        _tell(connection, id=message["id"], answer=answer)
        seconds = 0


def _tell(connection: Connection, **message: Any) -> None:
    try:
        connection.send_bytes(json.dumps(message).encode())
    except (BrokenPipeError, OSError):
        raise Leave from None
