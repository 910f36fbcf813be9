"""What the commands print: in all of it, control characters are escaped and secrets left out.

A terminal obeys some characters, and texts of edits and answers come from strangers.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import typer
from rich.text import Text

from wise.safe_text import escaped, redacted


def echo(text: str, *, err: bool = False) -> None:
    """A text as lines of stdout, or of stderr."""
    typer.echo(escaped(text), err=err)


def show_json(value: Any) -> None:
    """Exact JSON as one line of stdout; what JSON does not escape by itself is escaped as JSON does."""
    typer.echo(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("\x7f", "\\u007f"))


def cell(value: Any) -> Text:
    """A cell of a table, shown as it is: None as a dash, a Text in its style, floats in short."""
    if isinstance(value, Text):
        return Text(escaped(value.plain), style=value.style)
    return Text(escaped("-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)))


class LineFormatter(logging.Formatter):
    """Lines of the log for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(redacted(super().format(record)))
