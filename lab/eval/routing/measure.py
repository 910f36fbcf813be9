"""All figures of a router: how often it opens its gate, how well its scores separate, and its ceiling.

Every figure is made of the evidence at tokens (`wise.memory.side_memory.Evidence`), so it says what any threshold
would give, except `opened`, false routes and flips, which are those of the thresholds in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from wise.edits import Record
from wise.errors import ConfigError
from wise.lab.eval.intervals import share_interval
from wise.lab.eval.prompting import select
from wise.lab.eval.routing.classes import PER_CLASS, RoutingClass, RoutingSet
from wise.lab.eval.routing.material import evenly
from wise.lab.eval.routing.oracle import measure_oracle, slots_of
from wise.lab.eval.routing.scores import count_flips, score_prompts, served
from wise.lab.eval.routing.separation import BINS, ScoredClass, negative_figures, positive_figures
from wise.model import WiseModel
from wise.progress import Progress, silent

EDITS, PARAPHRASES, NEIGHBOURS, RUNNING_TEXT = "edits", "paraphrases", "neighbours", "running_text"
ANSWER_TOKENS = 32
"""Tokens that an answer may have whose changes of speaker are counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Routing:
    """What `measure_routing` found. A figure that nothing was asked for is None."""

    classes: Mapping[str, Mapping[str, Any]]
    """Class of negatives -> its figures (`separation.negative_figures`)."""
    positives: Mapping[str, Mapping[str, Any]]
    """Class of positives -> its figures (`separation.positive_figures`)."""
    skipped: Mapping[str, str]
    scored_against: str
    """The class of positives that negatives are measured against."""
    live_edits: int
    not_live: int
    """Records whose edit is not live, and so cannot be routed to; no positive of theirs counts."""
    false_routes_per_million: float | None
    """Tokens of running text at which a gate opens."""
    false_routes_per_million_ci: list[float] | None
    running_text_tokens: int
    slot_top1: float
    """Share of the positives at which the slot, or the edit, that comes nearest is the right one, open or not."""
    edit_top1: float | None
    flips: float | None
    """Mean changes of speaker within one answer, over edits and paraphrases."""
    flips_by: Mapping[str, float | None]
    oracle: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bins": list(BINS)}


def measure_routing(
    model: WiseModel, routing_set: RoutingSet, records: Sequence[Record], *, progress: Progress = silent, seed: int = 0
) -> Routing:
    """Measures the router in place on the classes of `routing_set`, and on the edits of `records`.

    Raises ConfigError where no edit is live, or no positive asks for one that is.
    """
    served(model)
    slots = slots_of(model)
    skipped = dict(routing_set.skipped)
    positives = _scored(model, routing_set.positives, "positives", slots, skipped, progress)
    scored_against = next((name for name in (PARAPHRASES, EDITS) if name in positives), None)
    if scored_against is None:
        raise ConfigError(
            f"none of the routing set's edits and paraphrases asks for one of the {len(slots)} live edits: build the "
            "set from the records that the model was edited with"
        )
    negatives = _scored(model, routing_set.negatives, "negatives", None, skipped, progress)
    against, edits = positives[scored_against], positives.get(EDITS)
    keys = model.wise_config.mode != "merge"
    figures = {name: positive_figures(each, slots, keys=keys, seed=seed) for name, each in positives.items()}
    flips, flips_by = _flips(model, records, slots, progress)
    return Routing(
        classes={name: negative_figures(each, against, edits, seed=seed) for name, each in negatives.items()},
        positives=figures,
        skipped=skipped,
        scored_against=scored_against,
        live_edits=sum(record.edit.id in slots for record in records),
        not_live=sum(record.edit.id not in slots for record in records),
        slot_top1=figures[scored_against]["slot_top1"],
        edit_top1=figures[scored_against]["edit_top1"],
        flips=flips,
        flips_by=flips_by,
        oracle=measure_oracle(model, records, progress=progress),
        **_false_routes(negatives.get(RUNNING_TEXT), seed),
    )


def _scored(
    model: WiseModel,
    classes: Sequence[RoutingClass],
    side: str,
    live: Mapping[str, int] | None,
    skipped: dict[str, str],
    progress: Progress,
) -> dict[str, ScoredClass]:
    """The evidence on each class that has prompts; of positives those count that ask for an edit in `live`."""
    results = {}
    for each in classes:
        prompts = [prompt for prompt in each.prompts if live is None or prompt.record in live]
        if not prompts:
            skipped[f"{side}.{each.name}"] = f"none of its {len(each.prompts)} prompts asks for a live edit"
            continue
        scored = score_prompts(
            model,
            [prompt.text for prompt in prompts],
            name=f"routing.scores.{side}.{each.name}",
            every_token=each.unit == "token",
            progress=progress,
        )
        results[each.name] = ScoredClass.of(each, prompts, scored)
    return results


def _false_routes(text: ScoredClass | None, seed: int) -> dict[str, Any]:
    if text is None:
        return {"false_routes_per_million": None, "false_routes_per_million_ci": None, "running_text_tokens": 0}
    low, high = share_interval(text.opened, text.clusters, seed=seed)
    return {
        "false_routes_per_million": 1e6 * float(text.opened.double().mean()),
        "false_routes_per_million_ci": [1e6 * low, 1e6 * high],
        "running_text_tokens": text.values.numel(),
    }


def _flips(
    model: WiseModel, records: Sequence[Record], live: Mapping[str, int], progress: Progress
) -> tuple[float | None, dict[str, float | None]]:
    """Mean changes of speaker over edits and paraphrases together, and by kind of prompt."""
    tested = select(model, records).tested
    live_tests = [each for each in tested if each.record.edit.id in live]
    prompts = {
        EDITS: [each.record.edit.prompt for each in live_tests],
        PARAPHRASES: [prompt for each in live_tests for prompt in each.paraphrases],
        NEIGHBOURS: [prompt for each in tested for prompt in each.neighbours],
    }
    counts = {
        kind: count_flips(model, _some(texts), tokens=ANSWER_TOKENS, name=f"routing.flips.{kind}", progress=progress)
        for kind, texts in prompts.items()
    }
    return _mean(counts[EDITS] + counts[PARAPHRASES]), {kind: _mean(entry) for kind, entry in counts.items()}


def _some(texts: Sequence[str]) -> list[str]:
    """As many as a class of prompts has at most, evenly over all."""
    return [texts[place] for place in sorted(evenly(range(len(texts)))[:PER_CLASS])]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
