"""The command line as the tests call it, and a folder of a tiny model and a web server for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import Result
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from wise.cli.app import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, *parts: str, warnings: int = 0) -> None:
    """One clear line on stderr behind so many warnings, nothing on stdout, exit code 2."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    *_, line = lines = result.stderr.splitlines()
    assert len(lines) == 1 + warnings, result.stderr
    assert line.startswith("wise: ") and all(part in line for part in parts), line


def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def web(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Port of a web server, for the length of a `with` block."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
