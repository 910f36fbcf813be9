"""The versions that vLLM's workers hold: which requests may carry them, and until when."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from wise.vllm.requests import load_version


class HeldVersions:
    """Those of one engine. A version that no request has any more is dropped there, except the one before the newest.

    Any thread may begin and end requests; versions are loaded one at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Guards both."""
        self._held: list[int] = []
        """In the order in which they came."""
        self._running: Counter[int | None] = Counter()

    @property
    def running(self) -> int:
        """Requests that are not finished."""
        return self._running.total()

    @property
    def empty(self) -> bool:
        """Whether nothing was loaded yet."""
        return not self._held

    def begin(self, versions: Sequence[int | None]) -> None:
        """A request for each begins; None is one of the base alone.

        Raises LookupError, and none begins, for a version that is not held.
        """
        with self._lock:
            unknown = {version for version in versions if version is not None}.difference(self._held)
            if unknown:
                raise LookupError(f"version {min(unknown)} is not served any more; ask again")
            self._running.update(versions)

    def end(self, version: int | None) -> None:
        """A request ended."""
        with self._lock:
            self._running[version] -= 1

    async def load(self, engine: Any, version: int) -> None:
        """Returns when all workers have a version of the store. Raises what loading it raised."""
        if version in self._held:
            return
        await load_version(engine, version)
        with self._lock:
            self._running = +self._running
            kept = {version, *self._held[-1:], *self._running}
            gone = [number for number in self._held if number not in kept]
            self._held = [number for number in self._held if number in kept] + [version]
        for number in gone:
            await engine.collective_rpc("wise_drop", args=(number,))
