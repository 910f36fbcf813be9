"""How long work tells how far it is: what is called, and how often a line of it is written."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is through, and of how much."""

SECONDS_A_LINE = 10.0
"""Between two lines about one thing, where progress goes to a log or a file."""


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""
