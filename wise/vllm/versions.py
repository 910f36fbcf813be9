"""The versions that vLLM's workers hold: which requests may carry them, and until when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wise.errors import WiseError
from wise.vllm.requests import load_version


class DroppedError(WiseError, LookupError):
    """The workers do not have a version any more."""


class HeldVersions:
    """Those of one engine. A version that no request has any more is dropped there, except the one before the newest.

    Everything is called in the engine's event loop; versions are loaded one at a time.
    """

    def __init__(self) -> None:
        self._versions: list[int] = []
        """In the order in which they came."""
        self._requests: Counter[int | None] = Counter()

    @property
    def empty(self) -> bool:
        """Whether nothing was loaded yet."""
        return not self._versions

    @contextmanager
    def holding(self, version: int | None) -> Iterator[None]:
        """A request has a version within the block; None is the base alone. Raises DroppedError."""
        if version is not None and version not in self._versions:
            raise DroppedError(f"version {version} is not served any more; ask again")
        self._requests[version] += 1
        try:
            yield
        finally:
            self._requests[version] -= 1

    async def load(self, engine: Any, version: int) -> None:
        """Returns when all workers have a version of the store. Raises what loading it raised."""
        if version in self._versions:
            return
        await load_version(engine, version)
        self._requests = +self._requests
        kept = {version, *self._versions[-1:], *self._requests}
        dropped = [number for number in self._versions if number not in kept]
        self._versions = [number for number in self._versions if number in kept] + [version]
        for number in dropped:
            await engine.collective_rpc("wise_drop", args=(number,))
