"""Long measurements in parts: what is finished is kept on disk, so that an interrupted run goes on behind it.

A part is named, and its value is JSON. Python writes and reads floats exactly, so a run that was interrupted
ends with the very figures of one that was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many items of it are through, and of how many."""
BATCH = 32


class Journal:
    """Finished parts in a file, one JSON object a line. A line that was cut off by a crash does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, Any] = {}
        whole = 0
        if path.exists():
            content = path.read_bytes()
            for line in content.splitlines(keepends=True):
                try:
                    part = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                self.parts[part["part"]] = part["value"]
                whole += len(line)
            if whole < len(content):
                os.truncate(path, whole)

    def add(self, name: str, value: Any) -> None:
        """Keeps a part; when this returns it is on disk."""
        line = json.dumps({"part": name, "value": value}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.parts[name] = value


class Work:
    """Does measurements part by part, keeps each in a journal where there is one, and says how far it is."""

    def __init__(self, journal: Journal | None = None, progress: Progress | None = None) -> None:
        self.journal = journal
        self.progress = progress

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of a part: what the journal has, or else what `compute` gives, which must be JSON."""
        if self.journal is None:
            return compute()
        if name not in self.journal.parts:
            self.journal.add(name, compute())
        return self.journal.parts[name]

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
                self.progress(name, start + len(chunk), len(items))
        return values
