"""A client that leaves frees the editor, and so does a service that ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from serving import NAME, PATIENCE, hold, running
from waiting import until

from wise.errors import StoreError
from wise.memory.store.edit_request import Ticket
from wise.memory.store.store import Store
from wise.serving import routes_versions
from wise.serving.editor import Editor
from wise.serving.editor_client import READY, WAITING

LYON = {"prompt": "The capital of France is", "target": "Lyon", "subject": "France"}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "by another replica"])
def test_a_preview_whose_client_left_is_given_up(
    elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """elsewhere: another replica's editor makes the preview."""
    has_begun, has_ended = threading.Event(), threading.Event()

    def preview(_: Editor, edit: Any, prompts: Any, is_awaited: Any = None) -> dict[str, Any]:
        has_begun.set()
        until(lambda: not is_awaited())
        has_ended.set()
        return {}

    monkeypatch.setattr(Editor, "preview", preview)
    with ExitStack() as services:
        if elsewhere:
            services.enter_context(running(tmp_path / "store"))
        state = WAITING if elsewhere else READY
        served = services.enter_context(running(tmp_path / "store", editor_state=state))
        with asked_for_a_preview(served.url):
            assert has_begun.wait(PATIENCE)
            with asked_for_a_preview(served.url):
                until(lambda: len(served.service.previews) == 1)
            until(lambda: len(served.service.previews) == 0)  # it waited for its turn
            assert not has_ended.is_set()
        assert has_ended.wait(PATIENCE)


def test_a_preview_that_no_writer_took_up_is_withdrawn_when_its_client_leaves(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store, running(tmp_path / "store", editor_state=WAITING) as served:

        def commands() -> int:
            with store.backend.reading() as execute:
                return len(execute("SELECT id FROM commands"))

        with asked_for_a_preview(served.url):
            until(lambda: commands() == 1)
        until(lambda: commands() == 0)


def test_a_stream_whose_client_left_is_counted_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_step = hold(monkeypatch)
    with running(tmp_path / "store", editing=False) as served, served.client() as client:

        def counted(status: int) -> bool:
            route = f'wise_requests_total{{method="POST",route="/v1/completions",status="{status}"}} 1.0'
            return route in client.get("/metrics").text.splitlines()

        body = {"model": NAME, "prompt": LYON["prompt"], "stream": True}
        with posted(served.url, "/v1/completions", body) as leaving:
            assert leaving.recv(4096).startswith(b"HTTP/1.1 200 ")
        until(lambda: counted(499))
        assert not counted(200)
        may_step.set()
        assert "[DONE]" in client.post("/v1/completions", json=body).text
        until(lambda: counted(200))


def test_an_edit_whose_client_left_is_kept_and_not_waited_for(tmp_path: Path) -> None:
    with running(tmp_path / "store", editing=False, request_timeout=3.0) as served, served.client() as client:

        def counted(status: int) -> bool:
            route = f'wise_requests_total{{method="POST",route="/v1/edits",status="{status}"}} 1.0'
            return route in client.get("/metrics").text.splitlines()

        def statuses() -> list[str]:
            return [edit["status"] for edit in client.get("/v1/edits").json()["data"]]

        with posted(served.url, "/v1/edits", {"edits": [LYON], "wait": "live"}):
            until(lambda: statuses() == ["queued"])
        until(lambda: counted(499))
        assert statuses() == ["queued"] and not counted(202)
        body = {"edits": [LYON | {"target": "Porto"}], "wait": "live"}
        assert client.post("/v1/edits", json=body).status_code == 202, "who stays is told when the time is over"


def test_an_accepted_edit_is_no_error_where_the_store_cannot_be_read_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "store", editing=False, request_timeout=0.1) as served, served.client() as client:

        def unreadable(_: object, **arguments: Any) -> tuple[Ticket, ...]:
            raise StoreError("the disk is away")

        monkeypatch.setattr(type(served.service.store.journal), "tickets", unreadable)
        answer = client.post("/v1/edits", json={"edits": [LYON], "wait": "live"})
        assert answer.status_code == 202 and answer.json()["edits"][0]["status"] == "queued"
        assert client.get(f"/v1/edits/{answer.json()['edits'][0]['id']}").status_code == 503, "the control"


def asked_for_a_preview(url: str) -> socket.socket:
    return posted(url, "/v1/edits/preview", {"edit": LYON})


def posted(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """The connection on which a preview was requested; its answer is not read."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=PATIENCE)
    head += "Authorization: Bearer editor\r\nContent-Type: application/json\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_parts_that_do_not_end_do_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    with running(tmp_path / "store", editing=False, shutdown_timeout=1.0) as served:
        service = served.service
        for part in (service.engine, service.follower, service.editor):
            end = part.close
            monkeypatch.setattr(part, "close", lambda *arguments, end=end: (never.wait(PATIENCE), end(*arguments)))
        start = time.monotonic()
        service.close()
        assert time.monotonic() - start < PATIENCE / 4
        never.set()


def test_streams_of_events_end_as_soon_as_the_service_is_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_versions, "HEARTBEAT", 10 * PATIENCE)
    with running(tmp_path / "store", editing=False) as served, served.client() as client:
        with client.stream("GET", "/v1/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": open"
            served.service.drain()
            assert [line for line in lines if line] == []
