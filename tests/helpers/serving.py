"""A service on a port of its own, with a tiny model or the shipped one, for the tests of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from tiny import reading
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from waiting import until

import wise
from wise.demo import model_path
from wise.memory.store.store import Store, open_reader
from wise.serving.app import Server, bound_socket
from wise.serving.auth import SCOPES, Holder, Tokens, token_digest
from wise.serving.editor_client import READY, Worker
from wise.serving.editor_process import run_editor
from wise.serving.engines.local import Runner
from wise.serving.service import Service
from wise.serving.settings import Settings

NAME = "demo"
FRANCE = "The capital of France is"
LYON = {"prompt": FRANCE, "target": "Lyon", "subject": "France"}
PATIENCE = 60.0


def demo_model(config: wise.WiseConfig, template: str | None = None) -> wise.WiseModel:
    """The shipped model; in `hybrid` it reads by words, and no encoder is loaded. template: of chats."""
    folder = model_path()
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return wise.wrap(base, tokenizer, config, **reading(config.mode))


@dataclass
class Running:
    """A service that answers."""

    service: Service
    url: str
    server: Server

    def client(self, scope: str = "admin", **options: Any) -> httpx.Client:
        """A client with a token of this scope."""
        headers = {"Authorization": f"Bearer {scope}"} if scope else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE, **options)

    def said(self, prompt: str = FRANCE, model: str = NAME) -> str:
        """The greedy answer to a prompt, as a reader gets it."""
        with self.client("reader") as client:
            answer = client.post("/v1/completions", json={"model": model, "prompt": prompt, "temperature": 0})
        return str(answer.json()["choices"][0]["text"])

    def edit(self, *edits: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
        """Hands edits in and waits until each is live."""
        with self.client("editor") as client:
            answer = client.post("/v1/edits", json={"edits": list(edits), "wait": "live", **more})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["edits"])


def tokens() -> Tokens:
    """A token for each scope, which is its name."""
    return Tokens([(Holder(name=f"the-{scope}", scope=scope), token_digest(scope)) for scope in SCOPES])


@contextmanager
def running(
    folder: Path | str,
    *,
    editing: bool = True,
    editor_state: str = READY,
    canaries: tuple[str, ...] = (),
    template: str | None = None,
    on_start: Callable[[int], None] = lambda port: None,
    **given: Any,
) -> Iterator[Running]:
    """The shipped model, served from a store; the editor is a thread, which starts sooner than a process.

    editor_state: what its editor comes to be in, before this goes on. template: of the model's chats.
    on_start: called with the port when the server says that it can be reached.
    """
    limits = {"request_timeout": PATIENCE, "shutdown_timeout": 5.0, "port": 0}
    settings = Settings(store=str(folder), name=NAME, **limits | given)
    store = open_reader(settings.store)
    config = settings.wise_config(store.read().config)
    written: list[Store] = []

    def editor(connection: Connection) -> Worker:
        def opened(cut_off: str) -> Store:
            written.append(Store.open(settings.store, cut_off=cut_off))
            return written[-1]

        given = {"open_store": opened, "load": lambda _: demo_model(config, template)}
        return threading.Thread(target=run_editor, args=(connection, settings), kwargs=given, daemon=True)

    def none(connection: Connection) -> Worker:
        def leave() -> None:
            with connection:
                connection.poll(None)

        return threading.Thread(target=leave, daemon=True)

    service = Service(
        settings,
        model=demo_model(config, template),
        store=store,
        tokens=tokens(),
        editor=editor if editing else none,
        canaries=canaries,
    )
    listener = bound_socket(settings)
    port = listener.getsockname()[1]
    server = Server(service, on_start=lambda: on_start(port))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        if editing:
            until(lambda: service.editor.state == editor_state)
        yield Running(service, f"http://127.0.0.1:{port}", server)
    finally:
        service.drain()
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the service does not end"
        for left in written:  # a process would give it back by ending
            left.close()


def hold(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds the engines before their next step, until the event is set."""
    may_step, run = threading.Event(), Runner.run

    def held(self: Runner, *given: Any) -> Tensor:
        assert may_step.wait(PATIENCE), "the test did not let it go on"
        return run(self, *given)

    monkeypatch.setattr(Runner, "run", held)
    return may_step
