"""The canary set: prompts at which no edit may be active, checked on each new version. If one is, an alarm is raised.

A thread runs the prompts in the engine, after the users' requests, so that the next version does not wait for it. A
prompt that cannot be run counts as if edits were active at each of its tokens: it raises the alarm, and never clears
it. A namespace whose memory was checked before is not checked again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

from wise.errors import WiseError
from wise.memory.side_memory import SideMemory
from wise.serving.engines import BusyError, Delta, Engine, GenerationRequest, MemoryHandle
from wise.serving.follower import ServedVersion
from wise.serving.metrics import Metrics

logger = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds that one prompt may take, with the time that it waits for room."""
ROOM = 0.5
"""Seconds until a full engine is asked again."""


class Canaries:
    """Checks the newest version."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], engine: Callable[[], Engine], metrics: Metrics, limit: float
    ) -> None:
        """prompts: token ids. limit: share of their tokens above which the alarm is raised."""
        self._prompts, self._engine, self._metrics, self._limit = prompts, engine, metrics, limit
        self._counts: dict[str, tuple[SideMemory, int, int]] = {}
        """By namespace, the memory that was checked, and the result of `_count_in_namespace`."""
        self._changed = threading.Condition()
        self._newest: ServedVersion | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="wise-canaries", daemon=True)

    def start(self) -> None:
        if self._prompts:
            self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def check(self, version: ServedVersion) -> None:
        """Has a version checked, in place of an older one whose check has not started."""
        with self._changed:
            self._newest = version
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._newest is not None)
                version, self._newest = self._newest, None
                if self._closing or version is None:
                    return
            routed, failed = asyncio.run(self._count_in_version(version))
            dropped = failed > 0 and self._newest is not None  # by the engine, perhaps: a newer version is checked next
            if not self._closing and not dropped:
                self._report(version, routed, failed)

    def _report(self, version: ServedVersion, routed: int, failed: int) -> None:
        tokens = sum(map(len, self._prompts)) * len(version.handles)
        self._metrics.canary_tokens.set(tokens)
        self._metrics.false_routes.set(routed)
        self._metrics.canary_failures.set(failed)
        alarm = routed > self._limit * tokens or failed > 0
        self._metrics.alarm.set(alarm)
        if alarm:
            fields = {"version": version.version, "routed": routed, "tokens": tokens, "failed": failed}
            logger.warning("edits are active at the canary set, or it could not be run", extra={"fields": fields})

    async def _count_in_version(self, version: ServedVersion) -> tuple[int, int]:
        """Tokens at which an edit of any namespace is active, and prompts that could not be run."""
        counts = {}
        for name, handle in version.handles.items():
            if handle.memory is not None:
                memory, routed, failed = self._counts.get(name, (None, 0, 0))
                if memory is not handle.memory or failed:
                    routed, failed = await self._count_in_namespace(handle)
                counts[name] = handle.memory, routed, failed
        self._counts = counts
        return sum(routed for _, routed, _ in counts.values()), sum(failed for _, _, failed in counts.values())

    async def _count_in_namespace(self, handle: MemoryHandle) -> tuple[int, int]:
        routed = failed = 0
        for ids in self._prompts:
            if self._closing:
                break
            count = await self._count_in_prompt(handle, ids)
            failed += count is None
            routed += len(ids) if count is None else count
        return routed, failed

    async def _count_in_prompt(self, handle: MemoryHandle, ids: Sequence[int]) -> int | None:
        """Tokens of one prompt at which an edit is active; None if it could not be run."""
        end = time.monotonic() + TIMEOUT
        request = GenerationRequest(prompt=tuple(ids), handle=handle, max_new_tokens=1)
        while True:
            try:
                job = self._engine().submit([request], seconds=end - time.monotonic())  # one at a time: users go first
                delta = await job.deltas.get()
            except WiseError as error:
                delta = error
            if isinstance(delta, BusyError) and time.monotonic() < end:
                await asyncio.sleep(ROOM)
                continue
            if isinstance(delta, Delta) and delta.finish != "deadline":
                return len(delta.routed)
            logger.error("a canary could not be run: %s", delta)
            return None
