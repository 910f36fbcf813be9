"""The service's end of the pipe blocks no caller, whatever the editor does, and starts each editor again that ends."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest
from waiting import until

from wise.errors import StoreError
from wise.serving import editor_client as module
from wise.serving.editor_client import ENDED, READY, EditorClient, Worker
from wise.serving.engines import BusyError
from wise.serving.fair_queue import FairQueue

LARGE = "x" * 1_000_000
"""Larger than a pipe's buffer."""


class Silent:
    """An editor that reports that it is ready, and then reads nothing, like a stopped process."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def __call__(self, connection: Connection) -> Worker:
        def run() -> None:
            with connection:
                connection.send_bytes(b'{"status": {"state": "ready"}}')
                self.may_end.wait()

        return threading.Thread(target=run, daemon=True)


@contextmanager
def client(make: Any) -> Iterator[EditorClient]:
    started = EditorClient(make)
    started.start()
    try:
        yield started
    finally:
        started.close(0.1)


def test_the_time_in_a_state_goes_on_while_nothing_changes() -> None:
    messages, may_say, may_end = list[bytes](), threading.Semaphore(0), threading.Event()

    def make(connection: Connection) -> Worker:
        def run() -> None:
            with connection:
                while may_say.acquire() and not may_end.is_set():
                    connection.send_bytes(messages.pop(0))

        return threading.Thread(target=run, daemon=True)

    def time_of_state(status: bytes, why: str) -> float:
        """Sends a status; returns since when the editor has its state or stage, by the client."""
        messages.append(b'{"status": {%s, "why": "%s"}}' % (status, why.encode()))
        may_say.release()
        until(lambda: editor.why == why)
        return editor.since

    with client(make) as editor:
        waiting_since = time_of_state(b'"state": "waiting"', "one")
        repeated = time_of_state(b'"state": "waiting", "stage": ""', "two")
        assert repeated == waiting_since, "an editor that asks again is as it was"
        assert time_of_state(b'"state": "preparing", "stage": "loading the model"', "three") > waiting_since
        loading = editor.since
        assert time_of_state(b'"stage": "keys"', "four") > loading, "a stage counts like a state"
        may_end.set()
        may_say.release()


def test_an_editor_that_reads_nothing_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMAND_TIMEOUT", 0.2)
    silent = Silent()
    with client(silent) as editor:
        until(lambda: editor.state == READY)

        async def all_at_once() -> list[Any]:
            calls = (editor.call("preview", prompts=[LARGE]) for _ in range(module.MOST_COMMANDS + 1))
            return await asyncio.gather(*calls, return_exceptions=True)

        answers = asyncio.run(all_at_once())
        assert sum(isinstance(answer, BusyError) for answer in answers) == 1, "the last is refused at once"
        late = [str(answer) for answer in answers if isinstance(answer, StoreError)]
        assert len(late) == module.MOST_COMMANDS and all("did not answer within" in problem for problem in late)
        start = time.monotonic()
        editor.close(0.1)
        assert time.monotonic() - start < 30, "what blocks in the pipe does not hold up the end"
    silent.may_end.set()


def test_a_broken_pipe_is_told_as_an_editor_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 60.0)
    silent = Silent()
    with client(silent) as editor:
        until(lambda: editor.state == READY)

        async def ask() -> None:
            call = asyncio.create_task(editor.call("delete", edit_ids=[LARGE]))
            await asyncio.sleep(0)
            silent.may_end.set()
            with pytest.raises(StoreError, match="ended meanwhile"):
                await call
            with pytest.raises(StoreError, match="the editor here is ended"):
                await editor.call("delete", edit_ids=["e1"])

        asyncio.run(ask())


def test_an_editor_is_started_again_with_growing_pauses_and_never_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.004)
    workers: list[str] = []

    def fails(connection: Connection) -> Worker:
        """First no process can be started, then some end at once, then one works."""
        workers.append("one")
        if len(workers) <= 2:
            raise OSError(24, "Too many open files")
        if len(workers) <= 5:
            return threading.Thread(target=connection.close)
        return Silent()(connection)

    counted: list[None] = []
    with caplog.at_level(logging.ERROR):
        editor = EditorClient(fails, lambda: counted.append(None))
        editor.start()
        until(lambda: editor.state == READY)
        editor.close(0.1)
    pauses = [line.rsplit(" in ", 1)[1] for line in caplog.messages if "started again in" in line]
    assert pauses == ["0.001 s", "0.002 s", "0.004 s", "0.004 s", "0.004 s"]
    assert editor.restarts == len(counted) == 5 and "Too many open files" in caplog.text


def test_one_that_is_told_to_end_is_not_started_again() -> None:
    silent = Silent()
    editor = EditorClient(silent)
    editor.start()
    until(lambda: editor.state == READY)
    editor.leave()
    silent.may_end.set()
    editor.close(60)
    assert editor.state == ENDED and editor.restarts == 0


def test_turns_go_round_the_holders_and_too_many_are_refused_at_once() -> None:
    async def run() -> list[str]:
        queue, order, may_end = FairQueue(8, 60), list[str](), asyncio.Event()

        async def preview(holder: str) -> None:
            async with queue.turn(holder):
                order.append(holder)
                await may_end.wait()

        tasks = [asyncio.create_task(preview(holder)) for holder in ("anna", "anna", "anna", "ben", "anna", "cleo")]
        await asyncio.sleep(0)
        assert len(queue) == 5
        tasks.append(asyncio.create_task(preview("anna")))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="too many wait already") as refused:
            await preview("anna")  # half of the places are hers
        assert refused.value.retry_after >= 1
        tasks[2].cancel()  # a client that leaves frees its place
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(queue) == 0
        await preview("ben")
        return order

    assert asyncio.run(run()) == ["anna", "anna", "ben", "cleo", "anna", "anna", "ben"]


def test_who_waits_too_long_is_told_to_come_back() -> None:
    async def run() -> None:
        queue = FairQueue(8, 0.01)
        async with queue.turn("anna"):
            with pytest.raises(BusyError, match="it waited 0.01 s"):
                async with queue.turn("ben"):
                    pass
        async with queue.turn("ben"):
            pass

    asyncio.run(run())
