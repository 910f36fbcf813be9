"""The ways of editing that can be compared on the same records, and one run of one of them.

To add one, add a row to `EDITORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.config import WiseConfig
from wise.edits import Record
from wise.errors import ConfigError, did_you_mean
from wise.eval.quality import Progress, Quality, measure_quality
from wise.model import WiseModel, wrap
from wise.training.report import EditReport


@dataclass(frozen=True, kw_only=True)
class Editor:
    """One way of editing."""

    about: str
    settings: Mapping[str, Any]
    """Fields of `WiseConfig` that make it what it is."""
    edits: bool = True
    """False for the control, which is measured without having been edited."""


EDITORS: dict[str, Editor] = {
    "wise-merge": Editor(
        about="WISE-Merge: all edits in one side memory, gated by its own activation",
        settings={"mode": "merge"},
    ),
    "wise-retrieve": Editor(
        about="WISE-Retrieve: one side memory per slot; the nearest edit key names the slot",
        settings={"mode": "retrieve"},
    ),
    "none": Editor(about="the base, not edited: the control", settings={}, edits=False),
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One editor on one stream of edits, measured after the last of them."""

    editor: str
    edits: int
    """Edits that were asked for."""
    quality: Quality
    failed: tuple[str, ...]
    """Ids of edits that did not verify when they were made, or were lost to a later one."""
    seconds: float
    """Wall time of editing, all edits together; measuring the base once beforehand is not in it."""
    cpu_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "editor": self.editor,
            "edits": self.edits,
            "generated": self.quality.generated,
            "teacher_forced": self.quality.teacher_forced,
            "cpu_seconds_per_edit": self.cpu_seconds / self.edits,
            "seconds_per_edit": self.seconds / self.edits,
            "failed_edits": len(self.failed),
            "counts": self.quality.counts,
        }


def find_editor(name: str) -> Editor:
    """Raises ConfigError, naming the nearest, where there is none of this name."""
    if name not in EDITORS:
        raise ConfigError(f"editor {name!r} is not known; {did_you_mean(name, EDITORS)}")
    return EDITORS[name]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    *,
    editor: str,
    settings: Mapping[str, Any] | None = None,
    batch: int | None = None,
    edited: Callable[[int, int], None] | None = None,
    measured: Progress | None = None,
) -> Evaluation:
    """Edits a model with the edits of `records`, in their order, and measures all of them at the end.

    The model is handed back as it was.

    Args:
        editor: a name in `EDITORS`.
        settings: further fields of `WiseConfig`.
        batch: edits per call of `WiseModel.edit`, as a stream would bring them; None makes one call of all.
        edited: called with the number of edits that are through, and of all.
        measured: called with the number of prompts that are through, and of all.

    Raises ConfigError for an unknown editor or a setting out of range, and EditError for an edit or a test
    prompt that the model cannot take.
    """
    chosen = find_editor(editor)
    if not records:
        raise ConfigError("no record was given: expected at least one")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch={batch}: expected a whole number from 1, or None")
    wrapped = wrap(model, tokenizer, WiseConfig(**{**(settings or {}), **chosen.settings}))
    try:
        reports = _apply(wrapped, records, batch or len(records), edited) if chosen.edits else []
        quality = measure_quality(wrapped, records, progress=measured)
    finally:
        wrapped.unwrap()
    return Evaluation(
        editor=editor,
        edits=len(records),
        quality=quality,
        failed=tuple(i for report in reports for i in (*report.failed, *report.lost)),
        seconds=sum(report.seconds for report in reports),
        cpu_seconds=sum(report.cpu_seconds for report in reports),
    )


def _apply(
    model: WiseModel, records: Sequence[Record], batch: int, edited: Callable[[int, int], None] | None
) -> list[EditReport]:
    edits = [record.edit for record in records]
    reports = []
    for start in range(0, len(edits), batch):

        def through(count: int, start: int = start) -> None:
            if edited is not None:
                edited(start + count, len(edits))

        reports.append(model.edit(edits[start : start + batch], progress=through))
    return reports
