"""Logs: one JSON object a line on stderr, also of libraries, with the request it is about; and the audit of writes.

Within `json_logs` nothing else reaches stderr: the loggers of all libraries, warnings, uncaught errors of any thread,
and plain text, which becomes a record of the logger `stderr`. What a C library writes to the file itself is left as it
is.

A log outlives what is erased from a store, so it names edits and does not quote them. What an error of a library says
may repeat any text, so above the level `debug` its kind and place are logged alone: see `error_without_texts`.
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
    """The block is one request: each of its records has these fields. Yields all that is noted about it."""
    notes = dict(fields)
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note(**fields: Any) -> None:
    """Adds to what is noted about the request that this is done for; does nothing outside of requests."""
    notes = _notes.get()
    if notes is not None:
        notes.update(fields)


def error_without_texts(error: BaseException) -> str:
    """The kind of an error, and what it says where that quotes no text of an edit: an error of the system, of torch,
    which knows no texts, or of wise, unless it is about an edit."""
    kind, own = type(error), isinstance(error, WiseError | OSError) and not isinstance(error, EditError)
    is_quotable = own or kind is RuntimeError or kind.__module__.partition(".")[0] == "torch"
    return f"{kind.__name__}: {error}" if is_quotable else kind.__name__


def _traceback(error: BaseException, seen: frozenset[int] = frozenset()) -> str:
    """The traceback of an error, with each error of its chain and of its group as `error_without_texts`."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    others = [other for other in (before, *getattr(error, "exceptions", ())) if other is not None]
    seen |= {id(error)}
    parts = [_traceback(other, seen) for other in others if id(other) not in seen]
    frames = "".join(traceback.format_tb(error.__traceback__))
    return "\n\n".join([*parts, f"Traceback (most recent call last):\n{frames}{error_without_texts(error)}"])


class JsonFormatter(logging.Formatter):
    """One JSON object per line; `extra={"fields": {...}}` adds fields, and so does the request."""

    def __init__(self, *, whole_errors: bool = False) -> None:
        """whole_errors: also log what an error says that may quote texts."""
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
    """Takes the place of stderr: each line of text is a record. If a line is written over, its last text counts.

    A record that cannot be written, because a disk is full or a pipe is closed, is lost. `logging` would say so on
    stderr, which would be another record that cannot be written, without end.
    """

    def __init__(self, stream: TextIO) -> None:
        """stream: what it takes the place of."""
        self._stream, self._rest = stream, ""
        self._thread = threading.local()
        """Has `writing` set while this thread writes a record."""

    def write(self, text: str) -> int:
        if getattr(self._thread, "writing", False):
            return len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        self._thread.writing = True
        try:
            for line in lines:
                line_text = line.rstrip("\r").rpartition("\r")[2].strip()
                if line_text:
                    logging.getLogger("stderr").warning("%s", line_text)
        finally:
            self._thread.writing = False
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()


@contextmanager
def json_logs(level: str, audit: Path | None = None) -> Iterator[None]:
    """All logs and other text of this process go to stderr as JSON, and the audit to its own file if there is one.

    All is as before when the block ends, so that a command that fails can say so in plain words.
    Raises ConfigError if the file cannot be written.
    """
    stream, root, others = sys.stderr, logging.getLogger(), _with_handlers()
    file = None if audit is None else _audit_file(audit, level)
    before = [(one, one.handlers, one.propagate, one.level) for one in (root, *others)]
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    root.handlers = [_json(logging.StreamHandler(stream), level)]
    root.setLevel(level.upper())
    for one in others:
        one.handlers, one.propagate = [], one.name != UVICORN_ACCESS
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
        for one, handlers, propagate, own_level in before:
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(own_level)
        if file is not None:
            file.close()


def log_as_json(level: str, audit: Path | None) -> None:
    """The log of wise goes to stderr as JSON, in a process whose other logs belong to somebody else, such as Ray.

    Raises ConfigError if the file of the audit cannot be written.
    """
    log = logging.getLogger("wise")
    log.handlers, log.propagate = [_json(logging.StreamHandler(), level)], False
    log.setLevel(level.upper())
    if audit is not None:
        _use_for_audit(_audit_file(audit, level))


def run_logged(level: str, function: str, *arguments: Any) -> None:
    """Runs `MODULE:NAME` within `json_logs`, as the target of a process. What the module writes while it is imported is
    a record too, and so is an error, with which the process ends."""
    with json_logs(level):
        try:
            resolve_name(function)(*arguments)
        except Exception:
            _uncaught(*sys.exc_info())
            sys.exit(1)


def begin_logged(level: str, function: str) -> None:
    """The same, but for the rest of the process: for the beginning of one that does more than this."""
    stack = ExitStack()
    stack.enter_context(json_logs(level))
    atexit.register(stack.close)
    resolve_name(function)()


def _with_handlers() -> list[logging.Logger]:
    """Loggers that write by themselves, and those whose handlers or propagation `json_logs` changes."""
    known = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    named = [logging.getLogger(UVICORN_ACCESS), audit_log]
    return [*named, *(one for one in known if one.handlers and one not in named)]


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
    """Records a write: who did what, in which request, and the result."""
    request = (_notes.get() or {}).get("request")
    audit_log.info(action, extra={"fields": {"by": by, "request": request, **fields}})
