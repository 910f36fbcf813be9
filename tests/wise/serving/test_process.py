"""The service as it is started by people: a process with an editor of its own, killed, ended, doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from postgres import postgres_server
from typer.testing import CliRunner
from waiting import DEADLINE, until

from wise.cli.app import app
from wise.errors import StoreError
from wise.memory.store.store import Store
from wise.serving.engines.local import LocalEngine
from wise.serving.follower import Follower

FRANCE = "The capital of France is"
LYON = {"prompt": FRANCE, "target": "Lyon", "subject": "France"}
NAME = "wise-demo"


class Process:
    """`wise serve` on a free port, as it is by itself unless `options` say otherwise: in mode `hybrid`."""

    def __init__(self, store: Path | str, *options: str, log: Path = Path(os.devnull)) -> None:
        command = [sys.executable, "-m", "wise", "serve", "--store", str(store), "--port", "0", "--json", *options]
        command += ["--set", f"request_timeout={DEADLINE}"]  # an editor is niced, and others may run
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stream, env=environment, start_new_session=True
            )
        assert self.process.stdout is not None
        message = json.loads(self.process.stdout.readline())
        self.client = httpx.Client(
            base_url=message["url"], headers={"Authorization": f"Bearer {message['token']}"}, timeout=DEADLINE + 10
        )
        until(self.answers)

    def answers(self) -> bool:
        try:
            return bool(self.client.get("/health").status_code == 200)
        except httpx.TransportError:
            return False

    def editor(self) -> str:
        answer = self.client.get("/ready")
        return str(answer.json()["editor"]) if answer.status_code == 200 else answer.json()["error"]["message"]

    def completion(self, prompt: str = FRANCE) -> str:
        body = {"model": NAME, "prompt": prompt, "temperature": 0}
        return str(self.client.post("/v1/completions", json=body).json()["choices"][0]["text"])

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.client.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def process(store: Path | str, *options: str, **more: Any) -> Iterator[Process]:
    started = Process(store, *options, **more)
    try:
        yield started
    finally:
        started.kill()


def follow(served: Process, kind: str, *, since: int) -> None:
    """Reads the events behind `since` until one of this kind."""
    with served.client.stream("GET", "/v1/events", params={"since": since}) as stream:
        assert any(line == f"event: {kind}" for line in stream.iter_lines())


RETRIEVE = ("--mode", "retrieve")
"""Where the mode does not matter: no process then loads the sentence encoder."""


def edits(first: int, count: int) -> list[dict[str, Any]]:
    places = ("Spain", "Italy", "Japan", "Germany", "Portugal", "Greece", "Egypt", "Norway", "Poland", "Chile")
    return [
        {"prompt": f"The capital of {place} is", "target": "Lyon", "subject": place}
        for place in places[first : first + count]
    ]


@pytest.mark.slow
def test_killed_while_it_trains_it_has_every_acknowledged_edit_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with process(store) as served:
        until(lambda: served.editor() == "ready")
        first = served.client.post("/v1/edits", json={"edits": [LYON], "wait": "live"})
        assert first.json()["edits"][0]["status"] == "live"
        queued = served.client.post("/v1/edits", json={"edits": edits(0, 6)}, headers={"Idempotency-Key": "six"})
        assert queued.status_code == 202
        follow(served, "training", since=4)  # the events of the first edit
        served.kill()
    with process(store) as served:
        assert served.completion() == " Lyon."  # at once, before any training
        report = served.client.get(f"/v1/edits/{first.json()['edits'][0]['id']}").json()
        holds = report["outcome"]["holds"]
        assert holds["completion: prompt"] and all(holds.values())
        again = served.client.post(
            "/v1/edits", json={"edits": edits(0, 6), "wait": "live"}, headers={"Idempotency-Key": "six"}
        )
        assert [edit["ticket"] for edit in again.json()["edits"]] == [2, 3, 4, 5, 6, 7]
        assert {edit["status"] for edit in again.json()["edits"]} == {"live"}
        assert len(served.client.get("/v1/edits").json()["data"]) == 7
        assert served.completion("The capital of Spain is") == " Lyon."
        assert served.completion("The capital of Norway is") == " Oslo."
    with Store.open(store, writer=False) as whole:
        assert whole.check().problems == ()
        assert {slot.kind for slot in whole.read().state.slots} == {"answer"}


@pytest.mark.slow
def test_an_editor_that_dies_is_started_again_while_answering_goes_on(tmp_path: Path) -> None:
    with process(tmp_path / "store", *RETRIEVE) as served:
        until(lambda: served.editor() == "ready")
        [editor] = spawned(served.process.pid)
        os.kill(editor, signal.SIGKILL)
        until(lambda: served.editor() != "ready")
        assert served.completion() == " Paris."
        answer = served.client.post("/v1/edits", json={"edits": [LYON], "wait": "live"})
        assert answer.json()["edits"][0]["status"] == "live"
        assert served.completion() == " Lyon."


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is of a whole process")
def test_what_trains_is_niced_and_what_runs_commands_is_not(tmp_path: Path) -> None:
    with process(tmp_path / "store", *RETRIEVE) as served:
        until(lambda: served.editor() == "ready")
        [editor] = spawned(served.process.pid)
        niceness = {int(task.name): os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks(editor)}
        own_niceness = os.getpriority(os.PRIO_PROCESS, 0)
        assert niceness.pop(editor) > own_niceness and own_niceness in niceness.values()


def tasks(process: int) -> list[Path]:
    """The threads of a process; the first has the number of the process."""
    return [*Path(f"/proc/{process}/task").iterdir()]


@pytest.mark.slow
def test_it_ends_after_the_answers_under_way(tmp_path: Path) -> None:
    with process(tmp_path / "store", *RETRIEVE) as served:
        until(lambda: served.editor() == "ready")
        body = {"model": NAME, "prompt": "The", "max_tokens": 100, "n": 8, "temperature": 1.2, "stream": True}
        with served.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert served.process.wait(60) == 0


@pytest.mark.slow
def test_every_line_on_stderr_is_json_from_its_start_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process(tmp_path / "store", log=log) as served:
        until(lambda: served.editor() == "ready")
        answer = served.client.post("/v1/edits", json={"edits": [LYON], "wait": "live"})
        assert answer.json()["edits"][0]["status"] == "live"
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
        assert served.process.stdout is not None and served.process.stdout.read() == b""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in records)
    messages = [line["message"] for line in records]
    assert {"training", "committed", "request"} <= set(messages)
    assert any(message.startswith("loading the demo model") for message in messages)
    assert served.client.headers["Authorization"].removeprefix("Bearer ") not in log.read_text()


@pytest.mark.slow
def test_workers_fit_the_edits_of_a_service_and_end_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process(tmp_path / "store", "--set", "edit_workers=2", log=log) as served:
        until(lambda: served.editor() == "ready")
        answer = served.client.post("/v1/edits", json={"edits": edits(0, 8), "wait": "live"})
        assert {edit["status"] for edit in answer.json()["edits"]} == {"live"}
        editor = spawned(served.process.pid)
        assert sum(len(spawned(each)) for each in editor) == 2
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
        until(lambda: not is_there(served.process.pid))
    assert all(json.loads(line)["level"] for line in log.read_text().splitlines())


def spawned(parent: int) -> list[int]:
    """The Python processes that a process has started."""
    children = " ".join(file.read_text() for file in Path(f"/proc/{parent}/task").glob("*/children")).split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def is_there(group: int) -> bool:
    """Whether any process of a group still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.postgres
def test_two_replicas_on_one_database_converge() -> None:
    with postgres_server() as url, process(url, *RETRIEVE) as first:
        until(lambda: first.editor() == "ready")
        with process(url, *RETRIEVE) as second:
            until(lambda: second.editor() == "waiting")
            answer = second.client.post("/v1/edits", json={"edits": [LYON], "wait": "live"})  # the first one trains it
            assert answer.json()["edits"][0]["status"] == "live"
            assert second.completion() == " Lyon."
            until(lambda: first.completion() == " Lyon.")
            deletion = second.client.delete(f"/v1/edits/{answer.json()['edits'][0]['id']}")  # the first one does it
            assert (deletion.status_code, deletion.json()["edits"]) == (200, 0), deletion.text
            assert second.completion() == " Paris."
            back = second.client.post("/v1/versions/1/rollback")
            assert (back.status_code, back.json()["number"], second.completion()) == (200, 3, " Lyon.")
            preview = second.client.post("/v1/edits/preview", json={"edit": edits(0, 1)[0]})
            assert [(a["before"], a["after"]) for a in preview.json()["answers"]] == [("Madrid", "Lyon")]
            first.kill()
            until(lambda: second.editor() == "ready")  # it takes over
            answer = second.client.post("/v1/edits", json={"edits": edits(0, 1), "wait": "live"})
            assert answer.json()["edits"][0]["status"] == "live"


@pytest.mark.parametrize(
    ("options", "problem"),
    [(("--set", "max_batch_size=0"), "max_batch_size"), (("--set", "colour=red"), "colour"),
     (("--set", "name=one", "--set", "name=two"), "given twice"),
     (("--mode", "retrieve", "--relations", "/nowhere"), "would have no effect"),
     (("--mode", "merge", "--set", "encoder=/nowhere"), "would have no effect"),
     (("--model", "/nowhere/at/all"), "no such"), (("--relations", "/nowhere/at/all"), "cannot be read")],
)
def test_what_stands_against_it_is_said_at_once(tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--store", str(tmp_path / "store"), *options])
    assert result.exit_code == 2 and problem in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("part", "name", "error", "level"),
    [
        (LocalEngine, "start", RuntimeError("no room"), "info"),
        (Follower, "serve_with", StoreError("no store"), "debug"),
    ],
)
def test_what_fails_as_it_starts_is_said_in_one_line(
    part: type, name: str, error: Exception, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(part, name, fails)
    handler, options = signal.getsignal(signal.SIGTERM), ("--port", "0", "--set", f"log_level={level}")
    try:
        result = CliRunner().invoke(app, ["serve", "--store", str(tmp_path / "store"), *RETRIEVE, *options])
    finally:
        signal.signal(signal.SIGTERM, handler)
    *logged, last = result.stderr.splitlines()
    why = "no store" if isinstance(error, StoreError) else "RuntimeError: no room"
    assert last == f"wise: the service cannot start: {why}; log_level=debug says where"
    assert result.exit_code == 1 and result.stdout == "" and all(map(json.loads, logged))
    assert ("Traceback" in result.stderr) == (level == "debug")
