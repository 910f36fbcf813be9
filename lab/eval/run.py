"""One run: applies a stream of edits with one editor and measures the result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.architectures import locate
from wise.config import WiseConfig
from wise.edits import Edit, Record
from wise.errors import ConfigError
from wise.lab.eval.candidates import Learning, all_settings, find_editor, open_editor
from wise.lab.eval.environment import base_description, environment
from wise.lab.eval.prompting import EditedModel
from wise.lab.eval.quality import Quality, measure_quality
from wise.lab.eval.results_file import SCHEMA
from wise.lab.eval.routing.classes import build_routing_set
from wise.lab.eval.routing.measure import Routing, measure_routing
from wise.memory.fingerprint import fingerprint, tokenizer_digest
from wise.memory.modules import execution_device
from wise.model import WiseModel
from wise.progress import Progress, silent
from wise.training.report import EditReport

STOPS = (1, 2, 5)
"""Retention is measured after so many edits, times every power of ten."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is measured beyond the records themselves."""

    routing: bool = False
    pool: Sequence[Record] = ()
    """Further records, not edited, that negatives of the routing classes are built from."""
    retention: bool = False
    """Reliability of all edits so far, at stops along the stream; edits are then applied from stop to stop."""
    texts: Sequence[str] | None = None
    """Running text: perplexity, where it is given, and false routes, where None takes what ships with wise."""

    def check(self, editor: str) -> None:
        """Raises ConfigError for an unknown editor, or one of which this cannot be measured."""
        spec = find_editor(editor)
        if self.routing and spec.kind != "memory":
            raise ConfigError(f"routing measures the router of a side memory, and the editor {editor!r} has none")
        if self.retention and not spec.edits:
            raise ConfigError(f"retention measures how edits hold, and the editor {editor!r} makes none; leave it out")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One editor on one stream of edits, measured after the last of them."""

    editor: str
    edits: int
    quality: Quality
    failed: tuple[str, ...]
    """Ids of edits that did not verify when they were made, or were lost to a later one."""
    seconds: float
    """Wall time of editing, all edits together; measuring the base once beforehand is not in it."""
    cpu_seconds: float
    routing: Routing | None = None
    retention: tuple[Mapping[str, float | None], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    """ISO 8601, UTC."""
    measuring_seconds: float = 0.0
    stored_bytes: int = 0
    """What must be kept beside the base for all edits."""
    preparing_seconds: float = 0.0
    """Wall time of what the editor computes once per base; in no figure per edit."""

    def to_dict(self, *, outcomes: bool = False) -> dict[str, Any]:
        """The figures, ready for JSON; with the outcome of every prompt where asked for."""
        quality = self.quality.to_dict()
        if not outcomes:
            del quality["outcomes"]
        return {
            "schema": SCHEMA,
            "editor": self.editor,
            "edits": self.edits,
            **quality,
            "routing": None if self.routing is None else self.routing.to_dict(),
            "retention": [dict(stop) for stop in self.retention],
            "failed_edits": len(self.failed),
            "failed": list(self.failed),
            **self.about,
            "cpu_seconds_per_edit": self.cpu_seconds / self.edits,
            "seconds_per_edit": self.seconds / self.edits,
            "stored_bytes_per_edit": self.stored_bytes / self.edits,
            "timing": {
                "started": self.started,
                "editing_seconds": self.seconds,
                "measuring_seconds": self.measuring_seconds,
                "preparing_seconds": self.preparing_seconds,
            },
        }


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    *,
    editor: str,
    settings: Mapping[str, Any] | None = None,
    batch: int | None = None,
    scope: Scope | None = None,
    learning: Learning | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Edits a model with the edits of `records`, in their order, and measures all of them at the end. The model is
    handed back as it was.

    settings: of the editor: fields of `WiseConfig`, or of its own `Config`. batch: edits per call, as a stream would
    bring them; None is what the editor's paper does. scope: what else is measured. learning: what editors may learn
    from.

    Raises ConfigError for an unknown editor or a setting out of range; and EditError for an edit or a test prompt that
    the model cannot take.
    """
    scope, learning, settings = scope or Scope(), learning or Learning(), settings or {}
    spec = find_editor(editor)
    scope.check(editor)
    config = all_settings(editor, settings)
    started_at, start = datetime.now(UTC), time.perf_counter()
    edited_model = open_editor(editor, model, tokenizer, settings, learning=learning, progress=progress)
    stream = EditStream(edited_model, [record.edit for record in records], batch or spec.batch, progress)
    try:
        about = _about(edited_model, tokenizer, config)
        retention = _stream(stream, records, scope) if spec.edits else []
        quality = measure_quality(edited_model, records, texts=scope.texts, seed=config["seed"], progress=progress)
        routing = _routing(edited_model, records, scope, progress) if scope.routing else None
        return Evaluation(
            editor=editor,
            edits=len(records),
            quality=quality,
            failed=tuple(i for report in stream.reports for i in (*report.failed, *report.dropped)),
            seconds=stream.seconds,
            cpu_seconds=sum(report.cpu_seconds for report in stream.reports),
            routing=routing,
            retention=tuple(retention),
            about=about,
            started=started_at.isoformat(timespec="seconds"),
            measuring_seconds=time.perf_counter() - start - stream.seconds - stream.preparing_seconds,
            stored_bytes=edited_model.memory_bytes if edited_model.edits else 0,
            preparing_seconds=stream.preparing_seconds,
        )
    finally:
        edited_model.unwrap()


class EditStream:
    """Applies edits to one model, up to where it is asked to."""

    def __init__(self, edited_model: EditedModel, edits: Sequence[Edit], batch: int | None, progress: Progress) -> None:
        """batch: edits of a call; None makes one call of all that are asked for."""
        self.edited_model, self.edits, self.batch, self.progress = edited_model, edits, batch, progress
        self.reports: list[EditReport] = []
        self.done = 0
        self.preparing_seconds = 0.0

    def prepare(self) -> None:
        """Refuses what could not be applied, the last edit too, before the first is. Then does what the editor needs
        once per base. Raises EditError."""
        start = time.perf_counter()
        self.edited_model.validate(self.edits)
        self.edited_model.prepare()
        self.preparing_seconds = time.perf_counter() - start

    def advance(self, end: int) -> None:
        while self.done < end:
            start, stop = self.done, min(self.done + (self.batch or end), end)
            self.reports.append(self.edited_model.edit(self.edits[start:stop], progress=self._part))
            self.done = stop
            self.progress("edits", stop, len(self.edits))

    def _part(self, count: int) -> None:
        self.progress("edits", self.done + count, len(self.edits))

    @property
    def seconds(self) -> float:
        """Wall time of editing; measuring the base once beforehand is not in it."""
        return sum(report.seconds for report in self.reports)


def stops(edits: int) -> list[int]:
    """Where retention is measured: 1, 2, 5, 10, 20, ... and the last edit."""
    sizes = (stop * 10**power for power in range(len(str(edits))) for stop in STOPS)
    return sorted({edits, *(count for count in sizes if count <= edits)})


def _about(edited_model: EditedModel, tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any]) -> dict[str, Any]:
    model = edited_model.model
    target_module = edited_model.target_module if isinstance(edited_model, WiseModel) else locate(model, WiseConfig())
    with edited_model.disabled():
        base = fingerprint(model, target_module)
    return {
        "seed": config["seed"],
        "config": dict(config),
        "model": base_description(base)
        | {
            "layer": target_module.layer if isinstance(edited_model, WiseModel) else None,
            "tokenizer": tokenizer_digest(tokenizer),
            "attention": model.config._attn_implementation,
        },
        "environment": environment(execution_device(model)),
    }


def _stream(stream: EditStream, records: Sequence[Record], scope: Scope) -> list[dict[str, float | None]]:
    """Applies all edits; where wanted, measures at each stop how those so far hold."""
    stream.prepare()
    if not scope.retention:
        stream.advance(len(records))
        return []
    bare = [Record(edit=record.edit, source=record.source) for record in records]
    results: list[dict[str, float | None]] = []
    for stop in stops(len(records)):
        stream.advance(stop)
        quality = measure_quality(stream.edited_model, bare[:stop])
        oldest = {record.edit.id for record in records[: max(1, len(records) // 10)]}
        old = [outcome.generated for outcome in quality.outcomes if outcome.record in oldest]
        results.append(
            {
                "edits": stop,
                "reliability": quality.generated["reliability"],
                "teacher_forced": quality.teacher_forced["reliability"],
                "oldest": fmean(old) if old else None,
            }
        )
    return results


def _routing(wrapped: EditedModel, records: Sequence[Record], scope: Scope, progress: Progress) -> Routing | None:
    """None where no edit held: there is no router to measure then, and that is a result too."""
    if not isinstance(wrapped, WiseModel) or not wrapped.edits:
        return None
    seed = wrapped.wise_config.seed
    routing_set = build_routing_set(
        records, live=wrapped.edits, pool=scope.pool, encoder=wrapped.encoder, text=scope.texts, seed=seed
    )
    return measure_routing(wrapped, routing_set, records, progress=progress, seed=seed)
