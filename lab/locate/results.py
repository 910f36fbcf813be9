"""The results of causal tracing and of editing at every layer, and the layer that is recommended.

Where a trace finds a fact says little about where editing it works (Hase et al. 2023, "Does Localization Inform
Editing?"). So the recommended layer is chosen by edits that were made and measured there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from wise.lab.locate.roles import LAST, LAST_SUBJECT, ROLES
from wise.lab.locate.sites import FFN, STATE

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


@dataclass(frozen=True, kw_only=True)
class Effects:
    """One kind of effect. A role that no fact has is None throughout."""

    mean: list[list[float | None]]
    """Per role, per layer: the mean over facts of the mean over a fact's tokens of that role."""
    ci: list[list[list[float] | None]]
    """The same: 95% bootstrap interval over facts."""
    n: list[int]
    """Per role: facts that have it."""

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "ci": self.ci, "n": self.n}


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a model keeps facts, as far as causal tracing tells, and where editing them works."""

    model: Mapping[str, Any]
    facts: int
    """Facts traced."""
    skipped: Mapping[str, int]
    """Why facts were left out -> how many."""
    noise: float
    """Standard deviation of the noise."""
    samples: int
    window: int
    layers: int
    effects: Mapping[str, Effects]
    low_score: float
    """Mean probability of the answer's first token with noise."""
    high_score: float
    """The same, clean."""
    severed: Mapping[str, list[float]]
    """Curve -> mean effect per layer of the state at the subject's last token."""
    severed_ci: Mapping[str, list[list[float]]]
    seed: int
    environment: Mapping[str, Any] = field(default_factory=dict)
    sweep: Sweep | None = None

    def effect(self, kind: str, role: str) -> list[float | None]:
        """The mean effect of `kind` at tokens of `role`, per layer."""
        return self.effects[kind].mean[ROLES.index(role)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "model": dict(self.model),
            "facts": self.facts,
            "skipped": dict(self.skipped),
            "noise": self.noise,
            "samples": self.samples,
            "window": self.window,
            "roles": list(ROLES),
            "layers": self.layers,
            "effects": {kind: effects.to_dict() for kind, effects in self.effects.items()},
            "low_score": self.low_score,
            "high_score": self.high_score,
            "severed": dict(self.severed),
            "severed_ci": dict(self.severed_ci),
            "sweep": [],
            "sweep_records": None,
            "recommendation": None,
            "seed": self.seed,
            "environment": dict(self.environment),
            **({} if self.sweep is None else self.sweep.to_dict()),
        }

    def with_sweep(self, sweep: Sweep) -> Location:
        """The same, with what editing at the layers gave."""
        return replace(self, sweep=sweep)


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


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None where either is constant or has under three."""
    x, y = (_ranks(values) for values in (a, b))
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    mean_x, mean_y = fmean(x), fmean(y)
    dx, dy = [i - mean_x for i in x], [i - mean_y for i in y]
    product = sum(i * j for i, j in zip(dx, dy, strict=True))
    return product / math.sqrt(sum(i * i for i in dx) * sum(j * j for j in dy))


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal ones share the mean of their ranks."""
    ranked = sorted(values)
    return [ranked.index(value) + (ranked.count(value) + 1) / 2 for value in values]
