"""A grid of shaded cells: one value per row and column."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wise.errors import ConfigError
from wise.lab.report.charts import canvas
from wise.lab.report.formats import short
from wise.lab.report.svg import Markup, element, number

HEIGHT = 30.0
NUMBERED = 10
"""Columns up to which the values themselves are written into the cells."""
MIDDLE, STRONG = 0.5, 0.635
"""Shares of the scale from which text turns dark on the dark page, and light on the light one. With the two ends of
the scale (`--heat-low`, `--heat-high`) this keeps every text at a contrast of 4.5 to its ground."""


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    column_title: str = "",
    low: float | None = None,
    high: float | None = None,
    width: float = 540,
) -> Markup:
    """Shaded cells as SVG, with the scale under them.

    Args:
        values: `[rows, columns]`; a cell that is None is left empty.
        title: what is read out in the picture's place.
        low, high: ends of the scale; None takes the smallest value, or 0 where all are above, and the largest.

    Raises ConfigError where the shape is not that of the names, there is no cell, or a value is not finite.
    """
    _check(values, rows, columns)
    known = [value for row in values for value in row if value is not None]
    low = min([0.0, *known]) if low is None else low
    high = max(known, default=1.0) if high is None else high
    left = 12 + 6.6 * max(len(name) for name in rows)
    wide = (width - left - 8) / len(columns)
    parts = []
    for r, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = 8 + HEIGHT * r
        parts.append(element("text", name, x=left - 8, y=y + HEIGHT / 2 + 4, class_="tick", text_anchor="end"))
        for c, value in enumerate(row):
            if value is not None:
                share, inside = _share(value, low, high), _inside(value, len(columns))
                cell = (left + wide * c, y, wide, HEIGHT)
                parts.append(_cell(cell, share, inside, f"{name}, {columns[c]}: {value:.4g}"))
    under = 8 + HEIGHT * len(rows)
    every = math.ceil(len(columns) * 30 / (width - left))
    for c, name in enumerate(columns):
        if c % every == 0:
            middle = left + wide * (c + 0.5)
            parts.append(element("text", name, x=middle, y=under + 17, class_="tick", text_anchor="middle"))
    parts.append(element("text", column_title, x=left, y=under + 42, class_="label"))
    parts += _scale(width, under + 32, low, high)
    return canvas(title, (width, under + 52), parts)


def ink(share: float) -> str:
    """The class of text on ground that is shaded so far."""
    return "strong" if share >= STRONG else "mid" if share >= MIDDLE else ""


def _inside(value: float, columns: int) -> str:
    """What is written into a cell."""
    if columns > NUMBERED:
        return ""
    return f"{value:.2f}".replace("-0.00", "0.00")


def _cell(box: tuple[float, float, float, float], share: float, text: str, told: str) -> Markup:
    x, y, wide, high = box
    ground = element(
        "rect", element("title", told), x=x, y=y, width=wide, height=high, class_="cell", style=_heat(share)
    )
    if not text:
        return ground
    kind = f"in {ink(share)}".rstrip()
    return Markup(ground + element("text", text, x=x + wide / 2, y=y + high / 2 + 4, class_=kind, text_anchor="middle"))


def _scale(width: float, y: float, low: float, high: float) -> list[Markup]:
    """Eight steps from the lowest to the highest value, right under the cells."""
    wide, steps = 14.0, 8
    end = width - 8 - 6.6 * len(short(high)) - 4
    start = end - wide * steps
    parts = [
        element("text", short(low), x=start - 5, y=y + 11, class_="tick", text_anchor="end"),
        element("text", short(high), x=end + 5, y=y + 11, class_="tick"),
    ]
    for i in range(steps):
        style = _heat(i / (steps - 1))
        parts.append(element("rect", x=start + wide * i, y=y, width=wide, height=14, class_="cell", style=style))
    return parts


def _heat(share: float) -> str:
    return f"--heat:{number(100 * share)}%"


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0


def _check(values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str]) -> None:
    if not rows or not columns:
        raise ConfigError(f"{len(rows)} rows and {len(columns)} columns: a heat map needs at least one of each")
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        shape = f"{len(values)} rows of {sorted({len(row) for row in values})} values"
        raise ConfigError(f"{shape} were given, {len(rows)} rows of {len(columns)} were expected")
    if not all(value is None or math.isfinite(value) for row in values for value in row):
        raise ConfigError("a value of the heat map is NaN or infinite; give None for what was not measured")
