"""What commands print: control characters are escaped, JSON is exact, and secrets are left out."""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from commands import run, web
from repository import ROOT
from rich.text import Text

from wise.cli.terminal import LineFormatter, cell, show_json
from wise.memory.store.store import Store
from wise.serving import app as serving
from wise.serving.settings import Settings

HOSTILE = "a\x1b]0;mine\x07\x1b[2J\x9b31m\u202eb\x7f\u2028c"


def raw(text: str) -> set[str]:
    return {char for char in text if not char.isprintable() and char != "\n"}


def printing(tree: ast.AST) -> list[str]:
    """Calls that write to a terminal past `wise.cli.terminal`."""
    names = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [name for name in names if name in ("print", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write",
                                               "sys.stderr.write", "typer.style")]  # fmt: skip


def test_commands_print_in_one_place() -> None:
    files = [file for file in (ROOT / "wise" / "cli").glob("*.py") if file.name != "terminal.py"]
    assert len(files) > 15
    assert not {file.name: found for file in files if (found := printing(ast.parse(file.read_text())))}
    assert printing(ast.parse("typer.echo(text)\nprint(1)")) == ["typer.echo", "print"]


def test_a_store_of_hostile_edits_is_shown_without_their_control_characters(tmp_path: Path) -> None:
    file, store = tmp_path / "edits.jsonl", tmp_path / "store"
    edit = {"prompt": f"The capital of {HOSTILE} is", "target": f"L {HOSTILE}", "reason": f"why {HOSTILE}"}
    file.write_text(json.dumps(edit) + "\n" + json.dumps({"prompt": HOSTILE, HOSTILE: 3}) + "\n")
    taken = run("stream", file, "--store", store, "--name", f"n{HOSTILE}")
    assert "taken in: 1" in taken.stdout and "line at byte" in taken.stderr
    shown = run("store", "log", store, "--json")
    for told in (taken.stdout, taken.stderr, shown.stdout):
        assert r"\x1b]0;mine\x07" in told.replace("\n", "") or "x1b" in told
        assert not raw(told)
    with Store.open(store, writer=False) as opened:
        [ticket] = opened.journal.tickets()
        assert ticket.edit.prompt == edit["prompt"] and raw(ticket.edit.prompt)  # what is stored is what was given
    assert json.loads(shown.stdout.splitlines()[-1])["counts"] == {"queued": 1}


def test_json_keeps_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"text": HOSTILE})
    line = capsys.readouterr().out
    assert json.loads(line) == {"text": HOSTILE} and not raw(line)


def test_cells_and_lines_of_the_log_are_escaped_too() -> None:
    styled = cell(Text(HOSTILE, style="green"))
    assert not raw(styled.plain) and styled.style == "green" and not raw(cell(HOSTILE).plain)
    assert [cell(value).plain for value in (None, 0.5, 3)] == ["-", "0.500", "3"]
    record = logging.LogRecord("wise", logging.WARNING, "", 0, f"{HOSTILE} postgresql://a:hunter2@b", (), None)
    line = LineFormatter("%(message)s").format(record)
    assert not raw(line) and "hunter2" not in line


# -- secrets ------------------------------------------------------------------------------------------


class Guarded(BaseHTTPRequestHandler):
    """Lines for whoever gives a user and a password."""

    given: list[str | None] = []

    def do_GET(self) -> None:
        self.given.append(self.headers["Authorization"])
        self.send_response(200 if self.headers["Authorization"] else 401)
        self.end_headers()
        self.wfile.write(b'{"prompt": "a", "target": "b"}\n{"prompt": 1}\n')

    def log_message(self, *_: Any) -> None:
        pass


def test_a_stream_by_url_tells_no_password_and_uses_it(tmp_path: Path) -> None:
    with web(Guarded) as port:
        url = f"http://anna:hun%2Fter2@127.0.0.1:{port}/edits?access_token=hunter3#hunter4"
        done = run("stream", url, "--store", tmp_path / "store")
        refused = run("stream", url.replace("anna:hun%2Fter2@", ""), "--store", tmp_path / "store")
        broken = run("stream", "http://anna:hunter2@127.0.0.1:hunter5/", "--store", tmp_path / "store")
    assert "taken in: 1" in done.stdout and Guarded.given == ["Basic YW5uYTpodW4vdGVyMg==", None]
    assert (refused.exit_code, broken.exit_code) == (2, 2) and "401" in refused.stderr
    kept = b"".join(file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())
    for told in (done.output + done.stderr, refused.stderr, kept.decode("latin1")):
        assert "hunter" not in told and "ter2" not in told and "anna" not in told
    assert f"http://***@127.0.0.1:{port}/edits?***" in done.output


def test_settings_do_not_show_a_password() -> None:
    settings = Settings(store="postgresql://anna:hunter2@db/wise")
    assert "hunter2" not in f"{settings!r} {settings}" and "***@db/wise" in repr(settings)
    assert settings.store == "postgresql://anna:hunter2@db/wise"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_token_of_a_run_does_not_go_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, as_json: bool
) -> None:
    file, seen = tmp_path / "store.8001.token", []

    def serve(settings: Settings, show: Any) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
        show("http://127.0.0.1:8001", "hunter2")
        if file.is_file():
            seen.append((file.read_text().strip(), os.stat(file).st_mode & 0o777))

    monkeypatch.setattr(serving, "run", serve)
    before = os.umask(0)
    try:
        done = run("serve", "--store", f"{tmp_path / 'store'}/", *(["--json"] if as_json else []))
    finally:
        os.umask(before)
    assert done.exit_code == 0, done.output
    assert "hunter2" not in done.stderr
    assert ("hunter2" in done.stdout) == (terminal or as_json)
    assert seen == ([] if terminal or as_json else [("hunter2", 0o600)])
    assert not file.exists()


def test_a_service_that_ends_leaves_the_token_of_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "store.8001.token"

    def serve(settings: Settings, show: Any) -> None:
        show("http://127.0.0.1:8001", "hunter2")
        file.write_text("hunter3\n")

    monkeypatch.setattr(serving, "run", serve)
    assert run("serve", "--store", tmp_path / "store").exit_code == 0
    assert file.read_text() == "hunter3\n"


def test_each_of_several_services_on_a_store_has_a_file_for_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict[str, str]()

    def second(settings: Settings, show: Any) -> None:
        show("http://[::1]:8002", "hunter3")
        found.update((file.name, file.read_text().strip()) for file in tmp_path.glob("*.token"))

    def first(settings: Settings, show: Any) -> None:
        show("http://127.0.0.1:8001", "hunter2")
        monkeypatch.setattr(serving, "run", second)
        assert run("serve", "--store", tmp_path / "store").exit_code == 0

    monkeypatch.setattr(serving, "run", first)
    assert run("serve", "--store", tmp_path / "store").exit_code == 0
    assert found == {"store.8001.token": "hunter2", "store.8002.token": "hunter3"}
    assert not [*tmp_path.glob("*.token")]
