"""The clock of a journal: the present time, and whether the clock was set since it was last looked at.

Order comes from the numbers of events, never from the clock. A time that is recorded is what the clock said. A clock
that was set is noticed in two ways: within a process, by a second clock that counts seconds and cannot be set; and
between processes and after a restart, by the last event, which cannot be later than now.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from threading import RLock

logger = logging.getLogger(__name__)

TOLERANCE = 60.0
"""Seconds that clocks may differ by: those of two machines do, and one that is corrected in small steps does."""
_COUNTING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps, if the system has such a clock."""


class Clock:
    """What one process knows of the clock."""

    def __init__(self) -> None:
        self.last_reading: tuple[datetime, float] | None = None
        """The clock and the second clock when they were last looked at. Whoever looked and did not record what was
        noticed puts back what stood here, so that it is noticed again."""
        self.lock = RLock()
        """Held from a look until what was noticed is recorded."""

    def look(self, at: str, last: str) -> tuple[str, int | None]:
        """The time to record and the seconds by which the clock was set, or None if it was not.

        at: what the clock says; last: the time of the last event, or empty.
        """
        wall, counted = datetime.fromisoformat(at), time.clock_gettime(_COUNTING)
        jump = 0.0
        if self.last_reading is not None:
            jump = (wall - self.last_reading[0]).total_seconds() - (counted - self.last_reading[1])
        self.last_reading = wall, counted
        behind = _seconds_before(wall, last)
        if behind > TOLERANCE:
            jump = -behind
        if abs(jump) <= TOLERANCE:
            return max(at, last) if behind > 0 else at, None
        logger.warning("the clock was set %s by %.0f s; it says %s", "forward" if jump > 0 else "back", abs(jump), at)
        return max(at, last) if 0 < behind <= TOLERANCE else at, round(jump)


def _seconds_before(wall: datetime, last: str) -> float:
    """By how much the last event is later than now; 0 if its time is none."""
    try:
        return (datetime.fromisoformat(last) - wall).total_seconds()
    except (ValueError, TypeError):
        return 0.0
