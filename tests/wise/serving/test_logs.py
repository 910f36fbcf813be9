"""Logs: all writers to stderr give one JSON object per line, with the request; afterwards stderr is as before."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from serving import FRANCE, NAME, Running, running
from waiting import until

from wise.errors import ConfigError, EditError, StoreError
from wise.memory.store.store import Store
from wise.serving.logs import JsonFormatter, audit, audit_log, json_logs, note, noting, run_logged
from wise.serving.settings import load
from wise.training.trainer import Trainer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@contextmanager
def logging_to(stderr: io.StringIO, level: str, audit: Path | None = None) -> Iterator[None]:
    with redirect_stderr(stderr), json_logs(level, audit):
        yield


def lines(stderr: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.getvalue().splitlines()]


def test_every_line_is_one_json_object_whoever_writes_it() -> None:
    stderr, before = io.StringIO(), sys.stderr
    library, steering = logging.getLogger("a.library"), "\u2028\x85\x9b\u202e"  # lines and terminals
    library.addHandler(logging.StreamHandler(stderr))
    library.propagate = False
    try:
        with logging_to(stderr, "info"), warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.getLogger("wise").info(f"two\nlines{steering}", extra={"fields": {"seconds": 1}})
            logging.getLogger("wise").debug("too small")
            library.error("by its own handler")
            logging.getLogger("uvicorn.error").info("from uvicorn")
            logging.getLogger("uvicorn.access").info("the middleware says that")
            warnings.warn("a warning", UserWarning, stacklevel=1)
            sys.stderr.write("plain ")
            print("text", file=sys.stderr)
            sys.stderr.write("\r 10%\r 90%\r100%\n")
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()
        records = lines(stderr)
        assert [(line["logger"], line["level"]) for line in records] == [
            ("wise", "info"), ("a.library", "error"), ("uvicorn.error", "info"), ("py.warnings", "warning"),
            ("stderr", "warning"), ("stderr", "warning"), ("wise", "critical"),
        ]  # fmt: skip
        assert (records[0]["message"], records[0]["seconds"]) == (f"two\nlines{steering}", 1)
        assert not {*steering} & {*stderr.getvalue()}
        assert (records[4]["message"], records[5]["message"]) == ("plain text", "100%")
        assert "ZeroDivisionError" in records[6]["traceback"]
        assert sys.stderr is before and library.handlers and not library.propagate
        library.error("plainly")  # negative control, and as before
        with pytest.raises(json.JSONDecodeError):
            lines(stderr)
    finally:
        library.handlers, library.propagate = [], True


def test_nothing_is_left_that_would_write_to_a_closed_stream(capfd: pytest.CaptureFixture[str]) -> None:
    stderr = io.StringIO()
    before = list(logging.getLogger().handlers), logging.getLogger().level, sys.excepthook, threading.excepthook
    nowhere = Path("/no/such/folder/audit")
    with pytest.raises(ConfigError, match="audit .*: .*; name a file"), logging_to(stderr, "debug", nowhere):
        pass
    with logging_to(stderr, "debug"):
        pass
    after = list(logging.getLogger().handlers), logging.getLogger().level, sys.excepthook, threading.excepthook
    assert after == before
    stderr.close()
    logging.getLogger("wise").error("later")
    assert "Logging error" not in capfd.readouterr().err
    logging.getLogger().addHandler(handler := logging.StreamHandler(stderr))
    try:
        logging.getLogger("wise").error("later")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "Logging error" in capfd.readouterr().err  # negative control


class Full(io.StringIO):
    """A file on a disk that is full for a while."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_log_that_cannot_be_written_fails_nobody_and_goes_on_later() -> None:
    stderr = Full()
    with logging_to(stderr, "info"):
        logging.getLogger("wise").info("lost")
        print("lost too", file=sys.stderr)
        stderr.full = False
        logging.getLogger("wise").info("one of %d", "no number")  # negative control: a valid record is logged
        logging.getLogger("wise").info("there is room again")
    messages = [line["message"] for line in lines(stderr)]
    assert messages[-1] == "there is room again" and "lost" not in messages
    assert messages[0] == "--- Logging error ---" and any("one of %d" in line for line in messages)


@pytest.mark.parametrize("level", ["info", "error"])
def test_an_audit_goes_to_its_own_file_whatever_is_logged(level: str, tmp_path: Path) -> None:
    stderr, before = io.StringIO(), audit_log.level
    with logging_to(stderr, level, tmp_path / "audit"):
        with noting(request="r1"):
            audit("delete", by="anna", edit="e1")
    audit("delete", by="bert")
    assert audit_log.level == before
    [line] = (tmp_path / "audit").read_text().splitlines()
    assert json.loads(line).items() >= {"message": "delete", "by": "anna", "request": "r1", "edit": "e1"}.items()
    assert stderr.getvalue() == ""


def test_a_record_names_its_request() -> None:
    record = logging.LogRecord("wise", logging.INFO, "", 0, "done", None, None)
    note(version=1)  # outside of a request: nothing
    with noting(request="r1", trace=TRACE) as notes:
        note(version=2)
        assert json.loads(JsonFormatter().format(record)).items() >= {"request": "r1", "trace": TRACE}.items()
        assert notes["version"] == 2
    assert json.loads(JsonFormatter().format(record)).keys() == {"time", "level", "logger", "message"}


def test_a_level_is_one_of_four() -> None:
    assert load(None, {"log_level": "warning"}).log_level == "warning"
    with pytest.raises(ConfigError, match="log_level='loud'"):
        load(None, {"log_level": "loud"})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("logs") / "store", editing=False) as service:
        yield service


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_logged_with_tokens_version_and_trace(
    served: Running, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wise")
    body = {"model": NAME, "prompt": FRANCE, "stream": stream, "temperature": 0}
    for parent, trace in ((f"00-{TRACE}-00f067aa0ba902b7-01", TRACE), ("00-xyz-1-01", None), ("", None)):
        caplog.clear()
        with served.client("reader") as client:
            headers = {"traceparent": parent, "X-Request-ID": "mine"}
            answer = client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200
        until(lambda: any(record.getMessage() == "request" for record in caplog.records))
        [request] = [record.fields for record in caplog.records if record.getMessage() == "request"]
        assert request.get("trace") == trace and request["request"] == "mine"
        assert (request["version"], request["prompt_tokens"]) == (0, len(served.service.encoder.prompt(FRANCE)))
        assert 2 <= request["completion_tokens"] <= 4
        if not stream:
            assert answer.json()["usage"]["completion_tokens"] == request["completion_tokens"]


WORDS = ("Zanzibar", "Quetzalcoatl", "Xylophonia", "Zebedee")
SECRET = {"prompt": "The capital of Zanzibar is", "target": "Quetzalcoatl", "subject": "Zanzibar"}
TAUGHT = {
    "prompt": "As Xylophonia says, the capital of France is", "target": "Lyon", "subject": "France",
    "reason": "as Zebedee said",
}


@pytest.mark.parametrize("level", ["info", "debug"])
def test_no_text_of_an_edit_is_logged_whatever_becomes_of_it(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At `debug` what errors say is logged too; there it is seen that they would quote it."""
    stderr, train = io.StringIO(), Trainer.edit

    def fails(self: Trainer, state: Any, edits: Any, *arguments: Any, **more: Any) -> Any:
        if any(edit.target == SECRET["target"] for edit in edits):
            raise ValueError(f"it cannot be trained: {[edit.to_dict() for edit in edits]}")
        return train(self, state, edits, *arguments, **more)

    def broken(self: Store, edits: Any, *arguments: Any, **more: Any) -> Any:
        raise LookupError(str(edits))

    monkeypatch.setattr(Trainer, "edit", fails)
    with logging_to(stderr, level), running(tmp_path / "store") as served, served.client() as client:
        [failed], [live] = served.edit(SECRET), served.edit(TAUGHT)
        assert (failed["status"], live["status"]) == ("failed", "live") and "Zanzibar" in failed["outcome"]["why"]
        for edit, status in ((SECRET, 503), (TAUGHT | {"target": "Nice"}, 200)):
            preview = client.post("/v1/edits/preview", json={"edit": edit})
            assert preview.status_code == status, preview.text
        table = "prompt,target,Zanzibar\nThe sun is,hot,Quetzalcoatl\n"
        answer = client.post("/v1/files/edits", params={"name": "a.csv"}, content=table)
        assert answer.status_code == 200 and "'Zanzibar' (1)" in answer.json()["warnings"][0]
        with monkeypatch.context() as patch:
            patch.setattr(Store, "enqueue", broken)
            assert client.post("/v1/edits", json={"edits": [SECRET]}).status_code == 500
        assert client.delete(f"/v1/edits/{live['id']}", params={"reason": "Zebedee was wrong"}).status_code == 200
        for edit in (failed, live):
            assert client.post(f"/v1/edits/{edit['id']}/erase", json={}).status_code == 200
    log = stderr.getvalue()
    words = {word for word in WORDS if word in log}
    assert words == set() if level == "info" else words >= {"Zanzibar", "Quetzalcoatl"}
    assert failed["id"] in log and live["id"] in log and log.count("ValueError") >= 3 and "LookupError" in log


def test_an_unexpected_error_is_answered_as_others_are_and_logged_once_with_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Store, edits: Any, *arguments: Any, **more: Any) -> Any:
        raise LookupError

    monkeypatch.setattr(Store, "enqueue", broken)
    stderr, origin = io.StringIO(), "https://chat.example"
    with logging_to(stderr, "info"), running(tmp_path / "store", editing=False, cors_origins=(origin,)) as served:
        with served.client() as client:
            headers = {"X-Request-ID": "r1", "Origin": origin}
            answer = client.post("/v1/edits", json={"edits": [SECRET]}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    expected = {"x-request-id": "r1", "x-content-type-options": "nosniff", "cache-control": "no-store"}
    assert dict(answer.headers).items() >= (expected | {"access-control-allow-origin": origin}).items()
    assert [line.get("request") for line in lines(stderr) if "traceback" in line] == ["r1"]


@pytest.mark.parametrize(("level", "quoted"), [("info", False), ("debug", True)])
def test_a_process_that_fails_logs_where_and_quotes_nothing(level: str, quoted: bool) -> None:
    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.raises(SystemExit, match="1"):
        run_logged(level, "builtins:int", "Zanzibar")
    [line] = lines(stderr)
    assert line["level"] == "critical" and "in run_logged" in line["traceback"] and "ValueError" in line["traceback"]
    assert ("Zanzibar" in line["traceback"]) == quoted


def test_what_errors_say_that_know_no_texts_is_logged_with_the_errors_that_came_before() -> None:
    def traced(error: Exception, cause: Exception) -> str:
        try:
            raise error from cause
        except Exception:
            record = logging.LogRecord("wise", logging.ERROR, "", 0, "failed", None, sys.exc_info())
        return str(json.loads(JsonFormatter().format(record))["traceback"])

    text = traced(StoreError("the disk is full"), OSError(28, "No space left"))
    assert text.index("OSError: [Errno 28] No space left") < text.index("StoreError: the disk is full")
    group = ExceptionGroup("Zanzibar", [RuntimeError("out of memory"), EditError("field 'prompt': Zanzibar")])
    text = traced(group, KeyError("Zanzibar"))
    assert "RuntimeError: out of memory" in text and text.endswith("ExceptionGroup") and "Zanzibar" not in text
    assert {"EditError", "KeyError"} <= {*text.split()}
