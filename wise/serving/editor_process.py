"""The editor: a process that is the store's one writer, and the service's client of it.

It trains queued edits, and runs commands: delete, rollback, preview. All of it happens one after the other. It is a
process of its own, so that training shares neither the interpreter lock nor the threads of answering, can be niced,
and cannot take the service down. If it dies it is started again; all that it had promised is in the store.

A command goes through a pipe, as JSON, to the editor of the replica that was asked. If another replica's editor is the
writer, it goes through the store.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from wise.edits import Edit
from wise.errors import ConfigError, EditError, RefusedError, StoreError, WiseError
from wise.loading import load_model
from wise.memory.store.edit_request import Ticket, Version
from wise.memory.store.store import Store
from wise.model import WiseModel, wrap
from wise.namespaces import edited, forgotten, make_ready, within
from wise.serving.follower import trim_heap
from wise.serving.logs import run_logged
from wise.serving.settings import Settings
from wise.training.report import FAILED

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT = 120.0
"""Seconds that a command may take: it waits for the batch that is being trained."""
POLL = 0.05
"""Seconds between two looks for the answer of another replica."""
IDLE = 0.1
"""Seconds between two looks at an empty queue."""
RETRY = 1.0
"""Seconds until the editor asks again to become the writer, or to write."""
STARTING, WAITING, READY, FAILING, ENDED = "starting", "waiting", "ready", "failing", "ended"
"""States of the editor: loading, waiting for another writer to end, working, refused by the store, not running."""
INTERRUPTED = {"kind": "StoreError", "problem": "the writer ended meanwhile; see whether it was done, and try again"}
"""The answer to a command that was begun by a writer that no longer runs."""
NOT_THE_WRITER = {"kind": "StoreError", "problem": "another process is the writer of this store by now; try again"}
_KINDS: dict[str, type[WiseError]] = {kind.__name__: kind for kind in (ConfigError, EditError, StoreError)}


class Editor:
    """Edits `store` with a model of its own, which serves no requests."""

    def __init__(self, model: WiseModel, store: Store, settings: Settings) -> None:
        """Raises StoreError if the store is of another base or other settings."""
        make_ready(model, store.read(), store.backend.place, allow_precision=settings.allow_precision)
        store.commands.abandon(INTERRUPTED)
        self._model, self._store, self._settings = model, store, settings

    def work(self) -> bool:
        """Runs a command of another replica, or else trains and commits the oldest queued edits.

        Returns False if there is nothing to do. Raises StoreError if the disk does not take the result; the edits are
        then queued again.
        """
        command = self._store.commands.claim()
        if command is not None:
            self._store.commands.answer(command.id, run_command(self, command.name, command.arguments))
            return True
        expired = self._store.expired()
        if expired:
            self._delete([ticket.edit.id for ticket in expired], author=None, reason="its time is over")
        tickets = self._store.claim(self._settings.edit_batch)
        if not tickets:
            return bool(expired)
        try:
            self._train(tickets)
        except StoreError as error:
            if not isinstance(error, RefusedError):
                self._store.requeue(tickets, why=str(error))
                raise
            self._train_singly(tickets)
        except Exception as error:
            if not isinstance(error, EditError):
                logger.exception("training %d edits failed", len(tickets))
            self._train_singly(tickets)
        return True

    def _train_singly(self, tickets: Sequence[Ticket]) -> None:
        """Trains each edit of a failed batch by itself, so that only those at fault fail."""
        for ticket in tickets:
            try:
                self._train([ticket])
            except Exception as error:
                if isinstance(error, StoreError) and not isinstance(error, RefusedError):
                    raise
                if not isinstance(error, WiseError):
                    logger.exception("training edit %s failed", ticket.edit.id)
                why = {"status": FAILED, "why": f"{type(error).__name__}: {error}"[:500]}
                self._store.fail([ticket], detail=why)

    def _train(self, tickets: Sequence[Ticket]) -> None:
        edits = [ticket.edit for ticket in tickets]
        begun = time.monotonic()
        logger.info("training", extra={"fields": {"edits": [edit.id for edit in edits]}})
        before = self._store.read()
        state, outcomes = edited(self._model, before.state, edits)
        authors = sorted({edit.author for edit in edits if edit.author})
        version = self._store.commit(
            tickets,
            state,
            parent=before.version,
            config=self._model.wise_config,
            base=before.base or self._model.fingerprint(),  # a store stays one of the precision that it began in
            outcomes={outcome.id: asdict(outcome) for outcome in outcomes},
            author=", ".join(authors) or None,
        )
        spent = round(time.monotonic() - begun, 3)
        logger.info("committed", extra={"fields": {"version": version.number, "seconds": spent}})
        keep = self._settings.keep_versions
        if version.number % keep == 0:
            self._store.gc(keep=keep)
        trim_heap()

    # -- commands ---------------------------------------------------------------------------------

    def do(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Runs one of the commands below, by its name."""
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            "delete": self.delete,
            "rollback": self.rollback,
            "preview": self.preview,
        }
        return commands[name](**arguments)

    def delete(self, edit_ids: list[str], author: str | None, reason: str | None) -> dict[str, Any]:
        return self._delete(edit_ids, author, reason).to_dict()

    def _delete(self, edit_ids: Sequence[str], author: str | None, reason: str | None) -> Version:
        forget = partial(forgotten, self._model)
        return self._store.delete(edit_ids, forget=forget, author=author, reason=reason)

    def rollback(self, version: int, author: str | None, reason: str | None) -> dict[str, Any]:
        return self._store.rollback(version, author=author, reason=reason).to_dict()

    def preview(self, edit: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
        """Answers to an edit's own prompt and to others, before and after the edit, which is not stored."""
        wanted = Edit.from_dict(edit)
        before = within(self._store.read().state, wanted.namespace)
        asked = [self._model.encoder.own_prompt(wanted), *prompts]
        with self._model.evaluating():
            trainer, serve = self._model.trainer, self._model.serving
            after, report = trainer.edit(before, [wanted], serve=serve)
            [outcome] = trainer.with_before(before, [wanted], report.outcomes, serve=serve)
        with self._model.serving(before):
            old_answers = self._model.ask(asked)
        with self._model.serving(after):
            new_answers = self._model.ask(asked)
        answers = [
            {"prompt": old.prompt, "before": old.text, "after": new.text}
            for old, new in zip(old_answers, new_answers, strict=True)
        ]
        return {"outcome": asdict(outcome), "replaced": list(report.replaced), "answers": answers}


def run_command(editor: Editor, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a command, as JSON: what was `done`, or the `kind` of an error and the `problem`."""
    try:
        return {"done": editor.do(name, arguments)}
    except Exception as error:
        if not isinstance(error, WiseError):
            logger.exception("the command %s failed", name)
        return {"kind": type(error).__name__, "problem": str(error)}


def command_result(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What was done. Raises what the writer raised."""
    if "done" in answer:
        return dict(answer["done"])
    raise _KINDS.get(answer["kind"], StoreError)(answer["problem"])


def send_to_writer(store: Store, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Has the store's writer, in another replica, run a command.

    Raises what the writer raised, or StoreError if none takes it up or it takes too long.
    """
    command = store.commands.enqueue(name, arguments, COMMAND_TIMEOUT)
    end = time.monotonic() + COMMAND_TIMEOUT
    while time.monotonic() < end:
        answer = store.commands.take_answer(command)
        if answer is not None:
            return command_result(answer)
        time.sleep(POLL)
    limit = f"within {COMMAND_TIMEOUT:.0f} s"
    if store.commands.withdraw(command):
        raise StoreError(f"no writer took it up {limit}, and none will; see that a replica can write")
    raise StoreError(f"the writer did not answer {limit}; it may still do it")


# -- the service's end ------------------------------------------------------------------------------


Worker = BaseProcess | threading.Thread
"""What runs the editor's end: a process, or a thread in tests."""


class EditorClient:
    """Starts the editor, follows its state, and sends it commands. Its methods may be called from any thread."""

    def __init__(self, make: Callable[[Connection], Worker]) -> None:
        """make: a worker, not started yet, that serves the other end of a connection."""
        self._make = make
        self._lock = threading.Lock()
        self._pending: dict[int, Future[dict[str, Any]]] = {}
        self._count = 0
        self._closing = False
        self._connection: Connection | None = None
        self._worker: Worker | None = None
        self.state = STARTING
        self.why = ""
        """The reason for a state in which it does not work."""
        self._thread = threading.Thread(target=self._run, name="wise-editor-client", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Ends the editor after its current work; kills it after so many seconds."""
        with self._lock:
            self._closing = True
            if self._connection is not None:
                with suppress(OSError):
                    self._connection.send_bytes(json.dumps({"leave": True}).encode())
        self._thread.join(seconds)
        if self._thread.is_alive() and isinstance(self._worker, BaseProcess):
            self._worker.kill()  # the store survives it

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Has the editor run a command.

        Raises what the editor raised, or StoreError if it does not run or takes too long.
        """
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._connection is None or self.state not in (READY, FAILING):
                raise StoreError(f"the editor here is {self.state} {self.why}".rstrip() + "; try again later")
            self._count += 1
            message = {"id": self._count, "do": name, "with": arguments}
            self._pending[self._count] = answer
            self._connection.send_bytes(json.dumps(message).encode())
        try:
            return command_result(answer.result(COMMAND_TIMEOUT))
        except TimeoutError:
            limit = f"within {COMMAND_TIMEOUT:.0f} s"
            raise StoreError(f"the editor did not answer {limit}; it may still do it") from None

    def _run(self) -> None:
        while not self._closing:
            own, others = multiprocessing.Pipe()
            self._worker = self._make(others)
            with self._lock:
                self._connection = own
                if self._closing:
                    return
            self._worker.start()
            if isinstance(self._worker, BaseProcess):
                others.close()  # otherwise the end of the process would not be noticed
            with suppress(EOFError, OSError):
                while True:
                    self._receive(json.loads(own.recv_bytes()))
            with self._lock:
                self.state, self.why, self._connection = ENDED, "", None
                lost, self._pending = self._pending, {}
            for answer in lost.values():
                answer.set_exception(StoreError("the editor ended meanwhile; see whether it was done, and try again"))
            self._worker.join()
            if not self._closing:
                logger.error("the editor ended; it is started again")
                time.sleep(RETRY)

    def _receive(self, message: dict[str, Any]) -> None:
        if "state" in message:
            self.state, self.why = message["state"], message.get("why", "")
            return
        with self._lock:
            answer = self._pending.pop(message["id"])
        answer.set_result(message["answer"])


# -- the editor's end -------------------------------------------------------------------------------


class _Leave(Exception):
    """The service has closed its end."""


def run_editor(connection: Connection, open_editor: Callable[[], Editor]) -> None:
    """Works off the queue, and runs commands in between, until the service closes its end.

    open_editor: raises StoreError while another process is the writer, and is then called again.
    """
    with connection, suppress(_Leave):
        editor = None
        while editor is None:
            try:
                editor = open_editor()
            except StoreError as error:
                _send(connection, state=WAITING, why=f"({error})")
                _answer(connection, None, RETRY)
        _send(connection, state=READY)
        while True:
            try:
                if editor.work():
                    _send(connection, state=READY)
                else:
                    _answer(connection, editor, IDLE)
            except StoreError as error:
                logger.error("the store does not take what was trained: %s", error)
                _send(connection, state=FAILING, why=f"({error})")
                _answer(connection, editor, RETRY)
            _answer(connection, editor, 0)


def _answer(connection: Connection, editor: Editor | None, seconds: float) -> None:
    """Runs the commands that come within so many seconds. Raises _Leave if none can come any more."""
    while connection.poll(seconds):
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            raise _Leave from None
        if "leave" in message:
            raise _Leave
        answer = NOT_THE_WRITER if editor is None else run_command(editor, message["do"], message["with"])
        _send(connection, id=message["id"], answer=answer)
        seconds = 0


def _send(connection: Connection, **message: Any) -> None:
    try:
        connection.send_bytes(json.dumps(message).encode())
    except OSError:
        raise _Leave from None


def editor_process(settings: Settings, connection: Connection) -> Worker:
    """The editor as a process, not started yet."""
    context = multiprocessing.get_context("spawn")  # a forked torch hangs
    arguments = (settings.log_level, f"{__name__}:main", settings, connection)
    return context.Process(target=run_logged, args=arguments, name="wise-editor", daemon=True)


def main(settings: Settings, connection: Connection) -> None:
    """The editor's end, in its own process."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service says when it is to end
    with suppress(OSError):
        os.nice(settings.edit_niceness)
    torch.set_num_threads(settings.edit_threads)
    models: list[WiseModel] = []

    def opened() -> Editor:
        store = Store.open(settings.store)
        try:
            if not models:
                base = load_model(settings.model, placement=settings.placement())
                models.append(wrap(*base, settings.wise_config(store.read().config)))
            return Editor(models[0], store, settings)
        except BaseException:
            store.close()
            raise

    run_editor(connection, opened)
