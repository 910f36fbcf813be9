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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from repository import ROOT
from waiting import until

from wise.memory.store.store import Store
from wise.serving.auth import add_token_line, token_line

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.postgres]

FRANCE, SPAIN = "The capital of France is", "The capital of Spain is"


class Replicas:
    """A cluster of Ray on this machine, and in it `serve run` with two replicas of the shipped model."""

    def __init__(self, store: str, folder: Path) -> None:
        pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'wise-runtime[ray]'")
        port, cluster = free_ports(2)
        patient = {"RAY_raylet_start_wait_time_s": "180", "RAY_gcs_server_request_timeout_seconds": "180"}
        given = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "OMP_NUM_THREADS": "1"} | patient
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": os.environ | given}
        programs = Path(sys.executable).parent
        small = ["--num-cpus", "2", "--object-store-memory", "80000000", "--include-dashboard", "false"]
        command = [programs / "ray", "start", "--head", "--block", "--port", str(cluster), *small]
        self.cluster = subprocess.Popen(command, **options)
        assert self.cluster.stdout is not None
        told = ""
        for line in self.cluster.stdout:
            told += line
            if "Ray runtime started" in line:
                break
        assert "Ray runtime started" in told, told

        add_token_line(folder / "tokens", token_line("tester", "admin", "secret"))
        # In this mode no process loads the sentence encoder.
        arguments = {"replicas": "2", "store": store, "tokens": str(folder / "tokens"), "mode": "retrieve"}
        app = {"name": "wise", "import_path": "ray_serve:application", "args": arguments}
        file = folder / "serve.yaml"
        file.write_text(json.dumps({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [app]}))
        command = [programs / "serve", "run", "--address", f"127.0.0.1:{cluster}", "--app-dir", ROOT / "deploy", file]
        self.process = subprocess.Popen(command, **options)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer secret"}, timeout=120.0
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.log.extend(self.process.stdout)

    def ready(self) -> bool:
        assert self.process.poll() is None, "".join(self.log)
        try:
            return bool(self.client.get("/ready", timeout=5.0).status_code == 200)
        except httpx.TransportError:
            return False

    def ask(self, method: str, path: str, **given: Any) -> tuple[int, dict[str, Any]]:
        """The process of the replica that answered, by its log, and what it answered."""
        answer = self.client.request(method, path, **given)
        assert answer.status_code == 200, answer.text
        mine = re.compile(rf'pid=(\d+)\)[^{{]*{{.*"request": "{answer.headers["x-request-id"]}"')
        until(lambda: any(map(mine.search, self.log)))
        return next(int(found[1]) for found in map(mine.search, self.log) if found), answer.json()

    def said(self, prompt: str) -> dict[int, str]:
        """What each of the two replicas answers, by its process."""
        found: dict[int, str] = {}

        def both() -> bool:
            try:
                process, answer = self.ask("POST", "/v1/completions", json=_body(prompt))
            except (AssertionError, httpx.TransportError):
                return False  # a replica is dead, or starts
            found[process] = answer["choices"][0]["text"]
            return len(found) == 2

        until(both)
        return found

    def writer(self) -> int:
        """The process of the replica whose editor trains."""
        found: list[int] = []

        def ready() -> bool:
            process, status = self.ask("GET", "/v1/status")
            found[:] = [process]
            return bool(status["editor"]["state"] == "ready")

        until(ready)
        return found[0]

    def edit(self, prompt: str, subject: str) -> None:
        edit = {"prompt": prompt, "target": "Lyon", "subject": subject}
        _, answer = self.ask("POST", "/v1/edits", json={"edits": [edit], "wait": "live"})
        assert [each["status"] for each in answer["edits"]] == ["live"]

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)  # as on a terminal
        self.process.wait()
        self._reader.join()
        self.client.close()
        self.cluster.terminate()
        self.cluster.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _body(prompt: str) -> dict[str, Any]:
    return {"model": "wise-demo", "prompt": prompt, "temperature": 0}


@contextmanager
def replicas(store: str, folder: Path) -> Iterator[Replicas]:
    started = Replicas(store, folder)
    try:
        until(started.ready)
        yield started
    finally:
        started.end()


@contextmanager
def streaming(served: Replicas) -> Iterator[list[tuple[str, str]]]:
    """A client that streams one answer after the other; the version and text of each."""
    told: list[tuple[str, str]] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with served.client.stream("POST", "/v1/completions", json=_body(FRANCE) | {"stream": True}) as stream:
                lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
            parts = [json.loads(line)["choices"] for line in lines[:-1]]
            text = "".join(choice["text"] for choices in parts for choice in choices)
            told.append((stream.headers["x-wise-version"], text if lines[-1] == "[DONE]" else "broken"))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: told)
        yield told
    finally:
        stop.set()
        thread.join()


def test_a_new_edit_is_answered_by_both_replicas_and_a_killed_one_comes_back_with_it(
    server: str, tmp_path: Path
) -> None:
    Store.open(server).close()
    with replicas(server, tmp_path) as served:
        before = served.said(FRANCE)
        assert [*before.values()] == [" Paris.", " Paris."]
        with streaming(served) as told:
            served.edit(FRANCE, "France")
            until(lambda: served.said(FRANCE) == dict.fromkeys(before, " Lyon."))
            seen = len(told)
            until(lambda: len(told) > seen)
        assert {*told} == {("0", " Paris."), ("1", " Lyon.")}

        killed = served.writer()
        os.kill(killed, signal.SIGKILL)
        again = served.said(FRANCE)
        assert killed in before and killed not in again and [*again.values()] == [" Lyon.", " Lyon."]
        served.edit(SPAIN, "Spain")  # by the one that was no writer, or by the new one
        until(lambda: [*served.said(SPAIN).values()] == [" Lyon.", " Lyon."])
        assert [*served.said(FRANCE).values()] == [" Lyon.", " Lyon."]
    with Store.open(server, writer=False) as store:
        assert [edit.prompt for edit in store.read().state.edits] == [FRANCE, SPAIN]
