"""The results of causal tracing and of editing at every layer, and the layer that is recommended.

Where a trace finds a fact says little about where editing it works (Hase et al. 2023, "Does Localization Inform
Editing?"). So the recommended layer is chosen by edits that were made and measured there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from wise.lab.locate.roles import LAST, LAST_SUBJECT, ROLES
from wise.lab.locate.sites import FFN, STATE

FIGURES = ("reliability", "generalization", "locality")
"""Generated measures whose mean is an editing success."""
TRACED = {
    "trace_effect": (STATE, LAST_SUBJECT),
    "trace_effect_ffn": (FFN, LAST_SUBJECT),
    "trace_effect_last_token": (STATE, LAST),
}
"""Effects that editing is compared with; the first is the one that papers localise by."""


@dataclass(frozen=True, kw_only=True)
class LayerResult:
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
    def success(self) -> float:
        return fmean(figure for name in FIGURES if (figure := getattr(self, name)) is not None)

    def to_dict(self) -> dict[str, Any]:
        figures = asdict(self)
        effects = figures.pop("effects")
        return {**figures, "success": self.success, **effects}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    results: tuple[LayerResult, ...]
    records: Mapping[str, Any]

    @property
    def best(self) -> LayerResult:
        """The best mean; where equal, fewer failed edits, then the higher layer: its edits run fewer blocks."""
        return max(self.results, key=lambda result: (result.success, -result.failed, result.layer))

    def correlation(self, name: str) -> float | None:
        """Spearman's, over the layers, of an effect in `TRACED` and editing success; None where there is none."""
        pairs = [(effect, r.success) for r in self.results if (effect := r.effects[name]) is not None]
        return spearman([effect for effect, _ in pairs], [success for _, success in pairs])

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweep": [result.to_dict() for result in self.results],
            "sweep_records": dict(self.records),
            "recommendation": {
                "layer": self.best.layer,
                "success": self.best.success,
                "correlations": {name: self.correlation(name) for name in TRACED},
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


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a model keeps facts, as far as causal tracing tells."""

    model: Mapping[str, Any]
    facts: int
    skipped: Mapping[str, int]
    """Why facts were left out -> how many."""
    noise: float
    samples: int
    window: int
    layers: int
    effects: Mapping[str, Effects]
    low_score: float
    """Mean probability of the answer's first token with noise."""
    high_score: float
    """The same, clean."""
    seed: int
    environment: Mapping[str, Any]

    def effect(self, kind: str, role: str) -> list[float | None]:
        """The mean effect of `kind` at tokens of `role`, per layer."""
        return self.effects[kind].mean[ROLES.index(role)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"roles": list(ROLES), "sweep": [], "sweep_records": None, "recommendation": None}


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None where either is constant or has under three."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(np.corrcoef([_ranks(a), _ranks(b)])[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal ones share the mean of their ranks."""
    ranked = sorted(values)
    return [ranked.index(value) + (ranked.count(value) + 1) / 2 for value in values]
