"""The editor's process: it opens the store as its writer, prepares a model, and works until the service closes its end.

It is a process of its own, so that training shares neither the interpreter lock nor the threads of answering, can be
niced, and cannot take the service down. If it dies it is started again (`wise.serving.editor_client`); all that it had
promised is in the store. If it loses the store it leaves what it does, and opens the store again.

A command comes through a pipe, as JSON, or through the store from another replica. A thread reads the pipe from the
first moment on. Nothing else reads it, and that thread never waits for the thread of the model, so a message to the
editor is always taken, and deletes and rollbacks are done while the model is still being prepared.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from wise.config import WiseConfig
from wise.errors import StoreError
from wise.loading import load_model
from wise.memory.store.store import ENDED, Store
from wise.model import WiseModel, wrap
from wise.progress import SECONDS_A_LINE
from wise.serving.editor import LOST, Editor, Leave
from wise.serving.editor_client import FAILING, NOT_THE_WRITER, PREPARING, READY, WAITING, Worker
from wise.serving.logs import begin_logged, error_without_texts, run_logged
from wise.serving.settings import Settings
from wise.workers import Workers, process_pool

logger = logging.getLogger(__name__)

IDLE = 0.1
"""Seconds between two looks at an empty queue."""
RETRY = 1.0
"""Seconds until the editor asks again to become the writer, or to write."""
BEAT = 1.0
"""Seconds between two signs of life."""


class EditorEnd:
    """The editor's end of the pipe, with the thread that reads it."""

    def __init__(self, connection: Connection, at_end: Callable[[], None]) -> None:
        """at_end: called when the service has closed its end and no edit is in training any more."""
        self._connection, self._at_end = connection, at_end
        self._sending = threading.Lock()
        self._waiting: set[int] = set()
        """Numbers of the commands whose callers wait for the answer."""
        self.editor: Editor | None = None
        self.leaving = threading.Event()
        self._stage = ""
        self._started_at = self._logged_at = time.monotonic()
        self._trouble = ""
        """Why the store could not be asked for commands the last time."""
        threading.Thread(target=self._run, name="wise-editor-commands", daemon=True).start()

    def tell(self, **changed: Any) -> None:
        """Sends the changed fields of the editor's status to the service; also logs a new stage."""
        if "stage" in changed:
            self._stage, self._logged_at = changed["stage"], time.monotonic()
            if self._stage:
                logger.info("preparing: %s", self._stage)
        self._send(status=changed)

    @contextmanager
    def editing(self, editor: Editor) -> Iterator[Editor]:
        """Within the block commands go to this editor."""
        self.editor = editor
        try:
            yield editor
        finally:
            self.editor = None
            editor.give_up()

    def _run(self) -> None:
        beat = attended = 0.0
        try:
            while True:
                if self._connection.poll(IDLE):
                    self._take(json.loads(self._connection.recv_bytes()))
                now = time.monotonic()
                if now - beat >= BEAT:
                    beat = now
                    self._beat(now)
                editor = self.editor
                if editor is not None and not editor.has_lost_store and now - attended >= IDLE:
                    attended = now
                    self._attend(editor)
        except (EOFError, OSError, Leave):
            pass
        except Exception:
            logger.exception("the editor cannot read its commands; it ends")
        self.leaving.set()
        editor = self.editor
        if editor is not None:
            editor.leave()
        self._at_end()

    def _take(self, message: dict[str, Any]) -> None:
        if "leave" in message:
            raise Leave
        if "cancel" in message:
            self._waiting.discard(message["cancel"])
            return
        number, editor = message["id"], self.editor

        def answer(result: dict[str, Any]) -> None:
            self._waiting.discard(number)
            self._send(id=number, answer=result)

        if editor is None:
            answer(NOT_THE_WRITER)
        else:
            self._waiting.add(number)
            editor.do(message["do"], message["with"], answer, partial(self._waiting.__contains__, number))

    def _attend(self, editor: Editor) -> None:
        trouble = ""
        try:
            editor.attend()
        except StoreError as error:
            trouble = str(error)
            if trouble != self._trouble:  # each problem is logged once, not with every attempt
                logger.error("the store cannot be asked for commands of other replicas: %s", error)
        except Exception:
            logger.exception("a command of another replica cannot be understood")
        self._trouble = trouble

    def _beat(self, now: float) -> None:
        self._send(status={"cpu": time.process_time()})
        if self._stage and now - self._logged_at >= SECONDS_A_LINE:
            self._logged_at = now
            share = 100 * time.process_time() / (now - self._started_at)
            logger.info("still preparing: %s; it had %.0f%% of a CPU since its start", self._stage, share)

    def _send(self, **message: Any) -> None:
        with self._sending, suppress(OSError):  # the thread that reads notices that the service has left
            self._connection.send_bytes(json.dumps(message).encode())


def run_editor(
    connection: Connection,
    settings: Settings,
    *,
    open_store: Callable[[str], Store],
    load: Callable[[Store], WiseModel],
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Works off the queue until the service closes its end.

    open_store: called with `cut_off` of `Store.open`; called again after it raises StoreError because another process
    is the writer, and after the store is lost.
    """
    end, cut_off = EditorEnd(connection, at_end), ENDED
    model: WiseModel | None = None
    try:
        while not end.leaving.is_set():
            end.tell(stage="")
            try:
                with open_store(cut_off) as store, end.editing(Editor(store, settings, end.tell)) as editor:
                    end.tell(state=PREPARING, why="", stage="loading the model")
                    model = model or load(store)
                    editor.prepare(model)
                    cut_off = LOST
                    _work(end, editor)
            except StoreError as error:
                end.tell(state=WAITING, why=str(error))
                end.leaving.wait(RETRY)
    except Leave:
        return
    except Exception as error:
        end.tell(why=error_without_texts(error))
        raise
    finally:
        connection.close()  # so that the service notices, also if this is a thread


def _work(end: EditorEnd, editor: Editor) -> None:
    """Works until the editor must leave, which raises Leave, or the store is lost, which raises StoreError."""
    end.tell(state=READY, why="", stage="")
    failing = False
    while True:
        try:
            worked = editor.work()
        except StoreError as error:
            logger.error("the store does not take what was trained: %s", error)
            if editor.has_lost_store:
                raise
            failing = True
            end.tell(state=FAILING, why=str(error))
            end.leaving.wait(RETRY)
            continue
        if failing:
            failing = False
            end.tell(state=READY, why="")
        if not worked:
            editor.wait(IDLE)


def editor_process(settings: Settings, connection: Connection) -> Worker:
    """The editor as a process, not started yet."""
    context = multiprocessing.get_context("spawn")  # a forked torch hangs
    arguments = (settings.log_level, f"{__name__}:main", settings, connection)
    return context.Process(target=run_logged, args=arguments, name="wise-editor", daemon=True)


def main(settings: Settings, connection: Connection) -> None:
    """The editor's end, in its own process."""
    import torch

    torch.set_num_threads(settings.edit_threads)

    def load(store: Store) -> WiseModel:
        config = settings.wise_config(store.read().config)
        with suppress(OSError):
            os.nice(settings.edit_niceness)  # Linux: this thread and its own, so that no delete waits for a CPU
        model = loaded_model(settings, config)
        if settings.edit_workers is not None:
            multiprocessing.current_process().daemon = False  # a daemon may have no children; they end with it
            begin = (begin_logged, settings.log_level, "wise.workers:begin_worker")
            pool = partial(process_pool, settings.edit_workers, *begin)
            again = partial(loaded_model, settings, config)
            model.use_workers(Workers(again, pool, cpu_seconds=settings.edit_seconds))
        return model

    def open_store(cut_off: str) -> Store:
        return Store.open(settings.store, cut_off=cut_off)

    def end() -> None:
        sys.stderr.flush()
        os._exit(0)  # at once, also within a long step: edits in training are queued again

    run_editor(connection, settings, open_store=open_store, load=load, at_end=end)


def loaded_model(settings: Settings, config: WiseConfig) -> WiseModel:
    """The model to edit with; on a CPU it limits the process's memory."""
    model = wrap(*load_model(settings.model, placement=settings.placement()), config)
    if model.layer.device().type == "cpu":
        limit_memory(settings.edit_memory)
    return model


def limit_memory(gigabytes: float) -> None:
    """On Linux, limits this process to its present memory and so much more: then training fails, and the process is not
    killed."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/status", encoding="ascii") as status:
        current = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    most, hard = current + int(gigabytes * 2**30), resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
