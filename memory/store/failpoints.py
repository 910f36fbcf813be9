"""Fail points: named places at which a test kills the process or fails the disk. Otherwise they do nothing.

    WISE_FAILPOINT=blob-renamed:kill:2      SIGKILL at the second passage of `blob-renamed`
    WISE_FAILPOINT=blob-written:ENOSPC:1    OSError of that number at the first passage of `blob-written`
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "WISE_FAILPOINT"
POINTS = (
    *("blob-written", "blob-synced", "blob-renamed", "blob-in-place"),
    *("transaction-begun", "transaction-filled", "transaction-durable"),
    *("version-collected", "blob-removed"),
)
"""All of them, in the order in which a commit and then a collection pass them."""

passages: Counter[str] = Counter()
"""How often an armed point was passed, by what it was armed with."""


def reach(point: str) -> None:
    """Called where `point` is reached. Raises OSError, or does not return, if a test armed it."""
    armed = os.environ.get(VARIABLE)
    if armed and armed.startswith(f"{point}:"):
        _fail(armed)


def _fail(armed: str) -> None:
    _, action, turn = armed.split(":")
    passages[armed] += 1
    if passages[armed] != int(turn):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    code = getattr(errno, action)
    raise OSError(code, os.strerror(code))
