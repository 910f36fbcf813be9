"""Scopes and refusals: each refusal has the same shape, changes nothing, and leaves the service alive."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext
from pydantic import BaseModel, ValidationError
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from serving import FRANCE, LYON, NAME, PATIENCE, Running, hold, running
from torch import Tensor
from waiting import until

from wise.errors import ConfigError, StoreError
from wise.memory.store.journal import Move
from wise.serving import middleware
from wise.serving.auth import Tokens, new_token, token_digest, token_line
from wise.serving.engines import GenerationRequest, local
from wise.serving.engines.local import Runner
from wise.serving.engines.sampling import Sampler
from wise.serving.schemas import EditsRequest
from wise.serving.schemas_chat import ChatRequest
from wise.serving.schemas_completions import AskRequest, CompletionRequest
from wise.serving.settings import load


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("limits") / "store"
    limits = {"body_limit": 20_000, "edit_limit": 8, "max_queue": 4, "max_batch_size": 2, "request_timeout": 20.0}
    with running(folder, editing=False, preview_queue=0, **limits) as service:
        yield service


def error_of(answer: Any, status: int) -> dict[str, Any]:
    """The error of an answer, in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] and answer.headers["x-request-id"]
    return dict(body["error"])


def events(served: Running) -> int:
    return len(served.service.store.log())


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("GET", "/v1/models", "reader"),
        ("POST", "/v1/completions", "reader"),
        ("GET", "/v1/edits", "reader"),
        ("GET", "/v1/events?follow=false", "reader"),
        ("GET", "/metrics", "reader"),
        ("GET", "/v1/token", "reader"),
        ("GET", "/v1/files/edits", "reader"),
        ("POST", "/v1/files/edits?name=a.jsonl", "editor"),
        ("POST", "/v1/edits", "editor"),
        ("POST", "/v1/edits/preview", "editor"),
        ("PUT", "/v1/edits/x", "editor"),
        ("DELETE", "/v1/edits/x", "editor"),
        ("POST", "/v1/versions/0/rollback", "admin"),
        ("POST", "/v1/edits/x/erase", "admin"),
    ],
)
def test_a_scope_covers_what_is_below_it_and_no_more(served: Running, method: str, path: str, needs: str) -> None:
    before = events(served)
    for scope in ("", "nobody", "reader", "editor", "admin"):
        with served.client(scope) as client:
            answer = client.request(method, path)
        if scope in ("", "nobody"):
            assert error_of(answer, 401)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        elif ("reader", "editor", "admin").index(scope) < ("reader", "editor", "admin").index(needs):
            assert error_of(answer, 403)["code"] == "insufficient_scope"
        else:
            assert answer.status_code not in (401, 403)
    assert events(served) == before


def test_watching_needs_no_token_and_says_nothing_secret(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.service.editor, "why", "(the journal of the store at secret/place is locked)")
    monkeypatch.setattr(served.service.editor, "state", "failing")
    with served.client("") as client:
        assert client.get("/health").json() == {"status": "ok"}
        ready = client.get("/ready")
        assert ready.json() == {"status": "ready"}, "answers do not wait for an editor"
        assert [client.head(path).status_code for path in ("/health", "/ready", "/v1/edits")] == [200, 200, 405]
        with served.client("reader") as reader:
            readiness = reader.get("/ready").json()
            fields = [readiness[name] for name in ("status", "version", "edits", "editor")]
            assert fields == ["ready", 0, 0, "failing"]
        with monkeypatch.context() as damaged:

            def unreadable(**_: Any) -> None:
                raise StoreError("secret/place cannot be read")

            damaged.setattr(served.service.store.journal, "events", unreadable)
            until(lambda: served.service.follower.trouble)
            assert "secret" not in error_of(client.get("/ready"), 503)["message"]
        until(lambda: not served.service.follower.trouble)
        assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "http://evil"}).headers


def test_figures_are_for_readers_or_for_anyone_where_they_were_opened(served: Running, tmp_path: Path) -> None:
    with served.client("") as stranger, served.client("reader") as reader:
        assert error_of(stranger.get("/metrics"), 401)["code"] == "invalid_api_key"
        metrics = reader.get("/metrics").text
        assert "wise_requests_total" in metrics and "the-reader" not in metrics
    with running(tmp_path / "open", editing=False, open_metrics=True) as opened, opened.client("") as stranger:
        assert "wise_requests_total" in stranger.get("/metrics").text
        error_of(stranger.get("/v1/models"), 401)


def test_labels_of_metrics_are_bounded_whatever_is_asked_for(served: Running) -> None:
    with served.client("") as stranger:
        for number in range(50):
            stranger.request(f"ODD{number}", "/v1/edits")
            stranger.request("GET", f"/no/such/{number}")
            stranger.request("GET", f"/v1/edits/such-{number}")
            stranger.request(f"ODD{number}", "/health")
    with served.client("reader") as reader:
        metrics = reader.get("/metrics").text
    assert 'method="other"' in metrics and "ODD" not in metrics and "such" not in metrics


def test_answers_say_how_they_may_be_kept_and_methods_are_named(served: Running) -> None:
    with served.client() as client:
        for path in ("/v1/edits", "/v1/nothing", "/health", "/openapi.json", "/metrics"):
            headers = client.get(path).headers
            assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert client.get("/console").headers["cache-control"] == "no-cache"
        allowed = {"/v1/edits": "GET, POST", "/v1/edits/x": "GET, PUT, DELETE", "/health": "GET, HEAD"}
        for path, methods in allowed.items():
            answer = client.patch(path)
            assert error_of(answer, 405) and answer.headers["allow"] == methods
        missing = client.get("/v1/edits/", headers={"Host": "evil.example"})
        assert error_of(missing, 404) and "evil.example" not in str(missing.headers) + missing.text


def test_other_origins_may_read_only_where_they_are_named(served: Running, tmp_path: Path) -> None:
    preflight = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization, x-stainless-os"}  # fmt: skip
    allowed = "access-control-allow-origin"
    with served.client() as client:
        assert error_of(client.options("/v1/completions", headers=preflight), 405)
        assert allowed not in client.get("/v1/models", headers=preflight).headers
    origins = load(None, {"cors_origins": "https://chat.example, https://b.example"}).cors_origins
    assert origins == ("https://chat.example", "https://b.example")
    with running(tmp_path / "cors", editing=False, cors_origins=origins) as opened, opened.client() as client:
        answer = client.options("/v1/completions", headers=preflight)
        assert answer.status_code == 200 and answer.headers[allowed] == "https://chat.example"
        assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
        assert client.get("/v1/models", headers=preflight).headers[allowed] == "https://chat.example"
        refused = client.post("/v1/edits", content=b"x" * 2_000_000, headers=preflight)
        assert refused.status_code == 413 and refused.headers[allowed] == "https://chat.example"
        assert allowed not in client.get("/v1/models", headers={"Origin": "https://evil.example"}).headers


ODD_NAMES = ("team ", "te\u200bam", "a\nb", "\u0442eam", "\uff54eam", "te\u00adam", "\u202eteam", "x" * 101)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_namespace_that_looks_like_another_is_refused(served: Running, name: str) -> None:
    before = events(served)
    with served.client() as client:
        answer = client.post("/v1/edits", json={"model": f"{NAME}@{name}", "edits": [LYON]})
        assert "namespace" in error_of(answer, 400)["message"]
    assert events(served) == before


@pytest.mark.parametrize("name", ["team", "a/b@c", "te\u0301am", "x" * 100, "a b", "\u65e5\u672c", "50%", "?&#"])
def test_a_namespace_is_reached_by_every_route(reach: Running, name: str) -> None:
    model, stored = f"{NAME}@{name}", unicodedata.normalize("NFC", name)
    with reach.client() as client:
        [submitted] = client.post("/v1/edits", json={"model": model, "edits": [LYON]}).json()["edits"]
        assert submitted["namespace"] == stored
        edits = client.get("/v1/edits", params={"namespace": name}).json()["data"]
        assert [edit["id"] for edit in edits] == [submitted["id"]]
        problem = error_of(client.get(f"/v1/models/{quote(model, safe='')}"), 404)["message"]
        assert repr(stored) in problem  # the name was understood: no edit is live there yet


@pytest.fixture(scope="module")
def reach(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("reach") / "store", editing=False) as service:
        yield service


def test_an_event_that_did_not_happen_yet_is_refused(served: Running) -> None:
    with served.client("reader") as client:
        for number in (2**63 - 1, events(served) + 1):
            answer = client.get("/v1/events", headers={"Last-Event-ID": str(number)})
            assert "no event" in error_of(answer, 400)["message"]
            assert error_of(client.get("/v1/events", params={"since": number}), 400)["param"] == "since"
        last = client.get("/v1/events", params={"since": events(served), "follow": "false"})
        assert last.status_code == 200 and last.text == ": open\n\n"


def test_no_line_of_a_stream_is_split_by_what_it_holds(reach: Running) -> None:
    ends = "\u2028 \u2029 \x85 \x0c \x1c"
    with reach.client() as client:
        edit = {"prompt": f"The capital of {ends} is", "target": "Lyon"}
        assert client.post("/v1/edits", json={"edits": [edit], "model": f"{NAME}@lines"}).status_code == 202
        [ticket] = reach.service.store.journal.tickets(namespaces=["lines"])
        reach.service.store.journal.move([Move(ticket=ticket.number, to="training", detail={"why": ends})])
        until(lambda: reach.service.follower.last_event == events(reach))
        stream = client.get("/v1/events", params={"since": 0, "follow": "false"}).text
    lines = [line for line in stream.splitlines() if line.startswith("data: ")]
    assert len(lines) == reach.service.follower.last_event
    assert json.loads(lines[-1].removeprefix("data: "))["detail"] == {"why": ends}


def test_tokens_are_hashed_in_a_private_file(tmp_path: Path) -> None:
    token = new_token()
    file = tmp_path / "tokens"
    file.write_text("# ours\n" + token_line("anna", "editor", token) + "\n")
    assert token not in file.read_text()
    holder = Tokens.read(file).holder(token_digest(token))
    assert holder is not None and (holder.name, holder.scope) == ("anna", "editor")
    assert Tokens.read(file).holder(token_digest(token_digest(token))) is None  # the content of the file is no token
    file.write_text("anna editor short\n")
    with pytest.raises(ConfigError, match="tokens:1"):
        Tokens.read(file)
    file.write_text("# ours\n")
    with pytest.raises(ConfigError, match="holds none"):
        Tokens.read(file)
    with pytest.raises(ConfigError, match="scope"):
        token_line("anna", "king", token)


def test_a_token_that_expired_or_was_taken_out_of_the_file_opens_nothing(
    served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, at = tmp_path / "tokens", datetime.now(UTC)
    lines = [
        token_line(name, "editor", name, at + timedelta(hours=hours) if hours else None)
        for name, hours in (("gone", -1), ("soon", 1), ("ever", 0))
    ]
    file.write_text("\n".join(lines))
    monkeypatch.setattr(served.service, "tokens", Tokens.read(file))
    before = events(served)

    def ask(token: str) -> Any:
        with served.client("") as client:
            return client.get("/v1/models", headers={"Authorization": f"Bearer {token}"})

    for token, code in (("gone", "expired_api_key"), ("never", "invalid_api_key")):
        assert error_of(ask(token), 401)["code"] == code
    assert [ask(token).status_code for token in ("soon", "ever")] == [200, 200]
    file.write_text(lines[1])
    assert [ask(token).status_code for token in ("soon", "ever")] == [200, 401]
    for unread in (lines[1] + " tomorrow", "anna king " + token_digest("x")):
        file.write_text(unread)
        assert [ask(token).status_code for token in ("soon", "ever")] == [200, 401]
        assert "tokens" in caplog.text
        caplog.clear()
    file.write_text("\n".join(lines[1:]))
    assert ask("ever").status_code == 200
    file.unlink()
    assert ask("ever").status_code == 200, "nobody is shut out by an operator's slip"
    file.write_text("# none\n")
    assert ask("ever").status_code == 401, "the last token was taken out"
    assert events(served) == before


def test_settings_come_from_flags_before_the_environment_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "wise.toml"
    file.write_text("port = 1\nmax_batch_size = 2\nmax_queue = 3\n")
    monkeypatch.setenv("WISE_MAX_BATCH_SIZE", "20")
    monkeypatch.setenv("WISE_MAX_QUEUE", "30")
    loaded = load(file, {"max_queue": 300, "host": None})
    assert (loaded.port, loaded.max_batch_size, loaded.max_queue, loaded.host) == (1, 20, 300, "127.0.0.1")
    with pytest.raises(ConfigError, match="max_queu"):
        load(None, {"max_queu": 1})
    with pytest.raises(ConfigError, match="max_batch_size=0"):
        load(None, {"max_batch_size": 0})
    with pytest.raises(ConfigError, match="mode='hybrid2'"):
        load(None, {"mode": "hybrid2"})
    with pytest.raises(ConfigError, match="require='none_listed'"):
        load(None, {"require": "none_listed"})
    with pytest.raises(ConfigError, match="TOML"):
        load(tmp_path / "none.toml", {})


JSON = {"Content-Type": "application/json"}
LONE_SURROGATE = b'{"model": "demo", "prompt": "a\\ud800"}'
HALF_EDIT = b'{"edits": [{"prompt": "a", "target": "a\\udfff"}]}'
BAD: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "/v1/edits", {"json": {"edits": []}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"target": " "}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"subject": "Spain"}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"colour": "red"}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"prompt": None}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"subject": None, "aliases": ["Gallia"]}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"messages": [{"role": "assistant", "content": FRANCE}]}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"messages": [{"role": "king", "content": FRANCE}]}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"valid_from": "soon"}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON, LYON]}}, 409),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"prompt": f"{FRANCE} {i}"} for i in range(9)]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"prompt": "word " * 3000, "subject": None}]}}, 400),
    ("POST", "/v1/edits", {"json": {"edits": [LYON | {"prompt": "word " * 9000}]}}, 413),
    ("POST", "/v1/edits", {"json": {"edits": [LYON], "model": "another"}}, 404),
    ("POST", "/v1/edits", {"json": {"edits": [LYON], "model": f"{NAME}@"}}, 404),
    ("POST", "/v1/edits", {"json": {"edits": [LYON]}, "headers": {"Idempotency-Key": "k" * 300}}, 400),
    ("POST", "/v1/edits", {"content": b"{", "headers": JSON}, 400),
    ("POST", "/v1/edits", {"content": b"\xff\xfe", "headers": JSON}, 400),
    ("POST", "/v1/edits", {"json": [1]}, 400),
    ("GET", "/v1/edits?status=odd", {}, 400),
    ("GET", "/v1/edits?limit=0", {}, 400),
    ("GET", "/v1/edits?namespace=a%00", {}, 400),
    ("GET", "/v1/edits/a%00", {}, 400),
    ("DELETE", "/v1/edits/a?reason=%20%00", {}, 400),
    ("PATCH", "/v1/edits", {}, 405),
    ("GET", "/v1/nothing", {}, 404),
    ("GET", "/v1/versions/x", {}, 400),
    ("GET", "/v1/versions/7", {}, 404),
    ("GET", "/v1/versions/99999999999999999999", {}, 400),
    ("POST", "/v1/completions", {"json": {"model": NAME, "prompt": ""}}, 200),
    ("POST", "/v1/completions", {"json": {"model": NAME, "prompt": []}}, 400),
    ("POST", "/v1/completions", {"content": LONE_SURROGATE, "headers": JSON}, 400),
    ("POST", "/v1/edits", {"content": HALF_EDIT, "headers": JSON}, 400),
    ("POST", "/v1/chat/completions", {"json": {"model": NAME, "messages": []}}, 400),
    ("POST", "/v1/ask", {"json": {"prompts": ["x"], "max_tokens": 10**9}}, 400),
    ("POST", "/v1/ask", {"json": {"prompts": ["x"], "chat": False}}, 200),
    ("POST", "/v1/ask", {"json": {"prompts": ["x"], "chat": True}}, 400),
    ("POST", "/v1/ask", {"json": {"prompts": [[{"role": "user", "content": FRANCE}]]}}, 400),
    ("POST", "/v1/ask", {"json": {"prompts": [[]]}}, 400),
]


@pytest.mark.parametrize(("method", "path", "request_", "status"), BAD)
def test_bad_input_is_refused_and_changes_nothing(
    served: Running, method: str, path: str, request_: dict[str, Any], status: int
) -> None:
    before = events(served)
    with served.client() as client:
        answer = client.request(method, path, **request_)
        if status == 200:
            assert answer.status_code == 200, answer.text
        else:
            error_of(answer, status)
        assert client.get("/health").status_code == 200
    assert events(served) == before


@pytest.mark.parametrize(("path", "status"), [("/v1/edits", 413), ("/v1/nothing", 404)])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_client_that_sends_all_before_it_reads_hears_the_answer(
    served: Running, path: str, status: int, chunked: bool
) -> None:
    before, block = events(served), b"x" * 2**20
    size = {} if chunked else {"Content-Length": str(30 * len(block))}
    request = urllib.request.Request(
        served.url + path,
        data=(block for _ in range(30)),
        headers={**JSON, **size, "Authorization": "Bearer admin"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=PATIENCE):
        pass
    assert caught.value.code == status
    assert set(json.load(caught.value)) == {"error"}
    assert events(served) == before


@pytest.mark.parametrize(("token", "status"), [("admin", 413), ("nobody", 401)])
def test_a_body_that_does_not_come_is_not_waited_for_long(
    served: Running, monkeypatch: pytest.MonkeyPatch, token: str, status: int
) -> None:
    monkeypatch.setattr(middleware, "LINGER", 0.2)
    head = f"POST /v1/edits HTTP/1.1\r\nHost: x\r\nContent-Length: {10**9}\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {token}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=PATIENCE) as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until the service closes
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


MILLION = 1_000_000


@pytest.mark.parametrize("body", [b"[" * MILLION, b'{"a":' * (MILLION // 5), b'{"edits":[' + b"[]," * (MILLION // 3)])
def test_json_of_very_many_parts_is_refused_before_it_is_read(
    reach: Running, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[object] = []
    monkeypatch.setattr(json, "loads", parsed.append)  # with which the framework parses bodies
    with reach.client() as client:
        answer = client.post("/v1/edits", content=body, headers=JSON)
        monkeypatch.undo()
        assert "lists, objects and fields" in error_of(answer, 413)["message"] and not parsed
        assert "edits" in error_of(client.post("/v1/edits", content=b'{"edits":[[]]}', headers=JSON), 400)["message"]


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (EditsRequest, {"edits": [1] * 1000}),
        (EditsRequest, {"edits": [LYON | {"paraphrases": [1] * 64}] * 1000}),
        (CompletionRequest, {"model": "m", "prompt": [{}] * 1000}),
        (CompletionRequest, {"model": "m", "prompt": [[-1] * 1000]}),
        (ChatRequest, {"model": "m", "messages": [1] * 1000}),
        (AskRequest, {"prompts": [[{}] * 64] * 1000}),
    ],
)
def test_a_list_has_one_error_however_long_it_is(schema: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    assert caught.value.error_count() <= 6


def test_without_an_editor_changes_are_refused_and_edits_wait(served: Running) -> None:
    with served.client() as client:
        answer = client.post("/v1/versions/0/rollback")
        assert "editor" in error_of(answer, 503)["message"]
        assert answer.headers["retry-after"]


def test_more_than_may_wait_is_told_to_come_back(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for six answers: two that are generated and four that wait."""
    may_step = hold(monkeypatch)
    body = {"model": NAME, "prompt": "The", "n": 2, "max_tokens": 4, "temperature": 1.2}
    answers: list[Any] = []

    def ask() -> None:
        with served.client("reader") as client:
            answers.append(client.post("/v1/completions", json=body))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) >= 9)
    may_step.set()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 2 <= len(answers) - len(refused) <= 3
    for answer in refused:
        assert error_of(answer, 429)["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1


def test_more_previews_than_may_wait_are_told_to_come_back(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is made, and none may wait."""
    begun, may_end, answers = threading.Event(), threading.Event(), []

    async def command(name: str, **_: Any) -> Any:
        begun.set()
        await asyncio.to_thread(may_end.wait, PATIENCE)
        raise StoreError(f"the {name} was held")

    def ask() -> None:
        with served.client("editor") as client:
            answers.append(client.post("/v1/edits/preview", json={"edit": LYON}))

    monkeypatch.setattr(served.service, "command", command)
    first = threading.Thread(target=ask)
    first.start()
    assert begun.wait(PATIENCE)
    ask()
    may_end.set()
    first.join()
    ask()
    assert "too many wait already" in error_of(answers[0], 429)["message"] and answers[0].headers["retry-after"]
    for answer in answers[1:]:
        assert "the preview was held" in error_of(answer, 503)["message"], "there was room for it"


def test_a_request_whose_time_is_over_before_anything_was_generated_is_an_error(served: Running) -> None:
    body = {"model": NAME, "prompt": "The", "max_tokens": 120, "n": 4, "temperature": 1.3, "wise": {"deadline": 1e-9}}
    with served.client("reader") as client:
        error_of(client.post("/v1/completions", json=body), 504)
        stream = client.post("/v1/completions", json=body | {"stream": True})
    assert stream.status_code == 200 and '"code":"deadline"' in stream.text and "[DONE]" not in stream.text


@pytest.mark.parametrize("streamed", [False, True])
def test_a_deadline_gives_what_was_generated(
    served: Running, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, run = 0, Runner.run

    def counted(self: Runner, *arguments: Any) -> Tensor:
        nonlocal steps
        steps += 1
        return run(self, *arguments)

    monkeypatch.setattr(Runner, "run", counted)
    clock = SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: time.monotonic() + 10**6 * (steps > 3))
    monkeypatch.setattr(local, "time", clock)
    body = {"model": NAME, "prompt": "The", "max_tokens": 9, "seed": 1, "logit_bias": {"2": -100}, "stream": streamed}
    with served.client("reader") as client:
        answer = client.post("/v1/completions", json=body)
        monkeypatch.undo()
        whole = client.post("/v1/completions", json=body | {"stream": False}).json()
    assert answer.status_code == 200
    last = json.loads(answer.text.split("data: ")[-2]) if streamed else answer.json()
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["wise"]["finish_reasons"] == ["deadline"] and whole["wise"]["finish_reasons"] == ["length"]
    chunks = [json.loads(part) for part in answer.text.split("data: ")[1:-1]] if streamed else [last]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text and whole["choices"][0]["text"].startswith(text) and text != whole["choices"][0]["text"]


def test_what_can_never_fit_is_refused_and_not_put_off(served: Running) -> None:
    """At most six answers are accepted: two that are generated and four that wait."""
    with served.client("reader") as client:
        body = {"model": NAME, "prompt": ["The", "A"], "n": 3, "max_tokens": 1}
        assert client.post("/v1/completions", json=body).status_code == 200
        problem = error_of(client.post("/v1/completions", json=body | {"prompt": ["The", "A", "Once"]}), 400)
    assert problem["message"].startswith("n: 9 answers were asked for and 6 are held")


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest, context, tokenized = served.service.token_text.longest, served.service.encoder.context, []
    tokenizer = type(served.service.tokenizer)
    call = tokenizer.__call__

    def counted(self: Any, text: Any, *arguments: Any, **options: Any) -> Any:
        tokenized.append((len(text), threading.current_thread()))
        return call(self, text, *arguments, **options)

    monkeypatch.setattr(tokenizer, "__call__", counted)
    with served.client("reader") as client:
        for text in ("a" * (longest * context + 1), "word " * (longest * context // 8)):
            tokenized.clear()
            for path, body in (
                ("completions", {"model": NAME, "prompt": text}),
                ("chat/completions", {"model": NAME, "messages": [{"role": "user", "content": text}]}),
                ("ask", {"prompts": [text]}),
            ):
                problem = error_of(client.post(f"/v1/{path}", json=body), 400)
                assert "do not fit the context" in problem["message"] and len(problem["message"]) < 200
            assert sum(size for size, _ in tokenized) <= 3 * 8 * context < 3 * len(text)
        assert client.post("/v1/completions", json={"model": NAME, "prompt": "The"}).status_code == 200
    names = {thread.name.partition("_")[0] for _, thread in tokenized}
    assert names == {"wise-prompts"}, "the event loop does not tokenize"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": FRANCE, "n": 3}),
        ("completions", {"prompt": FRANCE, "n": 3, "stream": True}),
        ("chat/completions", {"messages": [{"role": "user", "content": FRANCE}], "n": 3}),
        ("responses", {"input": FRANCE}),
        ("responses", {"input": FRANCE, "stream": True}),
        ("ask", {"prompts": [FRANCE]}),
    ],
)
def test_the_event_loop_spells_no_answer_and_a_prompt_is_spelled_once(
    served: Running, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    tokenizer = type(served.service.tokenizer)
    decode, spelled = tokenizer.decode, []

    def noted(self: Any, ids: Any, *arguments: Any, **options: Any) -> Any:
        spelled.append(threading.current_thread().name.partition("_")[0])
        return decode(self, ids, *arguments, **options)

    monkeypatch.setattr(tokenizer, "decode", noted)
    more = {} if path == "ask" else {"model": NAME, "temperature": 0, "wise": {"routes": True}}
    with served.client("reader") as client:
        answer = client.post(f"/v1/{path}", json=body | more)
    prompt, routes = len(served.service.encoder.prompt(FRANCE)), answer.text.count('"threshold"')
    assert answer.status_code == 200 and routes > prompt
    assert {*spelled} <= {"wise-prompts", "wise-engine"}
    if count := body.get("n"):
        assert spelled.count("wise-prompts") <= 2 * (prompt + routes - count * prompt)


def test_an_error_in_one_answer_ends_no_other(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    may_step, init, alone = hold(monkeypatch), Sampler.__init__, {}

    class Failing(Sampler):
        def draw(self, logits: Tensor, likeliest: int) -> int:
            raise ZeroDivisionError

    def chosen(self: Sampler, request: GenerationRequest, *arguments: Any) -> None:
        init(self, request, *arguments)
        if request.seed == 13:
            self.__class__ = Failing

    monkeypatch.setattr(Sampler, "__init__", chosen)

    def ask(seed: int) -> None:
        with served.client("reader") as client:
            body = {"model": NAME, "prompt": FRANCE, "temperature": 0, "seed": seed}
            alone[seed] = client.post("/v1/completions", json=body)

    threads = [threading.Thread(target=ask, args=[seed]) for seed in (13, 14)]
    for thread in threads:
        thread.start()
    until(lambda: served.service.engine.busy == 2)
    may_step.set()
    for thread in threads:
        thread.join()
    assert "ZeroDivisionError" in error_of(alone[13], 500)["message"]
    assert alone[14].json()["choices"][0]["text"] == " Paris."
    assert served.service.engine.busy == 0


def test_a_prompt_that_cannot_be_read_does_not_end_what_is_decoded(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Runner.run

    def failing(self: Runner, memories: Any, ids: Tensor, *arguments: Any) -> Tensor:
        if ids.shape[1] > 40:
            raise MemoryError
        return run(self, memories, ids, *arguments)

    monkeypatch.setattr(Runner, "run", failing)
    with served.client("reader") as client:
        body = {"model": NAME, "prompt": "The", "max_tokens": 60, "logit_bias": {"2": -100}, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            error_of(client.post("/v1/completions", json={"model": NAME, "prompt": "word " * 60}), 500)
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_the_engine_looks_busy_within_its_steps(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    run, busy_counts = Runner.run, []

    def noted(self: Runner, *arguments: Any) -> Tensor:
        busy_counts.append(served.service.engine.busy)
        return run(self, *arguments)

    monkeypatch.setattr(Runner, "run", noted)
    body = {"model": NAME, "prompt": FRANCE, "n": 4, "max_tokens": 2, "logit_bias": {"2": -100}}
    with served.client("reader") as client:
        assert client.post("/v1/completions", json=body).status_code == 200
    assert busy_counts[0] == 4 and set(busy_counts) == {2, 4} and served.service.engine.busy == 0  # two at a time


def test_the_times_of_tokens_are_measured(served: Running) -> None:
    def count(name: str) -> float:
        return float(served.service.metrics.registry.get_sample_value(f"wise_{name}_seconds_count") or 0)

    first, between = count("first_token"), count("inter_token")
    body = {"model": NAME, "prompt": FRANCE, "n": 2, "max_tokens": 5, "logit_bias": {"2": -100}}
    with served.client("reader") as client:
        client.post("/v1/completions", json=body)
        assert "wise_cache_tokens" in client.get("/metrics").text
    assert (count("first_token") - first, count("inter_token") - between) == (2, 8)


def generated(served: Running) -> float:
    """Tokens so far."""
    return float(served.service.metrics.registry.get_sample_value("wise_generated_tokens_total") or 0)


def send(served: Running, body: dict[str, Any]) -> socket.socket:
    """The connection on which a completion was requested; its answer is not read."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n"
    connection = socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=PATIENCE)
    head += "Authorization: Bearer reader\r\nContent-Type: application/json\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("leaves", [True, False])
def test_a_client_that_leaves_makes_room(
    served: Running, streamed: bool, leaves: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wise")
    may_step, before = hold(monkeypatch), generated(served)
    body = {"model": NAME, "prompt": "The", "max_tokens": 20, "n": 2, "temperature": 1.3, "stream": streamed}
    with send(served, body) as connection:
        until(lambda: served.service.engine.busy == 2)
        if leaves:
            connection.close()
            until(lambda: any(record.getMessage() == "request" for record in caplog.records))  # it was noticed
        may_step.set()
        while not leaves and connection.recv(4096):  # until the answer is whole
            pass
    with served.client("reader") as client:  # the engine's next steps
        client.post("/v1/completions", json={"model": NAME, "prompt": "The", "max_tokens": 1})
    assert (generated(served) - before == 1) == leaves


def test_writes_are_audited_and_requests_logged(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wise")
    with served.client("editor") as client:
        answer = client.post("/v1/edits", json={"edits": [LYON]}, headers={"X-Request-ID": "mine-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (202, "mine-1")
    audits = [record.fields for record in caplog.records if record.name == "wise.audit"]
    assert [(t["by"], t["request"], t["tickets"]) for t in audits] == [("the-editor", "mine-1", [1])]
    until(lambda: any(record.getMessage() == "request" for record in caplog.records))  # after the answer
    [logged] = [record.fields for record in caplog.records if record.getMessage() == "request"]
    assert logged | {"seconds": 0} == {
        "request": "mine-1", "method": "POST", "path": "/v1/edits", "status": 202, "seconds": 0, "by": "the-editor"
    }


def test_a_request_is_a_span(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[str, dict[str, Any]]] = []

    class Span:
        def set_attribute(self, name: str, value: Any) -> None:
            spans[-1][1][name] = value

        def get_span_context(self) -> SpanContext:
            return INVALID_SPAN_CONTEXT

    @contextmanager
    def start(name: str, context: Context, *, record_exception: bool, **_: Any) -> Iterator[Span]:
        assert not record_exception, "what an error says may quote an edit"
        spans.append((name, {}))
        yield Span()

    monkeypatch.setattr(middleware, "tracer", SimpleNamespace(start_as_current_span=start))
    with served.client("") as client:
        client.get("/v1/edits", headers={"X-Request-ID": "mine-2"})
    attributes = {"wise.request_id": "mine-2", "http.response.status_code": 401}
    until(lambda: spans == [("GET /v1/edits", attributes)])


@pytest.mark.slow
def test_the_service_keeps_to_its_own_schema(tmp_path: Path) -> None:
    """schemathesis makes up requests by the schema, and against it; each answer must be as the schema says."""
    with running(tmp_path / "store") as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
        checked = set()
        for operation in schema.get_all_operations():
            documented = operation.ok()
            checked.add(documented.path)
            for mode in schemathesis.GenerationMode:
                with suppress(Unsatisfiable):  # an empty request has no invalid variant
                    try_out(documented.as_strategy(generation_mode=mode))
        assert {"/v1/completions", "/v1/chat/completions", "/v1/edits", "/v1/versions/{number}/rollback"} <= checked
        with served.client("") as client:
            assert client.get("/ready").status_code == 200


def try_out(strategy: Any) -> None:
    """Eight requests that are the same in every run."""

    @given(case=strategy)
    @settings(
        max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def check(case: Any) -> None:
        if case.path == "/v1/events":
            case.query["follow"] = "false"
        # A schema cannot express everything, such as the size of the context, or that 1.0 is no whole number here.
        # Nor does it know that this test adds the token, or that unknown fields of a query are ignored.
        excluded = [positive_data_acceptance, *([] if case.method in ("POST", "PUT") else [negative_data_rejection])]
        case.call_and_validate(headers={"Authorization": "Bearer admin"}, excluded_checks=excluded)

    check()
