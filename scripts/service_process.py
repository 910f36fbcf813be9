"""`wise serve` as a process of its own, for scripts that ask it, watch it and kill it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

STARTING = 180.0
"""Seconds that it may take to start."""


class Service:
    """`wise serve` as a process."""

    def __init__(self, store: Path, log: Path, options: list[str]) -> None:
        command = [sys.executable, "-m", "wise", "serve", "--store", str(store), "--port", "0", "--json", *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, env=environment, start_new_session=True
        )
        end = time.monotonic() + STARTING
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise SystemExit(f"the service did not start; {log} says why")
        address = json.loads(line)
        self.url, self.token = address["url"], address["token"]
        self.port = int(self.url.rsplit(":", 1)[1])
        while self.ready() != "ready":
            if time.monotonic() > end:
                raise SystemExit(f"the service did not become ready; {log} says why")
            time.sleep(0.2)

    def ready(self) -> str:
        try:
            return str(json.loads(urllib.request.urlopen(f"{self.url}/ready").read())["editor"])
        except OSError:
            return "no"

    def get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"})
        return json.loads(urllib.request.urlopen(request).read())

    def tickets(self) -> list[dict[str, Any]]:
        """All edits, in their order."""
        results: list[dict[str, Any]] = []
        while True:
            page = self.get(f"/v1/edits?limit=1000&after={results[-1]['ticket'] if results else 0}")
            results += page["data"]
            if not page["has_more"]:
                return results

    def memory(self) -> dict[str, float]:
        """Resident MiB of the service, and of its editor."""
        sizes = {}
        children = subprocess.run(
            ["ps", "-ww", "-o", "pid=,rss=,args=", "--ppid", str(self._process.pid)], capture_output=True, text=True
        ).stdout.splitlines()
        own = subprocess.run(
            ["ps", "-ww", "-o", "pid=,rss=,args=", "-p", str(self._process.pid)], capture_output=True, text=True
        ).stdout.splitlines()
        for name, lines in (("service", own), ("editor", [line for line in children if "spawn_main" in line])):
            sizes[name] = round(sum(int(line.split()[1]) for line in lines) / 1024, 1)
        return sizes

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """All of it, at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
