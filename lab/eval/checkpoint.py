"""Long measurements in parts. Finished parts are kept on disk, and an interrupted run continues after them.

A part is named, and its value is JSON. Python writes and reads floats exactly, so a run that was interrupted
ends with the very figures of one that was not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from wise.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many items of it are through, and of how many."""
BATCH = 32
LOCK = "lock"


class CheckpointFile:
    """Finished parts in a file, one JSON object a line. A line that a crash cut off does not count.

    Raises ConfigError for a file of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, Any] = {}
        self.seconds = 0.0
        """Wall time of all parts together, whichever process did them."""
        whole = 0
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                part = json.loads(line)
                self.parts[part["part"]] = part["value"]
                self.seconds += part["seconds"]
            except (ValueError, KeyError, TypeError) as error:
                problem = f"not the checkpoint file of a run ({error}); delete it to begin anew"
                raise ConfigError(f"{path}: {problem}") from error
            whole += len(line)
        if whole < len(content):
            os.truncate(path, whole)

    def add(self, name: str, value: Any, seconds: float) -> None:
        """Keeps a part; when this returns it is on disk."""
        line = json.dumps({"part": name, "seconds": seconds, "value": value}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.parts[name] = value
        self.seconds += seconds


@contextmanager
def sole_user(folder: Path | None) -> Iterator[None]:
    """Makes a folder, and keeps other processes out of it for the length of a `with` block.

    Raises ConfigError where another process is in it. Where the system has no file locks, nobody is kept out.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                problem = "another process is at this run; wait for it, or give another name"
                raise ConfigError(f"{folder}: {problem}") from None
        yield


class Checkpoint:
    """Does measurements part by part, keeps each in a file where there is one, and says how far it is."""

    def __init__(self, file: CheckpointFile | None = None, progress: Progress | None = None, prefix: str = "") -> None:
        self.file = file
        self.progress = progress
        self.prefix = prefix

    def within(self, name: str) -> Checkpoint:
        """The same work, its parts named behind `NAME/`: for a measurement that a run takes more than once."""
        return Checkpoint(self.file, self.progress, f"{self.prefix}{name}/")

    def finished(self, start: str) -> list[str]:
        """Names of finished parts that begin with `start`, without it."""
        begin = self.prefix + start
        parts = self.file.parts if self.file is not None else ()
        return [name.removeprefix(begin) for name in parts if name.startswith(begin)]

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of a part: what the file has, or else what `compute` gives, which must be JSON."""
        if self.file is None:
            return compute()
        name = self.prefix + name
        if name not in self.file.parts:
            begun = time.perf_counter()
            value = compute()
            self.file.add(name, value, time.perf_counter() - begun)
        return self.file.parts[name]

    def map(
        self, name: str, items: Sequence[T], compute: Callable[[Sequence[T]], list[Any]], *, batch: int = BATCH
    ) -> list[Any]:
        """One JSON value per item, worked out `batch` items at a time; each batch is a part, `NAME/START`."""
        values: list[Any] = []
        for start in range(0, len(items), batch):
            chunk = items[start : start + batch]

            def once(chunk: Sequence[T] = chunk) -> list[Any]:
                return compute(chunk)

            values += self.part(f"{name}/{start}", once)
            if self.progress is not None:
                self.progress(self.prefix + name, start + len(chunk), len(items))
        return values
