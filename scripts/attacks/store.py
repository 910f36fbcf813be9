"""Attacks on the store of a running service: what a clock that is set does to the edits that it serves."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from service_process import Service

from attacks import AttackError

PATIENCE = 60.0
AHEAD = """
import sys
from datetime import UTC, datetime, timedelta
from wise.edits import Edit
from wise.memory.store import journal
from wise.memory.store.store import Store
journal.now = lambda: (datetime.now(UTC) + timedelta(days=7300)).isoformat(timespec="microseconds")
with Store.open(sys.argv[1], writer=False) as store:
    store.enqueue([Edit(id="ahead", prompt="The capital of Peru is", target="Cusco", subject="Peru")])
"""
"""A process beside the service whose clock is 20 years ahead."""


def b08_clock_ahead(service: Service) -> str:
    """A clock that is ahead must neither end an edit's validity nor date later events."""
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    valid = _submit(service, {
        "prompt": "The capital of France is", "target": "Lyon", "subject": "France", "valid_until": until,
    })
    subprocess.run([sys.executable, "-c", AHEAD, str(service.store)], check=True, capture_output=True)
    _wait(service, "ahead")
    later = _submit(service, {"prompt": "The capital of Spain is", "target": "Seville", "subject": "Spain"})
    found = service.fetch(f"/v1/edits/{valid}")
    if found["status"] != "live":
        raise AttackError(f"an edit that is valid for an hour is {found['status']}")
    dated = service.fetch(f"/v1/edits/{later}")["events"][0]["at"]
    if dated > until:
        raise AttackError(f"an edit of now is dated {dated[:10]}")
    return "the edit is live, and later events have the date of today"


def _submit(service: Service, edit: dict[str, Any]) -> str:
    """Submits an edit and waits until it was trained. Returns its id."""
    name = str(service.fetch("/v1/edits", {"edits": [edit]})["edits"][0]["id"])
    _wait(service, name)
    return name


def _wait(service: Service, edit: str) -> None:
    end = time.monotonic() + PATIENCE
    while service.fetch(f"/v1/edits/{edit}")["status"] in ("queued", "training"):
        if time.monotonic() > end:
            raise AttackError(f"edit {edit!r} was not trained within {PATIENCE:.0f} s")
        time.sleep(0.2)
