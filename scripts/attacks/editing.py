"""Attacks on editing: edits that are too large, previews without end, a killed editor, options without effect."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from service_process import Service

from attacks import AttackError

LYON = {"prompt": "The capital of France is", "target": "Lyon", "subject": "France"}
PORTO = {"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"}
PATIENCE = 20.0
"""Seconds after which something counts as blocked."""


def call(service: Service, method: str, path: str, body: Any = None, seconds: float = PATIENCE) -> tuple[int, Any]:
    """Status and body of an answer; status 0 if there was none in time."""
    try:
        status, _, text = service.ask(path, body, method=method, seconds=seconds)
    except OSError:
        return 0, {}
    return status, json.loads(text or "{}")


def edited(service: Service, edit: dict[str, Any], seconds: float = PATIENCE) -> str:
    """The id of an edit once it is live."""
    status, body = call(service, "POST", "/v1/edits", {"edits": [edit], "wait": "live"}, seconds)
    if status != 200 or body["edits"][0]["status"] != "live":
        raise AttackError(f"an edit was not live within {seconds:.0f} s: status {status}")
    return str(body["edits"][0]["id"])


def timed(what: Callable[[], tuple[int, Any]], name: str) -> str:
    begun = time.monotonic()
    status, _ = what()
    if status != 200:
        raise AttackError(f"{name}: status {status} after {time.monotonic() - begun:.1f} s, 200 was expected")
    return f"{name} {time.monotonic() - begun:.1f} s"


def all_at_once(count: int, what: Callable[[int], Any]) -> list[Any]:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: found.append(what(n)), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return found


def b01_relations_without_effect(service: Service) -> str:
    """Relations that a mode does not read must be refused."""
    # It is started here, since no service may come of it.
    with tempfile.TemporaryDirectory() as folder:
        options = ["--relations", f"{folder}/none", "--mode", "retrieve", "--port", "0", "--store", f"{folder}/store"]
        command = [sys.executable, "-m", "wise", "serve", *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            said = []
            for line in process.stderr or ():
                said.append(line)
                if "wise serves at" in line:
                    process.kill()
                    raise AttackError("it serves, and says nothing of relations that it does not read")
    if process.returncode != 2 or "relations" not in said[-1]:
        raise AttackError(f"exit code {process.returncode}: {said[-1:]}")
    return "refused with exit code 2"


def b02_many_previews(service: Service) -> str:
    """36 large previews at once must not block editing or the end."""
    body = {"edit": LYON, "prompts": ["word " * 60] * 31}
    statuses = [status for status, _ in all_at_once(36, lambda _: call(service, "POST", "/v1/edits/preview", body, 8))]
    edited(service, PORTO)
    begun = time.monotonic()
    service.end()
    seconds = time.monotonic() - begun
    if 500 in statuses or 429 not in statuses or seconds > 35:
        raise AttackError(f"statuses {sorted(set(statuses))}, SIGTERM took {seconds:.0f} s")
    return f"{statuses.count(429)} of 36 were told to come back, an edit went live, SIGTERM took {seconds:.1f} s"


def b03_endless_previews(service: Service) -> str:
    """Three clients that preview must not starve edits."""
    stop, body = threading.Event(), {"edit": LYON, "prompts": ["The capital of Italy is"]}

    def preview() -> None:
        while not stop.is_set():
            call(service, "POST", "/v1/edits/preview", body)

    for _ in range(3):
        threading.Thread(target=preview, daemon=True).start()
    begun = time.monotonic()
    try:
        edited(service, PORTO)
    finally:
        stop.set()
    return f"live after {time.monotonic() - begun:.1f} s beside three clients that preview"


def b04_long_target(service: Service) -> str:
    """A target of 5,000 characters must block nothing."""
    live = edited(service, PORTO)
    long = LYON | {"target": "ab cd " * 833}
    status, _ = call(service, "POST", "/v1/edits", {"edits": [long]})
    beside = timed(lambda: call(service, "DELETE", f"/v1/edits/{live}"), "delete")
    back = timed(lambda: call(service, "POST", "/v1/versions/1/rollback", {}), "rollback")
    edited(service, LYON | {"prompt": "The capital of Italy is", "subject": "Italy"})
    return f"status {status}; {beside}, {back}, and the next edit went live"


def b04_slow_edit(service: Service) -> str:
    """Delete, rollback and cancel must not wait for the largest edit."""
    # The largest edit that is taken; whatever is done beside it is answered while it is trained.
    live = edited(service, PORTO)
    for count in (200, 150, 100, 50, 20):
        large = LYON | {"target": " ".join(f"w{n}" for n in range(count))}
        status, body = call(service, "POST", "/v1/edits", {"edits": [large]})
        if status == 202:
            break
    if status != 202:
        raise AttackError(f"no edit was taken: {body}")
    path = f"/v1/edits/{body['edits'][0]['id']}"
    end = time.monotonic() + PATIENCE
    while call(service, "GET", path)[1]["status"] == "queued" and time.monotonic() < end:
        time.sleep(0.01)
    before = call(service, "GET", path)[1]["status"]
    seen = timed(lambda: call(service, "DELETE", f"/v1/edits/{live}"), "delete")
    seen += ", " + timed(lambda: call(service, "POST", "/v1/versions/1/rollback", {}), "rollback")
    during = call(service, "GET", path)[1]["status"]
    if during in ("queued", "training"):
        seen += ", " + timed(lambda: call(service, "DELETE", path), "cancel")
    return f"{count} words, {before} before and {during} after: {seen}"


def b04_killed_twice(service: Service) -> str:
    """An edit that ends its editor must not do so for ever."""
    # Kills the editor each time that it trains: the edit must not bring it down for ever.
    status, body = call(service, "POST", "/v1/edits", {"edits": [LYON]})
    path, killed, end = f"/v1/edits/{body['edits'][0]['id']}", 0, time.monotonic() + 180
    while time.monotonic() < end:
        found = call(service, "GET", path)[1]
        if found["status"] == "failed":
            edited(service, PORTO, 40)
            return f"failed after {killed} kills ({found['outcome']['why'][:40]}), and the next edit went live"
        if found["status"] == "live":
            return f"live before it could be killed more than {killed} times: nothing was seen"
        if found["status"] == "training":
            for pid in service.editors():
                os.kill(pid, signal.SIGKILL)
            killed += 1
            while call(service, "GET", path)[1]["status"] == "training" and time.monotonic() < end:
                time.sleep(0.01)
        time.sleep(0.002)
    raise AttackError(f"it is {found['status']} after {killed} kills")


def b09_ready_while_preparing(service: Service) -> str:
    """Readiness must not wait for the editor."""
    for pid in service.editors():
        os.kill(pid, signal.SIGKILL)
    states, end = set(), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        status, _, _ = service.ask("/ready", token="")
        states.add(status)
        if status != 200:
            raise AttackError(f"/ready is {status} while the editor prepares")
        editing = call(service, "GET", "/v1/status")[1].get("editing")
        if editing:
            return f"/ready is {states} and /v1/status says: {editing}"
        time.sleep(0.05)
    raise AttackError("nothing says what the editor does")


def b30_large_preview(service: Service) -> str:
    """One preview must not hold the editor for long."""
    prompts = [f"The capital of country {n} is" for n in range(64)]
    body = {"edit": LYON | {"paraphrases": prompts, "locality": [f"Town {p}" for p in prompts]}, "prompts": prompts}
    begun = time.monotonic()
    status, _ = call(service, "POST", "/v1/edits/preview", body, 90)
    seconds = time.monotonic() - begun
    if status != 400:
        raise AttackError(f"status {status} after {seconds:.0f} s")
    return f"refused after {seconds:.1f} s"


def b26_many_namespaces(service: Service) -> str:
    """Namespaces must not slow down the others."""
    begun = time.monotonic()
    edited(service, LYON)
    alone = time.monotonic() - begun
    for number in range(80):
        call(service, "POST", "/v1/edits", {"edits": [PORTO], "model": f"wise-demo@team-{number}"})
    end = time.monotonic() + 180
    while any(call(service, "GET", f"/v1/edits?status={status}")[1]["data"] for status in ("queued", "training")):
        if time.monotonic() > end:
            raise AttackError("80 edits are not trained within 180 s")
        time.sleep(1)
    begun = time.monotonic()
    edited(service, LYON | {"prompt": "The capital of Japan is", "subject": "Japan"})
    beside = time.monotonic() - begun
    if beside > 2 * alone + 0.5:
        raise AttackError(f"live after {alone:.1f} s alone and {beside:.1f} s beside 80 namespaces")
    return f"live after {alone:.1f} s alone and {beside:.1f} s beside 80 namespaces"


def b31_superseded(service: Service) -> str:
    """Deleting a superseded edit must not be told to try later."""
    old = edited(service, LYON)
    edited(service, LYON | {"target": "Nice"})
    status, body = call(service, "DELETE", f"/v1/edits/{old}")
    if status != 409:
        raise AttackError(f"status {status}: {body}")
    bodies = [{"edits": [LYON | {"target": target}]} for target in ("Metz", "Brest")]
    found = all_at_once(2, lambda n: call(service, "POST", "/v1/edits", bodies[n]))
    ids = [answer["edits"][0]["id"] for _, answer in found]
    statuses = {call(service, "DELETE", f"/v1/edits/{i}")[0] for i in ids * 3}
    if not statuses <= {200, 409}:
        raise AttackError(f"statuses {statuses}")
    return f"409; edits that supersede one another: {sorted(statuses)}"
