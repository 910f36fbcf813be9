"""Editing at one layer after another: the evidence on which a layer is recommended.

Where a trace finds a fact says little about where editing it works (Hase et al. 2023, "Does Localization Inform
Editing?"). So the layer is chosen by edits that were made and measured there; the trace stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.edits import Record
from wise.errors import ConfigError
from wise.lab.eval.checkpoint import Checkpoint, Progress
from wise.lab.eval.run import evaluate
from wise.lab.locate.location import Location
from wise.lab.locate.roles import LAST, LAST_SUBJECT, ROLES
from wise.lab.locate.sites import FFN, STATE, check_layers
from wise.lab.locate.statistics import spearman

EDITOR = "wise-retrieve"
FIGURES = ("reliability", "generalization", "locality")
"""Generated measures whose mean is an editing success."""
TRACED = {
    "state at the last subject token": (STATE, LAST_SUBJECT),
    "feed-forward output at the last subject token": (FFN, LAST_SUBJECT),
    "state at the last token": (STATE, LAST),
}
"""Effects that editing is compared with; the first is the one that papers localise by."""
HEADLINE, FEED_FORWARD, AT_LAST = TRACED


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What edits at one layer gave."""

    layer: int
    reliability: float | None
    generalization: float | None
    locality: float | None
    failed: int
    """Edits that did not verify."""
    cpu_seconds_per_edit: float
    effects: Mapping[str, float | None]
    """Name in `TRACED` -> effect at this layer."""

    @property
    def measured(self) -> dict[str, float]:
        """Generated reliability, generalization and locality, those of them that were measured."""
        figures = {measure: getattr(self, measure) for measure in FIGURES}
        return {measure: figure for measure, figure in figures.items() if figure is not None}

    @property
    def success(self) -> float:
        """The mean of what was measured."""
        return fmean(self.measured.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            **{measure: getattr(self, measure) for measure in FIGURES},
            "success": self.success,
            "failed": self.failed,
            "cpu_seconds_per_edit": self.cpu_seconds_per_edit,
            "trace_effect": self.effects[HEADLINE],
            "trace_effect_ffn": self.effects[FEED_FORWARD],
            "trace_effect_last_token": self.effects[AT_LAST],
        }


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The layers edited, and the one to edit."""

    results: tuple[LayerResult, ...]
    records: Mapping[str, Any]
    """Which records were edited."""
    peak: int
    """The layer at which the trace is strongest, of all layers."""
    plateau: tuple[int, ...] = ()
    """Other layers whose effect lies within the interval of the strongest: the trace does not tell them apart."""

    @property
    def best(self) -> LayerResult:
        """The best mean; where equal, fewer failed edits, then the higher layer: its edits run fewer blocks."""
        return max(self.results, key=lambda result: (result.success, -result.failed, result.layer))

    def correlation(self, name: str = HEADLINE) -> float | None:
        """Spearman's, over the layers, of an effect in `TRACED` and editing success; None where there is none."""
        pairs = [(result.effects[name], result.success) for result in self.results]
        known = [(effect, success) for effect, success in pairs if effect is not None]
        return spearman([effect for effect, _ in known], [success for _, success in known])

    def why(self) -> str:
        """The choice in words."""
        best, edits = self.best, self.records["count"]
        text = (
            f"Of {len(self.results)} layers edited, layer {best.layer} has the best {_mean_of([*best.measured])}, "
            f"{best.success:.3f} over {edits} edits"
        )
        rest = [result for result in self.results if result is not best]
        if rest:
            second = max(rest, key=lambda result: result.success)
            text += f"; layer {second.layer} is next, {best.success - second.success:.3f} behind"
        return f"{text}. {self._peak()} {self._agreement()}"

    def _peak(self) -> str:
        at = next((result for result in self.results if result.layer == self.peak), None)
        alike = f"; not told apart from it: {', '.join(map(str, self.plateau))}" if self.plateau else ""
        where = f"The trace is strongest at layer {self.peak} ({HEADLINE}{alike})"
        if at is None:
            return f"{where}, which was not edited."
        if at is self.best:
            return f"{where}, the same layer."
        return f"{where}, where editing is {self.best.success - at.success:.3f} worse."

    def _agreement(self) -> str:
        found = self.correlation()
        if found is None:
            return "Over so few layers, or equal ones, trace and success cannot be correlated."
        return (
            f"Over {len(self.results)} layers the rank correlation of trace effect and editing success is {found:.2f}; "
            "the choice rests on the edits alone."
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweep": [result.to_dict() for result in self.results],
            "sweep_records": dict(self.records),
            "recommendation": {
                "layer": self.best.layer,
                "why": self.why(),
                "correlation": self.correlation(),
                "correlations": {name: self.correlation(name) for name in TRACED},
                "trace_peak": self.peak,
                "trace_plateau": list(self.plateau),
            },
        }


def sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    location: Location,
    *,
    first: int = 0,
    layers: Sequence[int] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Sweep:
    """Edits the model at each layer with all of `records`, measures that, and hands it back as it was.

    The recommended layer is chosen on these records; measure what it is worth on others.

    Args:
        first: number in their file of the first record, which the result names.
        layers: the layers to edit; None takes all.

    Raises ConfigError for no records or a layer that there is not, and EditError for a record that the model cannot
    take.
    """
    checkpoint = checkpoint or Checkpoint()
    chosen = check_layers(layers, location.layers)
    if not records:
        raise ConfigError("no record was given to edit: expected at least one")
    # Sampled text and probes take most of a measurement, and decide nothing here.
    bare = [replace(record, probes=(), generation_prompts=(), free_paraphrases=(), answer=None) for record in records]

    def edited(layer: int) -> dict[str, Any]:
        result = evaluate(
            model,
            tokenizer,
            bare,
            editor=EDITOR,
            settings={"layer": layer, "seed": location.seed},
            progress=_named(checkpoint.progress, layer),
        )
        return {
            **{measure: result.quality.generated[measure] for measure in FIGURES},
            "failed": len(result.failed),
            "cpu_seconds_per_edit": result.cpu_seconds / len(records),
        }

    results = []
    for layer in chosen:
        figures = checkpoint.part(f"sweep/{layer}", partial(edited, layer))
        effects = {name: location.effect(*where)[layer] for name, where in TRACED.items()}
        results.append(LayerResult(layer=layer, effects=effects, **figures))
    described = {"first": first, "count": len(records), "ids": [record.edit.id for record in records]}
    return Sweep(results=tuple(results), records=described, peak=trace_peak(location), plateau=trace_plateau(location))


def trace_peak(location: Location) -> int:
    """The layer at which restoring the state at the subject's last token does most; the lowest of equal ones."""
    effects = [effect for effect in location.effect(*TRACED[HEADLINE]) if effect is not None]
    return max(range(len(effects)), key=lambda layer: effects[layer])


def trace_plateau(location: Location) -> tuple[int, ...]:
    """The other layers whose effect reaches into the 95% interval of the strongest one's."""
    kind, role = TRACED[HEADLINE]
    peak = trace_peak(location)
    interval = location.effects[kind].ci[ROLES.index(role)][peak]
    if interval is None:
        return ()
    effects = enumerate(location.effect(kind, role))
    return tuple(layer for layer, x in effects if layer != peak and x is not None and x >= interval[0])


def _mean_of(measures: Sequence[str]) -> str:
    """What an editing success is where these measures were taken.

    >>> _mean_of(["reliability", "locality"]), _mean_of(["reliability"])
    ('mean of generated reliability and locality', 'generated reliability')
    """
    *others, last = measures
    return f"mean of generated {', '.join(others)} and {last}" if others else f"generated {last}"


def _named(progress: Progress | None, layer: int) -> Progress | None:
    """Progress at one layer among others."""
    if progress is None:
        return None
    show = progress
    return lambda name, done, total: show(f"layer {layer}: {name}", done, total)
