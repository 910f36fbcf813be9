"""Logs: one JSON object per line on stderr, with the request that it is about; and the audit of writes.

`json_logs` turns all output to stderr into such lines: the loggers of all libraries, warnings, uncaught errors of any
thread, and plain text, which becomes a record of the logger `stderr`. Only text that a C library writes to the file
descriptor passes unchanged.

A log outlives an erased text, so it names edits and does not quote them. An error's message may repeat any text, so
above the level `debug` only its kind and place are logged: see `error_without_texts`.
"""

from __future__ import annotations

import atexit
import io
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, TextIO

from wise.errors import ConfigError, EditError, WiseError
from wise.safe_text import json_line, redacted

LEVELS = ("debug", "info", "warning", "error")
UVICORN_ACCESS = "uvicorn.access"
"""Not shown: the middleware logs requests, with their ids."""
audit_log = logging.getLogger("wise.audit")
_notes: ContextVar[dict[str, Any] | None] = ContextVar("notes", default=None)


@contextmanager
def noting(**fields: Any) -> Iterator[dict[str, Any]]:
    """The block is one request: each of its records has these fields. Yields all notes about it."""
    notes = dict(fields)
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note(**fields: Any) -> None:
    """Adds fields to the notes about the current request; does nothing outside of requests."""
    notes = _notes.get()
    if notes is not None:
        notes.update(fields)


def error_without_texts(error: BaseException) -> str:
    """The kind of an error, and its message if that quotes no text of an edit: of an error of the system, of torch, or
    of wise, unless it is about an edit."""
    kind = type(error)
    quotes_no_text = (
        (isinstance(error, WiseError | OSError) and not isinstance(error, EditError))
        or kind is RuntimeError
        or kind.__module__.partition(".")[0] == "torch"
    )
    return f"{kind.__name__}: {error}" if quotes_no_text else kind.__name__


def _traceback(error: BaseException, visited: frozenset[int] = frozenset()) -> str:
    """The traceback of an error, with each error of its chain and of its group as `error_without_texts`."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    related = [cause for cause in (before, *getattr(error, "exceptions", ())) if cause is not None]
    visited |= {id(error)}
    tracebacks = [_traceback(cause, visited) for cause in related if id(cause) not in visited]
    frames = "".join(traceback.format_tb(error.__traceback__))
    return "\n\n".join([*tracebacks, f"Traceback (most recent call last):\n{frames}{error_without_texts(error)}"])


class JsonFormatter(logging.Formatter):
    """One JSON object per line; `extra={"fields": {...}}` adds fields, and so does the request."""

    def __init__(self, *, whole_errors: bool = False) -> None:
        """whole_errors: also log messages of errors that may quote texts."""
        super().__init__()
        self._whole_errors = whole_errors

    def format(self, record: logging.LogRecord) -> str:
        notes = _notes.get() or {}
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: notes[name] for name in ("request", "trace") if notes.get(name)},
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            whole = self._whole_errors
            fields["traceback"] = self.formatException(record.exc_info) if whole else _traceback(record.exc_info[1])
        fields = {name: redacted(value) if isinstance(value, str) else value for name, value in fields.items()}
        return json_line(fields, default=str)


class TextAsRecords(io.TextIOBase):
    """Replaces stderr: each line of text is a record. If a line is written over, its last text counts.

    A record that cannot be written, because a disk is full or a pipe is closed, is dropped: `logging` reports that on
    stderr, and that report would be another record that cannot be written, without end.
    """

    def __init__(self, stream: TextIO) -> None:
        """stream: the one that it replaces."""
        self._stream, self._rest = stream, ""
        self._local = threading.local()
        """Has `writing` set while this thread writes a record."""

    def write(self, text: str) -> int:
        if getattr(self._local, "writing", False):
            return len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        self._local.writing = True
        try:
            for line in lines:
                last_text = line.rstrip("\r").rpartition("\r")[2].strip()
                if last_text:
                    logging.getLogger("stderr").warning("%s", last_text)
        finally:
            self._local.writing = False
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()


@contextmanager
def json_logs(level: str, audit: Path | None = None) -> Iterator[None]:
    """All logs and other text of this process go to stderr as JSON, and the audit to its own file if there is one.

    The end of the block restores the previous state, so that a command that fails can report it as plain text.
    Raises ConfigError if the file cannot be written.
    """
    stream, root, loggers = sys.stderr, logging.getLogger(), _with_handlers()
    file = None if audit is None else _audit_file(audit, level)
    before = [(log, log.handlers, log.propagate, log.level) for log in (root, *loggers)]
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    root.handlers = [_json(logging.StreamHandler(stream), level)]
    root.setLevel(level.upper())
    for log in loggers:
        log.handlers, log.propagate = [], log.name != UVICORN_ACCESS
    if file is not None:
        _use_for_audit(file)
    logging.captureWarnings(True)
    sys.stderr = TextAsRecords(stream)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        sys.stderr = stream
        logging.captureWarnings(False)
        for log, handlers, propagate, own_level in before:
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(own_level)
        if file is not None:
            file.close()


def log_as_json(level: str, audit: Path | None) -> None:
    """The log of wise goes to stderr as JSON, in a process whose other logs belong to another program, such as Ray.

    Raises ConfigError if the file of the audit cannot be written.
    """
    log = logging.getLogger("wise")
    log.handlers, log.propagate = [_json(logging.StreamHandler(), level)], False
    log.setLevel(level.upper())
    if audit is not None:
        _use_for_audit(_audit_file(audit, level))


def run_logged(level: str, function: str, *arguments: Any) -> None:
    """Runs `MODULE:NAME` within `json_logs`, as the target of a process. Output of the module's import is a record too,
    and so is an error, with which the process ends."""
    with json_logs(level):
        try:
            resolve_name(function)(*arguments)
        except Exception:
            _uncaught(*sys.exc_info())
            sys.exit(1)


def begin_logged(level: str, function: str) -> None:
    """Runs `MODULE:NAME` as `run_logged` does, but keeps `json_logs` for the rest of the process."""
    stack = ExitStack()
    stack.enter_context(json_logs(level))
    atexit.register(stack.close)
    resolve_name(function)()


def _with_handlers() -> list[logging.Logger]:
    """Loggers that write by themselves, and those whose handlers or propagation `json_logs` changes."""
    existing = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    special = [logging.getLogger(UVICORN_ACCESS), audit_log]
    return [*special, *(log for log in existing if log.handlers and log not in special)]


def _json(handler: logging.Handler, level: str) -> logging.Handler:
    handler.setFormatter(JsonFormatter(whole_errors=level == "debug"))
    return handler


def _use_for_audit(file: logging.Handler) -> None:
    """Every write goes to the file, whatever the level of the log is."""
    audit_log.handlers, audit_log.propagate = [file], False
    audit_log.setLevel(logging.INFO)


def _audit_file(path: Path, level: str) -> logging.Handler:
    try:
        return _json(logging.FileHandler(path, encoding="utf-8"), level)
    except OSError as error:
        raise ConfigError(f"audit {path}: {error}; name a file that can be appended to") from error


def _uncaught(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if kind is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        logging.getLogger("wise").critical("an error was not caught", exc_info=(kind, error or kind(), trace))


def audit(action: str, *, by: str, **fields: Any) -> None:
    """Records a write: its author, action, request and result."""
    request = (_notes.get() or {}).get("request")
    audit_log.info(action, extra={"fields": {"by": by, "request": request, **fields}})
