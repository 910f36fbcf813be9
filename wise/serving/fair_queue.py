"""A bounded queue for a resource of one user at a time: holders of tokens take turns, not their requests."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wise.serving.engines import BusyError


class FairQueue:
    """Turns of the holders of tokens. Used in one event loop."""

    def __init__(self, limit: int, seconds: float) -> None:
        """limit: how many may wait; half of them may be of one holder. seconds: how long each may wait."""
        self._limit, self._seconds = limit, seconds
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By holder, the next one first."""
        self._is_taken = False
        self._average = 1.0
        """Seconds of a turn: a moving average."""

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, holder: str) -> AsyncIterator[None]:
        """Only one block runs at a time. Raises BusyError if too many wait, or it waited too long."""
        if self._is_taken:
            await self._wait(holder)
        self._is_taken = True
        start = time.monotonic()
        try:
            yield
        finally:
            self._average += 0.3 * (time.monotonic() - start - self._average)
            self._hand_on()

    async def _wait(self, holder: str) -> None:
        holder_turns = self._waiting.get(holder, ())
        if len(self) >= self._limit or len(holder_turns) >= math.ceil(self._limit / 2):
            raise self._busy("too many wait already")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(turn)
        try:
            await asyncio.wait([turn], timeout=self._seconds)
            if not turn.done():
                raise self._busy(f"it waited {self._seconds:g} s")
        except BaseException:
            if turn.done():
                self._hand_on()
            else:
                turns = self._waiting[holder]
                turns.remove(turn)
                if not turns:
                    del self._waiting[holder]
            raise

    def _hand_on(self) -> None:
        """Gives the turn to the next holder, who then moves to the end of the queue."""
        holder = next(iter(self._waiting), None)
        self._is_taken = holder is not None
        if holder is not None:
            turns = self._waiting.pop(holder)
            turns.popleft().set_result(None)
            if turns:
                self._waiting[holder] = turns

    def _busy(self, why: str) -> BusyError:
        after = max(1, math.ceil(self._average * (len(self) + 1)))
        return BusyError(f"previews are made one after the other, and {why}; try again in {after} s", after)
