"""Streams of edits: each line once, whatever is cut off, repeated or wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from waiting import until

from wise.cli.app import app
from wise.errors import ConfigError
from wise.ingest import Line, lines_of_file
from wise.memory.store.store import Store


def line(number: int, **more: Any) -> str:
    return json.dumps({"prompt": f"The capital of land {number} is", "target": "here", **more}) + "\n"


def stream(*arguments: str, store: Path, given: str | None = None) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["stream", *arguments, "--store", str(store), "--json"], input=given)
    assert done.exit_code in (0, 2), done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"exit": done.exit_code, "stderr": done.stderr}


def prompts(store: Path) -> list[str]:
    with Store.open(store, writer=False) as opened:
        return [ticket.edit.prompt for ticket in opened.journal.tickets()]


def test_a_file_is_gone_on_with_and_a_replay_changes_nothing(tmp_path: Path) -> None:
    file, store = tmp_path / "edits.jsonl", tmp_path / "store"
    file.write_text(line(1) + "\n" + line(2, reason="why not"))
    assert stream(str(file), store=store)["taken"] == 2
    assert stream(str(file), store=store) | {"stderr": "", "name": ""} == {
        "name": "", "taken": 0, "known": 0, "refused": 0, "exit": 0, "stderr": ""
    }
    with file.open("a") as appended:
        appended.write(line(3))
    assert stream(str(file), store=store)["taken"] == 1
    assert len(prompts(store)) == 3
    again = stream(str(file), "--name", "again", store=store)  # the same edits by another name are the same edits
    assert (again["taken"], again["known"]) == (0, 3)
    with Store.open(store, writer=False) as opened:
        assert opened.journal.tickets()[1].reason == "why not"


def test_standard_input_that_is_repeated_changes_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert stream("-", store=store, given=line(1) + line(2))["taken"] == 2
    again = stream("-", store=store, given=line(1) + line(2) + line(3))
    assert (again["taken"], again["known"]) == (1, 2)
    assert stream("-", store=store, given=line(9))["taken"] == 1  # another text by the same name is not lost


def test_a_bad_line_is_told_and_left_out(tmp_path: Path) -> None:
    store = tmp_path / "store"
    given = "{\n" + '["a"]\n' + line(1, colour="red") + '{"prompt": "x"}\n' + line(2) + "\xff\n"
    told = stream("-", store=store, given=given)
    assert (told["exit"], told["taken"], told["refused"]) == (2, 1, 5)
    for said in ("byte 0: is not JSON", "is a list", "'colour'", "'target'"):
        assert said in told["stderr"]
    assert prompts(store) == ["The capital of land 2 is"]


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    file, store = tmp_path / "edits.jsonl", tmp_path / "store"
    file.write_text(line(1) + line(2))
    stream(str(file), store=store)
    file.write_text(line(7) + line(8) + line(9))
    done = CliRunner().invoke(app, ["stream", str(file), "--store", str(store)])
    assert done.exit_code == 2 and "is not what was taken in" in done.stderr
    assert len(prompts(store)) == 2


def test_a_line_that_is_half_written_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    whole, half = line(1), line(2)
    file.write_text(whole + half[:20])
    lines = lines_of_file(file, "x", None, follow=True)
    assert next(lines) == Line(place=0, data=whole.strip().encode())
    with file.open("a") as appended:
        appended.write(half[20:])
    assert next(lines) == Line(place=len(whole), data=half.strip().encode())
    file.write_text("")
    with pytest.raises(ConfigError, match="was cut"):
        next(lines)


@pytest.fixture
def address() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write((line(1) + line(2)).encode())

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/edits"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_read_once(tmp_path: Path, address: str) -> None:
    store = tmp_path / "store"
    assert stream(address, store=store)["taken"] == 2
    again = stream(address, store=store)
    assert (again["taken"], again["known"]) == (0, 2)


LINES = 2000
"""Of a file that is long enough to be killed over, on a machine that is busy too."""


@pytest.mark.slow
def test_killed_anywhere_and_started_again_it_takes_every_line_in_once(tmp_path: Path) -> None:
    file, store = tmp_path / "edits.jsonl", tmp_path / "store"
    file.write_text("".join(line(i) for i in range(LINES)))
    Store.open(store).close()
    command = [sys.executable, "-m", "wise", "stream", str(file), "--store", str(store)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with Store.open(store, writer=False) as opened:
        until(lambda: len(opened.journal.tickets(limit=5)) == 5)
        process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(prompts(store))
    assert 5 <= before < LINES, "it was not killed in the middle: the test shows nothing"
    assert stream(str(file), store=store)["taken"] == LINES - before
    found = prompts(store)
    assert found == [f"The capital of land {i} is" for i in range(LINES)]
