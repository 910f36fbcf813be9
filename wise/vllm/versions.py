"""The versions that vLLM's workers have, and the requests that use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wise.errors import WiseError
from wise.vllm.requests import load_version


class DroppedError(WiseError, LookupError):
    """The workers do not have the version any more."""


class WorkerVersions:
    """The versions of one engine's workers. An unused version is dropped there, unless it precedes the newest.

    All methods are called in the engine's event loop; versions are loaded one at a time.
    """

    def __init__(self) -> None:
        self._loaded: list[int] = []
        """In the order of loading."""
        self._requests: Counter[int | None] = Counter()

    @property
    def empty(self) -> bool:
        """Whether no version was loaded yet."""
        return not self._loaded

    @contextmanager
    def holding(self, version: int | None) -> Iterator[None]:
        """A request uses a version within the block; None is the base alone. Raises DroppedError."""
        if version is not None and version not in self._loaded:
            raise DroppedError(f"version {version} is not served any more; ask again")
        self._requests[version] += 1
        try:
            yield
        finally:
            self._requests[version] -= 1

    async def load(self, engine: Any, version: int) -> None:
        """Returns when all workers have a version of the store. Raises errors of loading it."""
        if version in self._loaded:
            return
        await load_version(engine, version)
        self._requests = +self._requests
        needed = {version, *self._loaded[-1:], *self._requests}
        unused = [number for number in self._loaded if number not in needed]
        self._loaded = [number for number in self._loaded if number in needed] + [version]
        for number in unused:
            await engine.collective_rpc("wise_drop", args=(number,))
