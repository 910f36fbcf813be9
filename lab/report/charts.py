"""Charts as SVG: lines and mirrored histograms. Colours are classes that the page's style sheet defines.

A series is told from the others by its name or number on the chart and by its dashes, never by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wise.lab.report.formats import short
from wise.lab.report.svg import Markup, element, joined, path

LEFT, TOP, BOTTOM, RIGHT = 58.0, 14.0, 48.0, 22.0
LINE = 16.0
"""Height of a line of text."""
RETAINED = {"reliability": "all so far", "oldest": "oldest tenth", "teacher_forced": "all, teacher-forced"}

Ticks = tuple[tuple[float, str], ...]


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


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """By rising x."""
    style: int
    """1 to 9: colour and dashes."""
    step: bool = False
    """A value holds until the next x, as a rate at a threshold does."""
    badge: tuple[str, float] | None = None
    """What stands in a disc on the line, and at which x; None writes the name at the line's end."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The rectangle that values are drawn in."""

    x: Axis
    y: Axis
    width: float
    height: float
    right: float = RIGHT

    def across(self, value: float) -> float:
        return LEFT + self.x.share(value) * (self.width - LEFT - self.right)

    def up(self, value: float) -> float:
        return self.height - BOTTOM - self.y.share(value) * (self.height - TOP - BOTTOM)

    def drawn(self) -> Markup:
        """Grid, ticks and titles."""
        left, right, low = LEFT, self.width - self.right, self.height - BOTTOM
        parts = []
        for value, text in self.y.ticks:
            y = self.up(value)
            parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(element("text", text, x=left - 7, y=y + 4, class_="tick", text_anchor="end"))
        for value, text in self.x.ticks:
            x = self.across(value)
            parts.append(element("line", x1=x, x2=x, y1=low, y2=low + 4, class_="axis"))
            parts.append(element("text", text, x=x, y=low + 18, class_="tick", text_anchor="middle"))
        parts.append(element("line", x1=left, x2=right, y1=low, y2=low, class_="axis"))
        middle = (left + right) / 2
        parts.append(element("text", self.x.title, x=middle, y=self.height - 8, class_="label", text_anchor="middle"))
        turn = f"translate(13 {(TOP + low) / 2:.0f}) rotate(-90)"
        parts.append(element("text", self.y.title, transform=turn, class_="label", text_anchor="middle"))
        return joined(parts)


def lines(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    rule: tuple[float, str] | None = None,
    right: float = RIGHT,
    size: tuple[float, float] = (480, 290),
) -> Markup:
    """Lines over shared axes.

    rule: a height that a dashed line is drawn at, and what is written on it.
    right: room at that side, for names of series at the ends of their lines.
    """
    named = [one for one in series if one.badge is None and one.points]
    frame = Frame(x=x, y=y, width=size[0], height=size[1], right=right)
    parts = [frame.drawn()]
    if rule is not None:
        height = frame.up(rule[0])
        parts.append(element("line", x1=LEFT, x2=size[0] - frame.right, y1=height, y2=height, class_="rule"))
        above = height - 6 if height > TOP + LINE else height + LINE
        parts.append(element("text", rule[1], x=LEFT + 4, y=above, class_="label"))
    parts += [_line(frame, one) for one in series if one.points]
    parts += [_badge(frame, one) for one in series if one.points]
    ends = spread([frame.up(one.points[-1][1]) for one in named], LINE, TOP, size[1] - BOTTOM)
    for one, end in zip(named, ends, strict=True):
        place = size[0] - frame.right + 8
        parts.append(element("text", one.name, x=place, y=end + 4, class_=f"name s{one.style}"))
    return canvas(title, size, parts)


def _line(frame: Frame, series: Series) -> Markup:
    points = list(series.points)
    if series.step:
        points = [p for a, b in zip(points, points[1:], strict=False) for p in (a, (b[0], a[1]))] + points[-1:]
    placed = [(frame.across(x), frame.up(y)) for x, y in points]
    parts = [element("path", d=path(_distinct(placed)), class_="line")]
    if not series.step:
        parts += [element("circle", cx=x, cy=y, r=3, class_="dot") for x, y in placed]
    return element("g", *parts, class_=f"s{series.style}")


def _distinct(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without points that the eye cannot tell from the one before."""
    kept = points[:1]
    for point in points[1:]:
        if (round(point[0], 1), round(point[1], 1)) != (round(kept[-1][0], 1), round(kept[-1][1], 1)):
            kept.append(point)
    return kept


def _badge(frame: Frame, series: Series) -> Markup:
    if series.badge is None:
        return Markup("")
    text, where = series.badge
    below = [y for x, y in series.points if x <= where]
    x, y = frame.across(where), frame.up(below[-1] if below else series.points[0][1])
    disc = element("circle", cx=x, cy=y, r=9)
    return element(
        "g", disc, element("text", text, x=x, y=y + 4, text_anchor="middle"), class_=f"badge s{series.style}"
    )


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart to at least `gap`, in their order, as near as that to where they were and within the ends.

    >>> spread([10, 12, 40], 10, 0, 45)
    [10, 20, 40]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, i in zip([None, *order], order, strict=False):
        moved[i] = max(moved[i], low if before is None else moved[before] + gap)
    ceiling = high
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


@dataclass(frozen=True, kw_only=True)
class Half:
    """One side of a mirrored histogram."""

    name: str
    heights: Sequence[float]
    """0 to 1 along this side's own axis, one per bin."""
    top: str
    """What is written at height 1."""
    style: int


def mirrored(
    title: str, edges: Sequence[float], above: Half, below: Half, *, threshold: float, size: tuple[float, float]
) -> Markup:
    """Two histograms over one axis, one upwards and one downwards, with a line at the threshold."""
    width, height = size
    left, top, bottom = 44.0, 8.0, 40.0
    middle = (top + height - bottom) / 2
    reach = middle - top - 2
    scale = (width - left - 12) / (edges[-1] - edges[0])

    def across(value: float) -> float:
        return left + (value - edges[0]) * scale

    parts = [
        element("path", d=_outline(edges, half.heights, across, middle, sign * reach), class_=f"area s{half.style}")
        for half, sign in ((above, -1), (below, 1))
    ]
    line = across(threshold)
    parts.append(element("line", x1=line, x2=line, y1=top, y2=height - bottom, class_="rule"))
    parts.append(element("line", x1=left, x2=width - 12, y1=middle, y2=middle, class_="axis"))
    for half, y in ((above, top + 11), (below, height - bottom - 3)):
        parts.append(element("text", half.top, x=left - 5, y=y, class_="tick", text_anchor="end"))
        parts.append(element("text", half.name, x=width - 12, y=y, class_="halo label", text_anchor="end"))
    last = len(edges) - 1
    for i in range(5):
        edge = edges[round(i * last / 4)]
        text = f"{edge:g}" if i < 4 else f"{edge:g}+"
        parts.append(element("text", text, x=across(edge), y=height - bottom + 15, class_="tick", text_anchor="middle"))
    parts.append(element("text", "evidence", x=across(threshold), y=height - 6, class_="label", text_anchor="middle"))
    return canvas(title, size, parts)


def _outline(
    edges: Sequence[float], heights: Sequence[float], across: Callable[[float], float], base: float, reach: float
) -> str:
    """The steps over all bins, closed along the base line."""
    points = [(across(edges[0]), base)]
    for i, height in enumerate(heights):
        y = base + reach * min(max(height, 0.0), 1.0)
        points += [(across(edges[i]), y), (across(edges[i + 1]), y)]
    return path([*points, (across(edges[-1]), base)]) + "Z"


def canvas(title: str, size: tuple[float, float], parts: Sequence[Markup]) -> Markup:
    """The SVG around drawn parts; `title` is what is read out in its place."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        role="img",
        aria_label=title,
        style=f"min-width:{0.75 * size[0]:.0f}px;max-width:{1.15 * size[0]:.0f}px",
    )


def retention(stops: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Recall along the stream, the number of edits on a log axis; None without two stops."""
    if len(stops) < 2:
        return None
    series = [
        Series(name=name, style=i, points=[(stop["edits"], stop[key]) for stop in stops if stop.get(key) is not None])
        for i, (key, name) in enumerate(RETAINED.items(), start=1)
    ]
    x = counted("edits made", [stop["edits"] for stop in stops])
    return lines("Recall after so many edits", x, shares("edits recalled"), series, right=150, size=(680, 300))
