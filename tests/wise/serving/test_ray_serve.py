"""Two replicas as a Ray Serve application: a new edit is answered by both, and a killed one comes back with it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from repository import ROOT
from waiting import DEADLINE, until

from wise.memory.store.store import Store
from wise.serving.auth import add_token_line, token_line

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.postgres]

FRANCE, SPAIN = "The capital of France is", "The capital of Spain is"


RUN = """
import json, signal, sys, ray, ray_serve
signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of pytest-xdist ignore it
here = ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
print("session:", here.address_info["session_dir"], flush=True)
ray.serve.start(http_options={"port": int(sys.argv[1])})
ray.serve.run(ray_serve.application(json.loads(sys.argv[2])), blocking=True)
"""
"""`serve run`, on its own port and in its own small cluster."""
PATIENCE = 300
"""Seconds that Ray gives its own processes to start, and that the replicas have to be ready after that."""


class Replicas:
    """Two replicas of the shipped model."""

    def __init__(self, store: str, folder: Path) -> None:
        pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'wise-runtime[ray]'")
        add_token_line(folder / "tokens", token_line("tester", "admin", "secret"))
        port = free_port()
        # In this mode no process loads the sentence encoder.
        arguments = {"replicas": "2", "store": store, "tokens": str(folder / "tokens"), "mode": "retrieve"}
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_server_request_timeout_seconds": str(PATIENCE),
            "RAY_raylet_start_wait_time_s": str(PATIENCE),
            "RAY_agent_register_timeout_ms": str(1000 * PATIENCE),
        }
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(port), json.dumps(arguments)],
                stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT / "deploy",
            )
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer secret"}, timeout=120.0
        )

    def wait(self) -> None:
        """Returns when they are ready."""

        def ready() -> bool:
            return "is ready at" in self._output.read_text()

        until(lambda: ready() or self.process.poll() is not None, 2 * PATIENCE, "the replicas are not ready")
        if not ready():
            raise RuntimeError(self._output.read_text())
        [session] = re.findall("^session: (.*)$", self._output.read_text(), re.MULTILINE)
        self._logs = Path(session, "logs")

    def ask(self, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
        """The process of the replica that answered, by its log, and what it answered. Raises HTTPError."""
        answer = self.client.request(method, path, **options)
        answer.raise_for_status()
        request = answer.headers["x-request-id"].partition(",")[0]  # Ray repeats it
        pids: list[int] = []
        missing = f"no replica's log in {self._logs} has the request {request}, which was answered"
        until(lambda: pids.extend(self._processes(request)) or pids, missing=missing)
        return pids[0], answer.json()

    def _processes(self, request: str) -> list[int]:
        """Those that have logged a request, by Ray's files of what each writes to stderr. What Ray shows of these is
        read while it is written, so a line may be shown in two parts."""
        request_field = f'"request": "{request}"'
        files = [file for file in self._logs.glob("worker-*.err") if request_field in file.read_text(errors="replace")]
        return [int(file.stem.rpartition("-")[2]) for file in files]

    def completions(self, prompt: str) -> dict[int, str]:
        """The answer of each of the two replicas, by its process."""
        texts: dict[int, str] = {}

        def both() -> bool:
            try:
                process, answer = self.ask("POST", "/v1/completions", json=_body(prompt))
            except httpx.HTTPError:
                return False  # a replica is dead, or starts
            texts[process] = answer["choices"][0]["text"]
            return len(texts) == 2

        until(both)
        return texts

    def writer(self) -> int:
        """The process of the replica whose editor trains."""
        pids: list[int] = []

        def ready() -> bool:
            process, status = self.ask("GET", "/v1/status")
            pids[:] = [process]
            return bool(status["editor"]["state"] == "ready")

        until(ready)
        return pids[0]

    def edit(self, prompt: str, subject: str) -> None:
        edit = {"prompt": prompt, "target": "Lyon", "subject": subject}
        _, answer = self.ask("POST", "/v1/edits", json={"edits": [edit], "wait": "live"})
        assert [each["status"] for each in answer["edits"]] == ["live"]

    def end(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGINT)  # as on a terminal
        try:
            self.process.wait(DEADLINE)
        finally:
            self.process.kill()  # if it did not end
            self.process.wait()


def free_port() -> int:
    """A free port outside the range from which the system chooses ports."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def _body(prompt: str) -> dict[str, Any]:
    return {"model": "wise-demo", "prompt": prompt, "temperature": 0}


@contextmanager
def replicas(store: str, folder: Path) -> Iterator[Replicas]:
    started = Replicas(store, folder)
    try:
        started.wait()
        yield started
    finally:
        started.end()


@contextmanager
def streaming(served: Replicas) -> Iterator[list[tuple[str, str]]]:
    """A client that streams one answer after the other; the version and text of each."""
    events: list[tuple[str, str]] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with served.client.stream("POST", "/v1/completions", json=_body(FRANCE) | {"stream": True}) as stream:
                lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
            parts = [json.loads(line)["choices"] for line in lines[:-1]]
            text = "".join(choice["text"] for choices in parts for choice in choices)
            events.append((stream.headers["x-wise-version"], text if lines[-1] == "[DONE]" else "broken"))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: events)
        yield events
    finally:
        stop.set()
        thread.join()


def test_a_new_edit_is_answered_by_both_replicas_and_a_killed_one_comes_back_with_it(
    url: str, tmp_path: Path
) -> None:
    Store.open(url).close()
    with replicas(url, tmp_path) as served:
        before = served.completions(FRANCE)
        assert [*before.values()] == [" Paris.", " Paris."]
        with streaming(served) as events:
            served.edit(FRANCE, "France")
            until(lambda: served.completions(FRANCE) == dict.fromkeys(before, " Lyon."))
            count = len(events)
            until(lambda: len(events) > count)
        assert {*events} == {("0", " Paris."), ("1", " Lyon.")}

        killed = served.writer()
        os.kill(killed, signal.SIGKILL)
        again = served.completions(FRANCE)
        assert killed in before and killed not in again and [*again.values()] == [" Lyon.", " Lyon."]
        served.edit(SPAIN, "Spain")  # by the replica that was no writer, or by the new one
        until(lambda: [*served.completions(SPAIN).values()] == [" Lyon.", " Lyon."])
        assert [*served.completions(FRANCE).values()] == [" Lyon.", " Lyon."]
    with Store.open(url, writer=False) as store:
        assert [edit.prompt for edit in store.read().state.edits] == [FRANCE, SPAIN]
