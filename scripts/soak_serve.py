"""Runs a service for long, with everything at once, and looks whether anything is lost, blocked or leaked.

    python scripts/soak_serve.py --minutes 60

Clients stream answers, edits and deletes and previews come in, the editor is killed, now and then the whole service is
killed and started again, and the clock jumps by days, ahead and back (with libfaketime, Debian package `libfaketime`;
without it the clock stays and the report says so). Another client asks for one short answer, the list of edits and
`/health` without a pause: the longest that each took while the service was up is reported, and the longest of a delete.

At the end each acknowledged edit must be there once, with the fate that its request asked for. The last line is JSON;
the exit code is 1 if an edit was lost, an answer failed, or a request was blocked for longer than `--blocked` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from service_process import Service

from wise.demo.facts import counterfactual, load_facts, train_prompts

JUMPS = ("+0", "+3d", "-2d", "+400d", "+0")
"""Where the clock is put, one after the other, relative to the true time."""
RESTART = 30.0
"""Seconds after the editor was killed in which what needs it may be refused."""
LIBRARIES = "/usr/lib/*/faketime/libfaketime.so.1"


class Soak:
    """One service under everything at once, and what was seen of it."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.store, self.log, self.clock = folder / "store", folder / "log", folder / "clock"
        self.arguments = arguments
        self.random = random.Random(arguments.seed)
        self.facts = load_facts("train")
        self.edits = self._new_edits()
        self.environment = _fake_clock(self.clock)
        self.up = threading.Event()
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        self.acknowledged: dict[str, int] = {}
        self.deleted: set[str] = set()
        self.killed: Counter[str] = Counter()
        self.editor_killed = 0.0
        self.memory: list[dict[str, float]] = []
        self.service = self._start()
        self.end = time.monotonic() + 60 * arguments.minutes

    def _start(self) -> Service:
        service = Service(self.store, self.log, ["--set", "request_timeout=60"], environment=self.environment)
        self.up.set()
        return service

    def run(self) -> None:
        jobs = [self._probe, self._edit, self._delete, self._preview, self._move_clock, self._watch]
        jobs += [self._client] * self.arguments.clients
        threads = [threading.Thread(target=self._repeat, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        self._kill_now_and_then()
        for thread in threads:
            thread.join(120)

    def _repeat(self, job: Callable[[], None]) -> None:
        while time.monotonic() < self.end:
            self.up.wait(5)
            generation = self.killed["service"]
            try:
                job()
            except (OSError, HTTPException, ValueError, KeyError) as error:
                unavailable = isinstance(error, urllib.error.HTTPError) and error.code == 503
                excused = unavailable and time.monotonic() - self.editor_killed < RESTART
                if self.up.is_set() and generation == self.killed["service"] and not excused:
                    with self.lock:
                        self.failed[f"{job.__name__}: {_text(error)}"] += 1
                time.sleep(0.2)

    # -- what is done at once ----------------------------------------------------------------------

    def _complete(self, **body: Any) -> bytes:
        with self.service.open("/v1/completions", {"model": self.service.name, **body}) as answer:
            return bytes(answer.read())

    def _prompt(self) -> str:
        return train_prompts(self.random.choice(self.facts))[0]

    def _client(self) -> None:
        text = self._complete(prompt=self._prompt(), stream=True, max_tokens=24, temperature=0)
        if b"data: [DONE]" not in text:
            raise ValueError("a stream broke off")
        self._count("streamed")

    def _probe(self) -> None:
        for name, ask in (
            ("answer", lambda: self._complete(prompt="The", max_tokens=1)),
            ("edits", lambda: self.service.fetch("/v1/edits?limit=1")),
            ("health", lambda: self.service.fetch("/health")),
        ):
            self._timed(name, ask)
        self._count("probes")

    def _count(self, name: str) -> None:
        with self.lock:  # the clients are several threads
            self.asked[name] += 1

    def _timed(self, name: str, ask: Callable[[], object]) -> None:
        """Keeps the longest that what succeeded took."""
        start = time.monotonic()
        ask()
        self.slowest[name] = max(self.slowest.get(name, 0.0), time.monotonic() - start)

    def _edit(self) -> None:
        edit = next(self.edits)
        answer = self.service.fetch("/v1/edits", {"edits": [edit]})
        with self.lock:
            for ticket in answer["edits"]:
                self.acknowledged[ticket["id"]] = ticket["ticket"]
        self._count("edits")
        time.sleep(self.arguments.pause)

    def _new_edits(self) -> Iterator[dict[str, str]]:
        """No edit twice: a repeated one would be refused while the first is queued, and be counted as taken twice."""
        subjects = set()
        while True:
            fact = self.random.choice(self.facts)
            target = counterfactual(fact, seed=self.random.randrange(1000))
            if (fact, target) not in subjects:
                subjects.add((fact, target))
                yield {"prompt": train_prompts(fact)[0], "target": target, "subject": fact.subject}

    def _delete(self) -> None:
        time.sleep(5 * self.arguments.pause)
        live = self.service.fetch("/v1/edits?limit=20&status=live")["data"]
        if live:
            chosen = self.random.choice(live)["id"]
            self._timed("delete", lambda: self.service.fetch(f"/v1/edits/{chosen}", method="DELETE"))
            self.deleted.add(chosen)
            self._count("deletes")

    def _preview(self) -> None:
        time.sleep(2 * self.arguments.pause)
        fact = self.random.choice(self.facts)
        prompt = train_prompts(fact)[1]  # no edit asks so: one that is live already would be refused
        edit = {"prompt": prompt, "target": counterfactual(fact, seed=1), "subject": fact.subject}
        try:
            self.service.fetch("/v1/edits/preview", {"edit": edit, "prompts": [self._prompt()]})
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise
        self._count("previews")

    def _move_clock(self) -> None:
        for jump in JUMPS:
            if self.environment:
                self.clock.write_text(jump)
                self._count("clock jumps")
            time.sleep(self.arguments.jump)

    def _watch(self) -> None:
        self.memory.append(self.service.memory())
        time.sleep(5)

    def _kill_now_and_then(self) -> None:
        turn = 0
        while time.monotonic() < self.end:
            time.sleep(min(self.arguments.kill, max(0.0, self.end - time.monotonic())))
            turn += 1
            if turn % 3:
                self.editor_killed = time.monotonic()
                for pid in self.service.editors():
                    os.kill(pid, signal.SIGKILL)
                    self.killed["editor"] += 1
            elif time.monotonic() < self.end:
                self.up.clear()
                self.killed["service"] += 1
                self.service.kill()
                self.service = self._start()

    # -- what came of it ---------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        if self.environment:
            self.clock.write_text("+0")
        end = time.monotonic() + self.arguments.settle
        tickets = self.service.tickets()
        while any(ticket["status"] in ("queued", "training") for ticket in tickets) and time.monotonic() < end:
            time.sleep(1)
            tickets = self.service.tickets()
        counts = Counter(ticket["id"] for ticket in tickets)
        by_id = {ticket["id"]: ticket for ticket in tickets}
        lost = [edit for edit, ticket in self.acknowledged.items() if by_id.get(edit, {}).get("ticket") != ticket]
        revived = [edit for edit in self.deleted if by_id.get(edit, {}).get("status") == "live"]
        self.service.end()
        checked = subprocess.run(
            [sys.executable, "-m", "wise", "store", "check", str(self.store)], capture_output=True, text=True
        )
        half = len(self.memory) // 2
        return {
            "minutes": self.arguments.minutes,
            "done": dict(self.asked),
            "killed": dict(self.killed),
            "clock": bool(self.environment),
            "failed": dict(self.failed),
            "acknowledged": len(self.acknowledged),
            "lost": lost,
            "twice": [edit for edit, count in counts.items() if count > 1],
            "deleted_and_live": revived,
            "statuses": dict(Counter(ticket["status"] for ticket in tickets)),
            "longest_seconds": {name: round(value, 2) for name, value in self.slowest.items()},
            "memory_mib": {"first_half": _medians(self.memory[:half]), "second_half": _medians(self.memory[half:])},
            "store_whole": checked.returncode == 0,
            "store_told": "" if checked.returncode == 0 else (checked.stdout + checked.stderr)[-500:],
        }


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: sorted(sample[name] for sample in samples)[len(samples) // 2] for name in (samples or [{}])[0]
    }


def _text(error: Exception) -> str:
    body = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
    return f"{error} {body}"[:160]


def _fake_clock(file: Path) -> dict[str, str]:
    """What makes a process read the clock from a file; empty where libfaketime is not installed."""
    libraries = sorted(Path("/").glob(LIBRARIES[1:]))
    if not libraries:
        return {}
    file.write_text("+0")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two edits")
    parser.add_argument("--kill", type=float, default=60.0, help="seconds between two kills; each third is of all")
    parser.add_argument("--jump", type=float, default=45.0, help="seconds between two jumps of the clock")
    parser.add_argument("--settle", type=float, default=300.0, help="seconds that the last edits may take")
    parser.add_argument("--blocked", type=float, default=5.0, help="seconds that a request may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder that keeps the store and the log afterwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(arguments.folder or Path(temporary), arguments)
        try:
            soak.run()
            report = soak.report()
        finally:
            soak.service.kill()
    sys.stdout.write(json.dumps(report) + "\n")
    bad = report["lost"] or report["twice"] or report["deleted_and_live"] or report["failed"]
    blocked = any(value > arguments.blocked for value in report["longest_seconds"].values())
    return int(bool(bad) or blocked or not report["store_whole"])


if __name__ == "__main__":
    raise SystemExit(main())
