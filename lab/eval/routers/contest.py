"""The comparison: one set of edits, one set of prompts, every router, and thresholds that are found alike for all.

Thresholds are split conformal (`conformal_threshold`): each router, over a memory of other edits and as many, scores
the negatives that are hard for that memory, and its threshold is the least that at most the stated share of them
reaches. What it is measured on has no record in common with that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.config import WiseConfig
from wise.edits import Record
from wise.errors import ConfigError, EditError
from wise.lab.editors.embedding import Embedder
from wise.lab.eval.routers.contenders import Known, Sliced, contenders, write_slots
from wise.lab.eval.routers.reading import Reading, read
from wise.lab.eval.routers.scorers import Scorer, Scores
from wise.lab.eval.routing.classes import MAX_TOKENS, RoutingClass, RoutingSet, build_routing_set
from wise.lab.eval.routing.intervals import conformal_threshold, share_interval
from wise.lab.eval.routing.metrics import auroc, false_route_rate
from wise.lab.eval.work import Progress
from wise.model import WiseModel, wrap
from wise.router.readers import RelationReader

HARD = ("same_relation", "same_subject", "near_duplicate")
"""Classes of negatives that thresholds are calibrated on, all prompts of them together."""
POSITIVES = ("edits", "paraphrases", "free_paraphrases", "prefixed")
AGAINST = "paraphrases"
"""The positives that negatives are told from."""
RUNNING_TEXT = "running_text"
POOL = 1000


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Which records are for what; no record is for two things."""

    measured: tuple[Record, ...]
    calibrating: tuple[Record, ...]
    """As many, whose edits make the memory that thresholds are found for."""
    pool: tuple[Record, ...]
    """Others, of which negatives are built in both."""


def make_rounds(records: Sequence[Record], *, edits: int, skip: int, calibrate_from: int | None) -> Rounds:
    """The records of a file, in its order: `edits` behind the first `skip`, and as many from `calibrate_from` on, which
    by default is right behind them.

    Raises EditError where there are too few, or one would be for two things.
    """
    start = skip + edits if calibrate_from is None else calibrate_from
    measured, calibrating = records[skip : skip + edits], records[start : start + edits]
    if len(measured) < edits or len(calibrating) < edits:
        raise EditError(
            f"{edits} records to measure from {skip} on and as many to calibrate on from {start} on were asked for, "
            f"and there are {len(records)}; ask for fewer edits"
        )
    if abs(start - skip) < edits:
        raise EditError(
            f"records to measure, {skip} to {skip + edits - 1}, and to calibrate on, {start} to {start + edits - 1}, "
            "overlap; calibrate on others"
        )
    used = {record.edit.prompt for record in (*measured, *calibrating)}
    pool = [record for record in records if record.edit.prompt not in used]
    return Rounds(measured=tuple(measured), calibrating=tuple(calibrating), pool=tuple(pool[:POOL]))


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What is asked beside the records, and at which rates."""

    rates: tuple[float, ...]
    """Shares of the hard negatives that may open a gate."""
    text: Sequence[str] | None = None
    """Running text; None for what ships with wise."""
    max_tokens: int = MAX_TOKENS
    """Of running text, and of long context."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Class:
    about: RoutingClass
    readings: tuple[Reading, ...]


def compare_routers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rounds: Rounds,
    ground: Ground,
    *,
    embedder: Embedder | None,
    reader: RelationReader | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every router on the same ground, ready for JSON. The model is handed back as it was.

    Args:
        embedder: sentence embeddings; None leaves them out.
        reader: what the hybrid router compares questions with; None takes what `wise.wrap` does.

    Raises ConfigError for a rate that is none, where no edit holds in slots, where there is no paraphrase or no hard
    negative, or where the reader is not to be had; and EditError for edits that the model cannot take.
    """
    begun = time.process_time()
    sets = [[record.edit for record in part] for part in (rounds.calibrating, rounds.measured)]
    sliced = write_slots(model, tokenizer, sets, seed=ground.seed, progress=progress)
    known = Known(sliced=sliced, embedder=embedder)
    wrapped = wrap(model, tokenizer, WiseConfig(mode="hybrid", seed=ground.seed), reader=reader)
    try:
        thresholds = _calibrated(wrapped, rounds, ground, known, progress)
        prompts = _routing_set(wrapped, rounds.measured, rounds, ground)
        positives = _read(wrapped, [c for c in prompts.positives if c.name in POSITIVES], sliced, progress)
        if AGAINST not in {each.about.name for each in positives}:
            raise ConfigError(f"no negative can be told from {AGAINST}: {prompts.skipped[f'positives.{AGAINST}']}")
        negatives = _read(wrapped, prompts.negatives, sliced, progress)
        found = contenders(wrapped, sliced.memories[1], known)
        rows = []
        for name, scorer in found.items():
            rows.append(_measured(name, scorer, positives, negatives, thresholds[name], ground.seed))
            if progress is not None:
                progress("routers", len(rows), len(found))
    finally:
        wrapped.unwrap()
    return {
        "edits": len(rounds.measured),
        "not_held_in_slots": len(rounds.measured) - sum(map(len, sliced.memories[1].slots)),
        "calibrated_on": {"edits": len(rounds.calibrating), "classes": list(HARD)},
        "counts": {c.about.name: sum(r.routed for r in c.readings) for c in (*positives, *negatives)},
        "routers": rows,
        "cpu_seconds": time.process_time() - begun,
    }


def _routing_set(model: WiseModel, records: Sequence[Record], rounds: Rounds, ground: Ground) -> RoutingSet:
    return build_routing_set(
        records,
        live=[record.edit for record in records],
        pool=rounds.pool,
        encoder=model.encoder,
        text=ground.text,
        seed=ground.seed,
        max_tokens=ground.max_tokens,
    )


def _read(
    model: WiseModel, classes: Sequence[RoutingClass], sliced: Sliced, progress: Progress | None
) -> list[_Class]:
    blocks = (model.projection, sliced.place)
    found = []
    for each in classes:
        texts, every = [prompt.text for prompt in each.prompts], each.unit == "token"
        readings = read(model, blocks, texts, every_token=every, name=f"reading {each.name}", progress=progress)
        found.append(_Class(about=each, readings=tuple(readings)))
    return found


def _calibrated(
    model: WiseModel, rounds: Rounds, ground: Ground, known: Known, progress: Progress | None
) -> dict[str, dict[float, float]]:
    """Router -> rate -> threshold; inf where there are too few negatives for that rate."""
    prompts = _routing_set(model, rounds.calibrating, rounds, ground)
    hard = _read(model, [c for c in prompts.negatives if c.name in HARD], known.sliced, progress)
    if not hard:
        raise ConfigError(f"no threshold can be calibrated: none of {', '.join(HARD)} could be built of these records")
    readings = [reading for each in hard for reading in each.readings]
    return {
        name: {rate: conformal_threshold(values, rate) for rate in ground.rates}
        for name, scorer in contenders(model, known.sliced.memories[0], known).items()
        for values in [scorer.scores(readings).value]
    }


def _measured(
    name: str,
    scorer: Scorer,
    positives: Sequence[_Class],
    negatives: Sequence[_Class],
    thresholds: Mapping[float, float],
    seed: int,
) -> dict[str, Any]:
    found: dict[str, Scores] = {}
    microseconds = None
    for each in (*positives, *negatives):
        begun = time.process_time()
        found[each.about.name] = scored = scorer.scores(each.readings)
        if each.about.name == RUNNING_TEXT:
            microseconds = 1e6 * (time.process_time() - begun) / len(scored.value)
    right = {each.about.name: _right(each, found[each.about.name], scorer) for each in positives}
    against = found[AGAINST].value
    gates = [
        _gate(rate, threshold, positives, negatives, found, right, seed) for rate, threshold in thresholds.items()
    ]
    return {
        "router": name,
        "tells_apart": "slots" if any(len(ids) > 1 for ids in scorer.candidates) else "edits",
        "auroc": {each.about.name: auroc(against, found[each.about.name].value) for each in negatives},
        "top1": {name: _share(hits) for name, hits in right.items()},
        "microseconds_per_token": microseconds,
        "gates": gates,
    }


def _right(each: _Class, scores: Scores, scorer: Scorer) -> Tensor:
    """`[n]` bool: the best candidate stands for the edit that is asked for."""
    pairs = zip(each.about.prompts, scores.best.tolist(), strict=True)
    return torch.tensor([prompt.record in scorer.candidates[best] for prompt, best in pairs])


def _gate(
    rate: float,
    threshold: float,
    positives: Sequence[_Class],
    negatives: Sequence[_Class],
    found: Mapping[str, Scores],
    right: Mapping[str, Tensor],
    seed: int,
) -> dict[str, Any]:
    """What opens at one threshold: of positives, prompts whose gate opens for the right candidate."""
    opened = {name: scores.value.double() >= threshold for name, scores in found.items()}
    reached = {each.about.name: opened[each.about.name] & right[each.about.name] for each in positives}
    hard = torch.cat([opened[each.about.name] for each in negatives if each.about.name in HARD])
    records = {each.about.name: [prompt.record for prompt in each.about.prompts] for each in positives}
    text = found.get(RUNNING_TEXT)
    return {
        "promised": rate,
        "threshold": threshold if math.isfinite(threshold) else None,
        "hard_opened": _share(hard),
        "reached": {name: _share(hits) for name, hits in reached.items()},
        "reached_ci": {name: share_interval(hits, records[name], seed=seed) for name, hits in reached.items()},
        "opened": {each.about.name: _share(opened[each.about.name]) for each in negatives},
        "false_routes_per_million": None if text is None else false_route_rate(text.value, threshold),
    }


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
