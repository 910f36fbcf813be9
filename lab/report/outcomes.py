"""Selects the wrong answers that a page lists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 100
LONGEST = 280
"""Characters of a text that are shown."""


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """The wrong answers that are shown, and how many there are, by measure."""

    shown: tuple[Mapping[str, Any], ...]
    counts: Mapping[str, int]
    asked: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def wrong(outcomes: Sequence[Mapping[str, Any]]) -> Wrong:
    """At most `MOST`, an equal share of every measure; of each those farthest off first (teacher-forced)."""
    by_measure: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    asked: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        asked[outcome["measure"]] += 1
        if outcome["generated"] < 1:
            by_measure[outcome["measure"]].append(outcome)
    shown: list[Mapping[str, Any]] = []
    left = len(by_measure)
    # The short lists first, so that the others get what those leave.
    for measure in sorted(by_measure, key=lambda m: len(by_measure[m])):
        room = (MOST - len(shown)) // left
        shown += sorted(by_measure[measure], key=lambda o: o["teacher_forced"])[:room]
        left -= 1
    order = list(asked)
    shown.sort(key=lambda o: order.index(o["measure"]))
    counts = {measure: len(by_measure[measure]) for measure in order if measure in by_measure}
    return Wrong(shown=tuple(map(_clipped, shown)), counts=counts, asked=dict(asked))


def _clipped(outcome: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _clip(value) if isinstance(value, str) else value for key, value in outcome.items()}


def _clip(text: str) -> str:
    """Long texts lose their middle: a prompt says at its end what it asks."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} […] {text[-LONGEST // 2 :]}"
