"""Logs as JSON, one object a line, and the audit of writes."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wise.errors import ConfigError

audit_log = logging.getLogger("wise.audit")


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, what `extra={"told": {...}}` adds, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def set_up(audit: Path | None) -> None:
    """For the process of a service: all logs to stderr, the audit to its own file where one is given.

    Raises ConfigError for a file that cannot be written.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = name != "uvicorn.access"  # requests are logged by us, with their ids
    if audit is not None:
        try:
            file = logging.FileHandler(audit, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"audit {audit}: {error}; name a file that can be appended to") from error
        file.setFormatter(JsonFormatter())
        audit_log.addHandler(file)
        audit_log.propagate = False


def audited(action: str, *, by: str, request: str, **told: Any) -> None:
    """Notes a write: who did what to what, in which request, and what came of it."""
    audit_log.info(action, extra={"told": {"by": by, "request": request, **told}})
