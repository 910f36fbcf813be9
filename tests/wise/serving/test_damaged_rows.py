"""The service answers whatever is in the journal: an unreadable row is shown as such, and stops no request."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from serving import running
from stores import edits
from waiting import until

from wise.memory.store import journal as journal_module
from wise.memory.store.store import Store

DAMAGE = (
    "UPDATE tickets SET verified = '\"x\"' WHERE number = 1",
    "UPDATE tickets SET edit = '[1]' WHERE number = 2",
    "UPDATE tickets SET verified = '{\"loss\": NaN, \"answer\": \"\\ud800\"}' WHERE number = 3",
    "UPDATE tickets SET reason = CAST(x'ff' AS TEXT), status = 'forgotten' WHERE number = 4",
    "UPDATE tickets SET namespace = 'blank ' WHERE number = 5",
    "UPDATE events SET detail = 'none' WHERE number = 2",
)


def test_edits_and_events_are_listed_whatever_their_rows_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "store") as store:
        store.enqueue(edits(1, 2, 3, 4, 5))
        store.fail(store.claim(4), detail={"status": "failed"})
    with closing(sqlite3.connect(tmp_path / "store" / "journal.sqlite3")) as connection:
        for statement in DAMAGE:
            connection.execute(statement)
        connection.commit()
    with running(tmp_path / "store", editing=False) as served, served.client() as client:
        by_ticket = {edit["ticket"]: edit for edit in client.get("/v1/edits").json()["data"]}
        assert [bool(by_ticket[number]["problem"]) for number in range(1, 6)] == [True, True, False, True, True]
        assert "verified is of type str" in by_ticket[1]["problem"] and "cannot be read" in by_ticket[1]["prompt"]
        assert by_ticket[3]["outcome"] == {"loss": None, "answer": "?"} and by_ticket[4]["status"] == "failed"
        assert client.get("/v1/edits/e1").json()["problem"] == by_ticket[1]["problem"]
        events = client.get("/v1/events", params={"since": 0, "follow": False})
        assert events.status_code == 200 and events.text.count("event: damaged") == 1
        later = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="microseconds")
        served.service.store.enqueue(edits(6))
        monkeypatch.setattr(journal_module, "now", lambda: later)
        served.service.store.enqueue(edits(7))
        until(lambda: "wise_clock_jumps_total 1.0" in client.get("/metrics").text)
        assert client.get("/v1/edits/e7").json()["status"] == "queued"
