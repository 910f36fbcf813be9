"""`/v1/edits` in vLLM's own server: edits go into the store, and their status is reported."""

from __future__ import annotations

import asyncio
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from serving import running
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from wise.demo import model_path
from wise.errors import ConfigError
from wise.memory.store.store import Store, open_reader
from wise.namespaces import split
from wise.serving.auth import add_token_line, token_line
from wise.serving.endpoint_plugin import EditEndpoints

FRANCE = {"prompt": "The capital of France is", "target": "Lyon", "subject": "France"}
KEY = {"Authorization": "Bearer a-key"}


class FollowedStore:
    """As `EditedClient`: it serves the newest version."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def served(self) -> tuple[int, dict[tuple[int, str], Any]]:
        snapshot = self.store.read()
        states = split(snapshot.state)
        return snapshot.version, {(snapshot.version, name): SimpleNamespace(state=states[name]) for name in states}


def attached(api_key: list[str] | None, followed: FollowedStore | None = None) -> FastAPI:
    """The parts of vLLM's server that a plug-in uses."""
    app = FastAPI()

    @app.post("/v1/completions")
    def completions() -> str:
        return "the server's own"

    config = SimpleNamespace(model=str(model_path()), max_model_len=256)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=config), get_tokenizer=lambda: tokenizer)
    plugin = EditEndpoints()
    plugin.attach_router(app)
    asyncio.run(plugin.init_state(engine, app.state, Namespace(served_model_name=["demo"], api_key=api_key)))
    if followed is not None:
        app.state.wise_client = followed
    return app


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    Store.open(tmp_path / "store").close()
    monkeypatch.setenv("WISE_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    log = logging.getLogger("wise")  # the plug-in sets it up
    before = log.handlers, log.propagate, log.level
    yield tmp_path / "store"
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


def test_edits_are_taken_shown_and_deleted(place: Path) -> None:
    with (
        running(place),
        open_reader(str(place)) as store,
        TestClient(attached(["a-key"], FollowedStore(store))) as client,
    ):
        assert client.get("/v1/edits").status_code == 401 and client.get("/v1/edits", headers=KEY).json()["data"] == []
        body = {"edits": [FRANCE], "wait": "live", "model": "demo"}
        answer = client.post("/v1/edits", json=body, headers=KEY)
        assert answer.status_code == 200 and answer.json()["version"] == 1
        [edit] = answer.json()["edits"]
        assert (edit["status"], edit["author"]) == ("live", "owner")
        path = f"/v1/edits/{edit['id']}"
        assert client.get(path, headers=KEY).json()["target"] == "Lyon"
        deletion = client.delete(path, headers=KEY)
        assert (deletion.status_code, deletion.json()["number"], deletion.json()["author"]) == (200, 2, "owner")
        assert store.read().state.edits == ()


def test_what_cannot_be_taken_is_refused(place: Path) -> None:
    with open_reader(str(place)) as store, TestClient(attached(["a-key"], FollowedStore(store))) as client:
        long = client.post("/v1/edits", json={"edits": [FRANCE | {"prompt": "The capital " * 300}]}, headers=KEY)
        assert long.status_code == 400 and long.json()["error"]["param"] == "edits.0"
        answer = client.post("/v1/edits", json={"edits": [FRANCE], "model": "other"}, headers=KEY)
        assert answer.status_code == 404 and store.journal.tickets() == ()


def test_the_servers_own_routes_stay(place: Path) -> None:
    with TestClient(attached(["a-key"])) as client:
        assert client.post("/v1/completions").json() == "the server's own"
        assert client.get("/v1/completions").status_code == 405
        assert client.get("/v1/other").json() == {"detail": "Not Found"}


def test_without_the_middleware_no_edit_is_said_to_be_served(place: Path) -> None:
    with TestClient(attached(["a-key"])) as client:
        answer = client.post("/v1/edits", json={"edits": [FRANCE]}, headers=KEY)
        assert answer.status_code == 503 and "EditingMiddleware" in answer.json()["error"]["message"]


def test_a_file_of_tokens_may_stand_in_the_place_of_a_key(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_token_line(tmp_path / "tokens", token_line("ann", "reader", "secret"))
    monkeypatch.setenv("WISE_TOKENS", str(tmp_path / "tokens"))
    with pytest.raises(ConfigError, match="give one of both"):
        attached(["a-key"])
    with open_reader(str(place)) as store, TestClient(attached(None, FollowedStore(store))) as client:
        ann = {"Authorization": "Bearer secret"}
        assert client.get("/v1/edits", headers=ann).status_code == 200
        assert client.post("/v1/edits", json={"edits": [FRANCE]}, headers=ann).status_code == 403
        assert client.get("/v1/edits", headers=KEY).status_code == 401


@pytest.mark.parametrize(("name", "problem"), [("WISE_STORE", "WISE_STORE is not set"), (None, "who may edit")])
def test_a_server_for_which_something_is_missing_does_not_start(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, problem: str
) -> None:
    if name is not None:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=problem):
        attached(["a-key"] if name else None)
