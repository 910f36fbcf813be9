"""One run: applies a stream of edits with one editor and measures the result.

What decides the figures is written down before the first of them is taken (`Run.identity`). With a folder to
keep its parts in, a run that was interrupted goes on where it stopped, and ends with the same figures.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.architectures import locate
from wise.config import WiseConfig
from wise.edits import Record
from wise.errors import ConfigError
from wise.lab.eval.candidates import Learning, OpenEditor, all_settings, find_editor, open_editor
from wise.lab.eval.checkpoint import Checkpoint, CheckpointFile, Progress, sole_user
from wise.lab.eval.environment import code_digest, environment
from wise.lab.eval.quality import Quality, measure_quality
from wise.lab.eval.results_file import SCHEMA
from wise.lab.eval.routing.classes import build_routing_set
from wise.lab.eval.routing.measure import Routing, measure_routing
from wise.lab.eval.stream import Stream
from wise.memory.fingerprint import fingerprint, tokenizer_digest
from wise.memory.modules import execution_device
from wise.model import WiseModel

CHECKPOINT_FILE = "checkpoint.jsonl"
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
    references: Mapping[str, Sequence[str]] | None = None
    """Object -> texts about it: what consistency compares with."""


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
    routing: Routing | None = None
    retention: tuple[Mapping[str, float | None], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    """Settings, model and machine of the run."""
    started: str = ""
    """ISO 8601, UTC: of the first of its processes, where a run was interrupted."""
    measuring_seconds: float = 0.0
    stored_bytes: int = 0
    """What must be kept beside the base for all edits."""
    peak_bytes: int | None = None
    """The most memory that editing held above what was held before."""
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
            "peak_editing_bytes": self.peak_bytes,
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
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Edits a model with the edits of `records`, in their order, and measures all of them at the end.

    The model is handed back as it was.

    Args:
        editor: a name in `EDITORS`.
        settings: of the editor: fields of `WiseConfig`, or of its own `Config`.
        batch: edits per call, as a stream would bring them; None is what the editor's paper does.
        scope: what else is measured; None measures the records alone.
        learning: what editors of the literature may learn from.
        folder: where finished parts are kept; a run found there goes on. The caller deletes it in the end.
        progress: called with what is being done, how much of it is through, and of how much.

    Raises ConfigError for an unknown editor, a setting out of range, or a folder with another run; and EditError
    for an edit or a test prompt that the model cannot take.
    """
    scope, learning, settings = scope or Scope(), learning or Learning(), settings or {}
    _check(records, batch, scope, editor)
    batch = batch or find_editor(editor).batch
    config = all_settings(editor, settings)
    with sole_user(folder):
        begun = time.perf_counter()
        file = CheckpointFile(folder / CHECKPOINT_FILE) if folder is not None else None
        checkpoint = Checkpoint(file, progress)

        def opened(saved: Path | None) -> OpenEditor:
            return open_editor(
                editor, model, tokenizer, settings, learning=learning, saved=saved, progress=progress
            )

        stream = Stream(opened, [record.edit for record in records], checkpoint=checkpoint, folder=folder)
        subject = stream.subject
        try:
            about = _about(subject, tokenizer, config)
            identity = _identity(editor, records, batch, scope, learning, about)
            _check_same(identity, checkpoint.part("run", lambda: identity), folder)
            started = checkpoint.part("started", lambda: datetime.now(UTC).isoformat(timespec="seconds"))
            retention = _stream(stream, records, batch, scope, checkpoint) if find_editor(editor).edits else []
            quality = measure_quality(
                subject,
                records,
                texts=scope.texts,
                references=scope.references,
                seed=config["seed"],
                checkpoint=checkpoint,
            )
            routing = _routing(subject, records, scope, checkpoint) if scope.routing else None
        finally:
            subject.unwrap()
        result = stream.result
        return Evaluation(
            editor=editor,
            edits=len(records),
            quality=quality,
            failed=result.failed,
            seconds=result.seconds,
            cpu_seconds=result.cpu_seconds,
            routing=routing,
            retention=tuple(retention),
            about=about,
            started=started,
            measuring_seconds=(file.seconds if file else time.perf_counter() - begun) - result.seconds,
            stored_bytes=result.stored_bytes,
            peak_bytes=result.peak_bytes,
            preparing_seconds=result.preparing_seconds,
        )


def stops(edits: int) -> list[int]:
    """Where retention is measured: 1, 2, 5, 10, 20, ... and the last edit."""
    found = {edits}
    power = 1
    while power <= edits:
        found.update(power * stop for stop in STOPS if power * stop <= edits)
        power *= 10
    return sorted(found)


def digest(values: Sequence[Any]) -> str:
    """SHA-256 over JSON values, in hex."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _check(records: Sequence[Record], batch: int | None, scope: Scope, editor: str) -> None:
    chosen = find_editor(editor)
    if not records:
        raise ConfigError("no record was given: expected at least one")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch={batch}: expected a whole number from 1, or None")
    if scope.routing and chosen.kind != "memory":
        raise ConfigError(f"routing measures the router of a side memory, and the editor {editor!r} has none")
    if scope.retention and not chosen.edits:
        raise ConfigError(f"retention measures how edits hold, and the editor {editor!r} makes none; leave it out")


def _about(subject: OpenEditor, tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any]) -> dict[str, Any]:
    model = subject.model
    projection = subject.projection if isinstance(subject, WiseModel) else locate(model, WiseConfig())
    with subject.disabled():
        base = fingerprint(model, projection)
    return {
        "seed": config["seed"],
        "config": dict(config),
        "model": {
            "type": base.model_type,
            "layer": projection.layer if isinstance(subject, WiseModel) else None,
            "parameters": base.parameters,
            "depth": base.depth,
            "dtype": base.dtype,
            "fingerprint": base.digest,
            "tokenizer": tokenizer_digest(tokenizer),
            "attention": model.config._attn_implementation,
        },
        "environment": environment(execution_device(model)),
    }


def _identity(
    editor: str,
    records: Sequence[Record],
    batch: int | None,
    scope: Scope,
    learning: Learning,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """All that decides the figures of a run. Counting threads is part of it: sums in another order differ."""
    return {
        "schema": SCHEMA,
        "editor": editor,
        "records": digest([record.to_dict() for record in records]),
        "batch": batch,
        "routing": scope.routing,
        "retention": scope.retention,
        "pool": digest([record.to_dict() for record in scope.pool]),
        "texts": digest([scope.texts]),
        "references": digest([scope.references]),
        "corpus": digest([learning.corpus]),
        "training": digest([record.to_dict() for record in learning.training]),
        "code": code_digest(),
        **about,
    }


def _check_same(identity: Mapping[str, Any], begun: Mapping[str, Any], folder: Path | None) -> None:
    other = [name for name in identity if identity[name] != begun.get(name)]
    if other:
        raise ConfigError(
            f"{folder}: holds an unfinished run that differs in {', '.join(other)}; run it to its end with the "
            "same options, or delete the folder to begin anew"
        )


def _stream(
    stream: Stream, records: Sequence[Record], batch: int | None, scope: Scope, checkpoint: Checkpoint
) -> list[dict[str, float | None]]:
    """Applies all edits; where wanted, measures at each stop how those so far hold."""
    stream.prepare()
    if not scope.retention:
        stream.advance(len(records), batch=batch)
        return []
    bare = [Record(edit=record.edit, source=record.source) for record in records]
    found: list[dict[str, float | None]] = []
    for stop in stops(len(records)):
        stream.advance(stop, batch=batch)
        quality = measure_quality(stream.subject, bare[:stop], checkpoint=checkpoint.within(f"retention/{stop}"))
        oldest = {record.edit.id for record in records[: max(1, len(records) // 10)]}
        old = [outcome.generated for outcome in quality.outcomes if outcome.record in oldest]
        found.append(
            {
                "edits": stop,
                "reliability": quality.generated["reliability"],
                "teacher_forced": quality.teacher_forced["reliability"],
                "oldest": fmean(old) if old else None,
            }
        )
    return found


def _routing(wrapped: OpenEditor, records: Sequence[Record], scope: Scope, checkpoint: Checkpoint) -> Routing | None:
    """None where no edit held: there is no router to measure then, and that is a result too."""
    if not isinstance(wrapped, WiseModel) or not wrapped.edits:
        return None
    seed = wrapped.wise_config.seed
    ground = build_routing_set(
        records,
        live=wrapped.edits,
        pool=scope.pool,
        encoder=wrapped.encoder,
        text=scope.texts,
        seed=seed,
    )
    return measure_routing(wrapped, ground, records, checkpoint=checkpoint, seed=seed)
