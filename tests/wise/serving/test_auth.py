"""Tokens are checked before the body and while a stream is open, and a token of a namespace sees only that."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from serving import NAME, PATIENCE, Running, hold, running, tokens
from typer.testing import CliRunner

from wise.cli.app import app
from wise.edits import Edit
from wise.errors import ConfigError
from wise.serving.auth import EDITOR, READER, Holder, Tokens, add_token_line, token_digest, token_line

FRANCE, SPAIN, ITALY = (f"The capital of {place} is" for place in ("France", "Spain", "Italy"))
OURS, THEIRS = f"{NAME}@team-a", f"{NAME}@team-b"
SCOPES = ("reader", "editor", "admin")
SECRETS = ("Secret", "Spain", "Italy", "team-b", "the-admin", "hush")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two teams, each with a live edit; the other has a deleted one besides."""
    with running(tmp_path_factory.mktemp("auth") / "store", mode="retrieve") as service:
        bound = frozenset({"team-a"})
        ours = [(Holder(name=f"a-{s}", scope=s, namespaces=bound), token_digest(f"a-{s}")) for s in (READER, EDITOR)]
        by_digest, digests = tokens(), map(token_digest, SCOPES)
        known = [(holder, digest) for digest in digests if (holder := by_digest.holder(digest))]
        service.service.tokens = Tokens([*ours, *known])
        service.edit({"prompt": FRANCE, "target": "Lyon", "subject": "France"}, model=OURS)
        service.edit({"prompt": SPAIN, "target": "Secret", "subject": "Spain", "reason": "hush"}, model=THEIRS)
        deleted = service.edit({"prompt": ITALY, "target": "Secret", "subject": "Italy"}, model=THEIRS)
        with service.client() as client:
            assert client.delete(f"/v1/edits/{deleted[0]['id']}", params={"reason": "hush"}).status_code == 200
        yield service


def ids(served: Running, namespace: str) -> list[str]:
    with served.client() as client:
        return [edit["id"] for edit in client.get("/v1/edits", params={"namespace": namespace}).json()["data"]]


# -- before the body --------------------------------------------------------------------------------


def first_answer(served: Running, token: str) -> bytes:
    """The first line that a client receives if it waits before it sends its body."""
    head = "POST /v1/edits HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
    head += f"Expect: 100-continue\r\nAuthorization: Bearer {token}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=PATIENCE) as connection:
        connection.sendall(head.encode())
        return connection.recv(4096).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("token", "response"),
    [("nobody", b"401 Unauthorized"), ("", b"401 Unauthorized"), ("reader", b"403 Forbidden"),
     ("admin", b"100 Continue")],
)
def test_a_body_is_asked_for_only_of_those_who_may_send_it(served: Running, token: str, response: bytes) -> None:
    assert first_answer(served, token) == b"HTTP/1.1 " + response


def test_every_route_of_the_schema_but_those_of_probes_wants_a_token(served: Running) -> None:
    with served.client("") as client:
        paths = client.get("/openapi.json").json()["paths"]
        open_to_all = set()
        for path, operations in paths.items():
            for method in operations:
                answer = client.request(method, re.sub(r"\{.*?\}", "1", path), content=b"[" * 1000)
                if answer.status_code != 401:
                    open_to_all.add(path)
    assert open_to_all == {"/health", "/ready"}


def test_a_token_is_looked_up_once_for_a_request(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up, holders = list[str](), served.service.tokens

    class Counting(Tokens):
        def holder(self, digest: str) -> Holder | None:
            looked_up.append(digest)
            return holders.holder(digest)

    monkeypatch.setattr(served.service, "tokens", Counting([]))
    with served.client("a-reader") as client:
        for path, status in (("/v1/token", 200), ("/v1/edits", 200), ("/metrics", 403)):
            assert client.get(path).status_code == status
            assert looked_up == [token_digest("a-reader")]
            looked_up.clear()


# -- a token of a namespace -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/models", None, 200),
        (f"/v1/models/{THEIRS}", None, 404),
        (f"/v1/models/{NAME}@team-", None, 404),
        ("/v1/edits", None, 200),
        ("/v1/edits?namespace=team-b", None, 200),
        ("/v1/edits?limit=1&after=1", None, 200),
        ("/v1/edits?namespace=default", None, 200),
        ("/v1/edits?text=Spain", None, 200),
        ("/v1/edits/{theirs}", None, 404),
        ("/v1/edits/{gone}", None, 404),
        ("/v1/files/edits", None, 200),
        ("/v1/files/edits?namespace=team-b", None, 200),
        ("/v1/status", None, 403),
        ("/tokenize", {"model": THEIRS, "prompt": SPAIN}, 404),
        ("/v1/events?since=0&follow=false", None, 200),
        ("/v1/versions", None, 403),
        ("/v1/versions/1", None, 403),
        ("/v1/versions/2/diff", None, 403),
        ("/metrics", None, 403),
        ("/v1/completions", {"model": THEIRS, "prompt": SPAIN}, 404),
        ("/v1/completions", {"model": NAME, "prompt": SPAIN}, 404),
        ("/v1/chat/completions", {"model": THEIRS, "messages": [{"role": "user", "content": "x"}]}, 404),
        ("/v1/ask", {"model": THEIRS, "prompts": ["x"]}, 404),
        ("/v1/ask", {"prompts": ["x"]}, 404),
        ("/v1/edits", {"model": THEIRS, "edits": [{"prompt": "x", "target": "y"}]}, 404),
        ("/v1/edits", {"edits": [{"prompt": "x", "target": "y"}]}, 404),
        ("/v1/edits/preview", {"model": THEIRS, "edit": {"prompt": "x", "target": "y"}}, 404),
        ("PUT /v1/edits/{theirs}", {"target": "y"}, 404),
        ("DELETE /v1/edits/{theirs}", None, 404),
    ],
)
def test_a_token_of_a_namespace_sees_nothing_of_others(
    served: Running, path: str, body: dict[str, Any] | None, status: int
) -> None:
    theirs, deleted = ids(served, "team-b")
    method, _, path = f"{'GET' if body is None else 'POST'} {path}".rpartition(" ")
    path, method = path.format(theirs=theirs, gone=deleted), method.split(" ")[-1]
    with served.client("a-editor") as client:
        answer = client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    text = answer.text
    for name in (path.rpartition("/")[2], str((body or {}).get("model"))):
        text = text.replace(repr(name), "")  # an error names the values of the request
    assert not [secret for secret in (*SECRETS, theirs, deleted) if secret in text], text
    with served.client() as client:  # an admin gets the same texts
        visible = client.get("/v1/edits").text
    assert all(secret in visible for secret in ("Secret", "Spain", "Italy", "team-b", theirs, deleted))


def test_a_token_of_a_namespace_does_there_what_its_scope_says(served: Running) -> None:
    [ours] = ids(served, "team-a")
    with served.client("a-editor") as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [OURS]
        assert client.post("/v1/completions", json={"model": OURS, "prompt": FRANCE}).json()["choices"][0]["text"]
        assert [edit["id"] for edit in client.get("/v1/edits").json()["data"]] == [ours]
        assert client.get(f"/v1/edits/{ours}").json()["events"]
        lines = client.get("/v1/events", params={"since": 0, "follow": "false"}).text.splitlines()
        kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        assert kinds == ["queued", "training", "live"]
        near = client.get(f"/v1/models/{NAME}@team-x").json()["error"]["message"]
        assert OURS in near
        body = {"model": OURS, "edits": [{"prompt": ITALY, "target": "Nice", "subject": "Italy"}], "wait": "live"}
        [edit] = client.post("/v1/edits", json=body).json()["edits"]
        answer = client.delete(f"/v1/edits/{edit['id']}")
    assert (edit["status"], answer.status_code, answer.json().get("edits")) == ("live", 200, 1), answer.text
    with served.client("a-reader") as client:
        assert client.post("/v1/edits", json={"model": OURS, "edits": []}).status_code == 403


def test_a_token_of_a_namespace_that_deletes_a_queued_edit_hears_of_no_version_of_others(served: Running) -> None:
    [theirs] = served.edit({"prompt": ITALY, "target": "Secret", "subject": "Italy"}, model=THEIRS)
    with served.client() as client:
        assert client.delete(f"/v1/edits/{theirs['id']}", params={"reason": "hush"}).json()["reason"] == "hush"
    with served.client("a-editor") as client:
        later = {"prompt": ITALY, "target": "Nice", "valid_from": "2100-01-01"}
        [edit] = client.post("/v1/edits", json={"model": OURS, "edits": [later]}).json()["edits"]
        answer = client.delete(f"/v1/edits/{edit['id']}", params={"reason": "ours"})
    assert (edit["status"], answer.status_code) == ("queued", 200), answer.text
    assert (answer.json()["author"], answer.json()["reason"]) == ("a-editor", "ours")


# -- while a stream is open -------------------------------------------------------------------------


def lines_file(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "tokens"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("path", ["/v1/events", "/v1/completions"])
@pytest.mark.parametrize(
    "change",
    [[], [token_line("eve", "reader", "t", namespaces=["x"])], [token_line("eve", "reader", "t", datetime.now(UTC))]],
    ids=["revoked", "bound", "expired"],
)
def test_a_stream_ends_with_its_token(
    served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, change: list[str]
) -> None:
    kept_line = token_line("other", "reader", "o")
    file = lines_file(tmp_path, kept_line, token_line("eve", "reader", "t"))
    monkeypatch.setattr(served.service, "tokens", Tokens.read(file))
    may_step = hold(monkeypatch)
    body = {"model": OURS, "prompt": FRANCE, "max_tokens": 3, "stream": True}
    request = ("GET", path, None) if path == "/v1/events" else ("POST", path, body)
    with served.client("t") as client, client.stream(request[0], request[1], json=request[2]) as stream:
        lines = stream.iter_lines()
        if path == "/v1/events":
            assert next(lines) == ": open"
        lines_file(tmp_path, kept_line, *change)
        events = [line for line in lines if line]
    may_step.set()
    assert events[0] == "event: error"
    assert json.loads(events[1].removeprefix("data: "))["error"]["type"] == "permission_error"
    assert len(events) == 2


def test_a_stream_goes_on_while_its_token_holds(
    served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = lines_file(tmp_path, token_line("eve", "reader", "t", datetime.now(UTC) + timedelta(hours=1)))
    monkeypatch.setattr(served.service, "tokens", Tokens.read(file))
    body = {"model": OURS, "prompt": FRANCE, "max_tokens": 3, "stream": True}
    with served.client("t") as client, client.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": open"
        file.write_text(file.read_text() + token_line("other", "reader", "o") + "\n")
        assert client.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")
        served.service.store.enqueue([Edit(prompt="The sea is", target="blue", namespace="team-c")])
        assert any(line == "event: live" or line == "event: failed" for line in lines)


# -- files of tokens --------------------------------------------------------------------------------


def test_a_file_of_tokens_is_private_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, before = tmp_path / "tokens", os.umask(0)
    modes: list[int] = []
    change = os.fchmod
    monkeypatch.setattr(os, "fchmod", lambda fd, mode: (modes.append(os.fstat(fd).st_mode & 0o777), change(fd, mode)))
    try:
        add_token_line(file, token_line("anna", "reader", "a"))
        file.chmod(0o644)
        file.write_text(file.read_text().rstrip("\n"))  # by an editor that leaves out the last end of a line
        add_token_line(file, token_line("ben", "reader", "b"))
    finally:
        os.umask(before)
    assert modes == [0o600, 0o644] and file.stat().st_mode & 0o777 == 0o600
    token_file = Tokens.read(file)
    assert token_file.holder(token_digest("a")) and token_file.holder(token_digest("b"))


def test_a_token_is_made_for_namespaces_of_any_name(tmp_path: Path) -> None:
    file, spaces = tmp_path / "tokens", ["team a", "a,b%=c", "équipe"]
    options = [part for space in spaces for part in ("--namespace", space)]
    result = CliRunner().invoke(app, ["token", "anna", "--file", str(file), "--days", "3", "--json", *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    holder = Tokens.read(file).holder(token_digest(report["token"]))
    assert holder is not None and holder.namespaces == frozenset(spaces) and holder.until is not None
    assert holder.sees("team a") and not holder.sees("team") and not holder.sees("default")
    for wrong in (" team", "te\u200bam", "\u0442eam"):
        refused = CliRunner().invoke(app, ["token", "anna", "--file", str(file), "--namespace", wrong])
        assert refused.exit_code == 2 and "--namespace" in refused.stderr
    with pytest.raises(ConfigError, match="tokens:1"):
        Tokens.read(lines_file(tmp_path, token_line("anna", "reader", "a") + " namespaces=%20x"))
