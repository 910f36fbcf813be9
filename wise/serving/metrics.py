"""What the service reports to its operator: metrics for Prometheus, logs as JSON, and the audit of writes."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wise.errors import ConfigError

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
audit_log = logging.getLogger("wise.audit")


class Metrics:
    """The metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("wise_requests", "HTTP requests.", ["route", "method", "status"], **on)
        self.latency = Histogram(
            "wise_request_seconds", "Seconds until a request was answered in full.", ["route"], buckets=LONG, **on
        )
        self.first = Histogram(
            "wise_first_token_seconds", "Seconds until the first token of an answer.", buckets=LONG, **on
        )
        self.step = Histogram("wise_step_seconds", "Seconds of one step of the engine.", buckets=SHORT, **on)
        self.prompt_tokens = Counter("wise_prompt_tokens", "Tokens of prompts that were read.", **on)
        self.tokens = Counter("wise_generated_tokens", "Tokens that were generated.", **on)
        self.routed = Counter("wise_routed_tokens", "Tokens at which an edit was active.", **on)
        self.running = Gauge("wise_running_answers", "Answers that are being generated.", **on)
        self.queue = Gauge("wise_waiting_answers", "Answers that are queued.", **on)
        self.refused = Counter("wise_refused_requests", "Requests refused because the queue was full.", **on)
        self.version = Gauge("wise_version", "Version that new requests get.", **on)
        self.live = Gauge("wise_live_edits", "Edits that are live.", **on)
        self.edits = Counter("wise_edits", "Edits by their outcome.", ["outcome"], **on)
        self.edit_seconds = Histogram(
            "wise_edit_seconds", "Seconds from accepting an edit until it was live or failed.", buckets=(*LONG, 300.0),
            **on,
        )
        self.clock_jumps = Counter("wise_clock_jumps", "Times that a clock was set, by the events of the store.", **on)
        self.editor = Gauge("wise_editor_up", "Whether this replica's editor runs.", **on)
        self.canary_tokens = Gauge("wise_canary_tokens", "Tokens of the canary set.", **on)
        self.false_routes = Gauge(
            "wise_canary_false_routes", "Tokens of the canary set at which an edit is active.", **on
        )
        self.alarm = Gauge("wise_canary_alarm", "1 if edits are active at too much of the canary set.", **on)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class JsonFormatter(logging.Formatter):
    """One JSON object per line; `extra={"fields": {...}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def json_handler() -> logging.Handler:
    """Writes JSON lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    return handler


def set_up_logs(audit: Path | None) -> None:
    """Sends all logs of this process to stderr, and the audit to its own file if there is one.

    Raises ConfigError if the file cannot be written.
    """
    root = logging.getLogger()
    root.handlers = [json_handler()]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = name != "uvicorn.access"  # the middleware logs requests, with their ids
    if audit is not None:
        try:
            file = logging.FileHandler(audit, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"audit {audit}: {error}; name a file that can be appended to") from error
        file.setFormatter(JsonFormatter())
        audit_log.addHandler(file)
        audit_log.propagate = False


def audit(action: str, *, by: str, request: str, **fields: Any) -> None:
    """Records a write: who did what, in which request, and the result."""
    audit_log.info(action, extra={"fields": {"by": by, "request": request, **fields}})
