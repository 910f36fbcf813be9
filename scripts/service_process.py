"""`wise serve` as a process of its own, for scripts that ask it, watch it and kill it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

STARTING = 300.0
"""Seconds that it may take to start."""


class Service:
    """`wise serve` as a process, which is killed when a `with` block ends.

    Raises RuntimeError where it does not start.
    """

    def __init__(
        self, store: Path, log: Path, options: list[str], environment: dict[str, str] | None = None
    ) -> None:
        """environment: further variables."""
        command = [sys.executable, "-m", "wise", "serve", "--store", str(store), "--port", "0", "--json", *options]
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
        self._log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stream, env=variables, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + STARTING
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise RuntimeError(f"the service did not start; {self._log} says why")
        address = json.loads(line)
        self.url, self.token = address["url"], address["token"]
        self.port = int(self.url.rsplit(":", 1)[1])
        while self.ready() != "ready":
            if time.monotonic() > end:
                raise RuntimeError(f"the service did not become ready; {self._log} says why")
            time.sleep(0.2)
        self.name: str = self.fetch("/v1/models")["data"][0]["id"]

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ready(self) -> str:
        try:
            return str(self.fetch("/ready")["editor"])
        except OSError:
            return "no"

    def open(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """The answer of urllib, to be read as it comes; with a body it is a POST. Raises HTTPError for a refusal."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        return urllib.request.urlopen(request, timeout=120.0)

    def fetch(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """The JSON of an answer, which is asked for as by `open`."""
        with self.open(path, body, method=method) as answer:
            return json.loads(answer.read())

    def tickets(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        while True:
            page = self.fetch(f"/v1/edits?limit=1000&after={results[-1]['ticket'] if results else 0}")
            results += page["data"]
            if not page["has_more"]:
                return results

    def memory(self) -> dict[str, float]:
        """Resident MiB of the service, and of its editor."""
        processes = {"service": self._listed("-p"), "editor": self._editors()}
        return {name: round(sum(int(line[1]) for line in lines) / 1024, 1) for name, lines in processes.items()}

    def editors(self) -> list[int]:
        """The process ids of the editor: none while it is being started again."""
        return [int(line[0]) for line in self._editors()]

    def _editors(self) -> list[list[str]]:
        return [line for line in self._listed("--ppid") if "spawn_main" in " ".join(line)]

    def _listed(self, option: str) -> list[list[str]]:
        """Process id, resident KiB and arguments of the service (-p) or of its children (--ppid)."""
        command = ["ps", "-ww", "-o", "pid=,rss=,args=", option, str(self._process.pid)]
        return [line.split() for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]

    def kill(self) -> None:
        """All of it, at once; nothing where it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
