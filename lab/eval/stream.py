"""The stream of a run: edits are applied call by call, and the memory is saved after every stretch of them.

A stretch is a part of the run's work. An interrupted run loads the memory behind the last finished stretch and
edits on from there, as if nothing had happened.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wise.edits import Edit
from wise.lab.eval.candidates import OpenEditor
from wise.lab.eval.checkpoint import Checkpoint
from wise.lab.eval.peak_memory import peak_memory
from wise.memory.modules import execution_device

STRETCH = 50
"""Edits after which the memory is kept, where calls are smaller than that."""
MEMORY = "memory-"
PART = "edits/"


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What became of the edits."""

    failed: tuple[str, ...]
    """Ids of edits that did not verify when they were made, or were lost to a later one."""
    seconds: float
    """Wall time of editing; measuring the base once beforehand is not in it."""
    cpu_seconds: float
    stored_bytes: int
    """What must be kept beside the base."""
    peak_bytes: int | None
    """The most memory that a call held above what was held before; None where the system does not say."""
    preparing_seconds: float
    """Wall time of what an editor computes once per base, before its first edit."""


class Stream:
    """Applies edits to one model, up to where it is asked to."""

    def __init__(
        self,
        opened: Callable[[Path | None], OpenEditor],
        edits: Sequence[Edit],
        *,
        checkpoint: Checkpoint,
        folder: Path | None = None,
    ) -> None:
        """opened: the editor with what it saved in a folder, or, for None, with nothing edited.

        folder: where the memory is kept, beside the file of `checkpoint`.
        """
        self.edits = edits
        self.checkpoint = checkpoint
        self.folder = folder
        self.reports: list[dict[str, Any]] = []
        self.done = 0
        self.preparing = 0.0
        reached = max((int(name) for name in checkpoint.finished(PART)), default=0)
        self.subject = opened(folder / f"{MEMORY}{reached}" if folder is not None and reached else None)

    def prepare(self) -> None:
        """Refuses what could not be applied, the last edit too, before the first is. Then does what the editor needs
        once per base. Raises EditError."""
        begun = time.perf_counter()
        if not self.subject.edits:
            self.subject.validate(self.edits)
        self.subject.prepare()
        self.preparing = time.perf_counter() - begun

    def advance(self, end: int, *, batch: int | None = None) -> None:
        """Applies the edits up to number `end`, `batch` of them a call; None makes one call of all."""
        batch = batch or end - self.done
        calls = [range(start, min(start + batch, end)) for start in range(self.done, end, batch)]
        while calls:
            stretch = [calls.pop(0)]
            while calls and calls[0].stop - stretch[0].start <= STRETCH:
                stretch.append(calls.pop(0))
            last = stretch[-1].stop

            def apply(stretch: Sequence[range] = stretch) -> list[dict[str, Any]]:
                reports = [self._call(call) for call in stretch]
                if self.folder is not None:
                    self.subject.save_pretrained(self.folder / f"{MEMORY}{stretch[-1].stop}")
                return reports

            self.reports += self.checkpoint.part(f"{PART}{last}", apply)
            self._forget(self.done)
            self.done = last
            self._shown(last)

    @property
    def result(self) -> Streamed:
        """What became of the edits so far."""
        return Streamed(
            failed=tuple(i for report in self.reports for i in report["failed"]),
            seconds=sum(report["seconds"] for report in self.reports),
            cpu_seconds=sum(report["cpu_seconds"] for report in self.reports),
            stored_bytes=self.reports[-1]["stored_bytes"] if self.reports else 0,
            peak_bytes=max((r["peak_bytes"] for r in self.reports if r["peak_bytes"] is not None), default=None),
            preparing_seconds=self.reports[0]["preparing_seconds"] if self.reports else 0.0,
        )

    def _call(self, call: range) -> dict[str, Any]:
        edits = self.edits[call.start : call.stop]
        with peak_memory(execution_device(self.subject.model)) as peak:
            report = self.subject.edit(edits, progress=lambda count: self._shown(call.start + count))
        return {
            "failed": [*report.failed, *report.dropped],
            "seconds": report.seconds,
            "cpu_seconds": report.cpu_seconds,
            "stored_bytes": self.subject.memory_bytes,
            "peak_bytes": peak.bytes,
            "preparing_seconds": self.preparing,
        }

    def _forget(self, reached: int) -> None:
        """Deletes the memory of an earlier stretch, now that the next one is kept."""
        if self.folder is not None and reached:
            shutil.rmtree(self.folder / f"{MEMORY}{reached}", ignore_errors=True)

    def _shown(self, done: int) -> None:
        if self.checkpoint.progress is not None:
            self.checkpoint.progress("edits", done, len(self.edits))
