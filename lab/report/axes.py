"""Axes: where a value lies along a chart's side, and which values are written there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wise.lab.report.formats import short

Ticks = tuple[tuple[float, str], ...]
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One side of a chart."""

    title: str
    low: float
    high: float
    ticks: Ticks
    log: bool = False

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1; what is outside lies at the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def shares(title: str) -> Axis:
    """0 to 1, in percent."""
    return Axis(title=title, low=0, high=1, ticks=tuple((i / 4, f"{25 * i}%") for i in range(5)))


def decades(title: str, low: int, high: int) -> Axis:
    """10**low to 10**high, evenly in the logarithm, in percent."""
    ticks = tuple((10.0**power, f"{short(10.0 ** (power + 2))}%") for power in range(low, high + 1))
    return Axis(title=title, low=10.0**low, high=10.0**high, ticks=ticks, log=True)


def fitted(title: str, values: Sequence[float]) -> Axis:
    """Holds 0 and all values, with round numbers along it."""
    low, high = min(0.0, *values), max(0.0, *values)
    if low == high:
        high = 1.0
    step = _step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple((step * i, short(step * i)) for i in range(first, last + 1))
    return Axis(title=title, low=step * first, high=step * last, ticks=ticks)


def named(title: str, names: Sequence[str], *, most: int = 8) -> Axis:
    """Places 0, 1, 2, ... with a name each; of many names, every second, third, ... is written."""
    every = math.ceil(len(names) / most)
    ticks = tuple((float(i), name) for i, name in enumerate(names) if i % every == 0)
    return Axis(title=title, low=-0.5, high=len(names) - 0.5, ticks=ticks)


def counted(title: str, stops: Sequence[int]) -> Axis:
    """Counts, evenly in the logarithm, the counts themselves written where they are not too near each other."""
    low, high = min(stops), max(stops)
    if low == high:
        return Axis(title=title, low=low - 1, high=low + 1, ticks=((float(low), f"{low:,}"),))
    axis = Axis(title=title, low=low, high=high, ticks=(), log=True)
    chosen: list[int] = []
    for stop in sorted(set(stops), reverse=True):
        if not chosen or axis.share(chosen[-1]) - axis.share(stop) >= 0.12:
            chosen.append(stop)
    ticks = tuple((float(stop), f"{stop:,}") for stop in reversed(chosen))
    return Axis(title=title, low=low, high=high, ticks=ticks, log=True)


def _step(least: float) -> float:
    """The smallest round number that is not smaller."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * step for step in _STEPS if power * step >= least * (1 - 1e-9))
