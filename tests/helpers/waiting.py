"""Waiting for what happens in another process or in a thread that cannot say so."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 180.0
"""Seconds for what must come, on a machine that is busy with other things too. No test passes by it."""


def until(what: Callable[[], object], seconds: float = DEADLINE, missing: str = "it did not come") -> None:
    """Asks until it is so. Fails after so many seconds, and says what is missing."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, missing
        time.sleep(0.02)
