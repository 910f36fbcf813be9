"""The charts of a run's routing: how well scores separate edited from unrelated text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wise.lab.report.charts import Half, Series, decades, lines, mirrored, named, shares
from wise.lab.report.formats import percent, plain
from wise.lab.report.svg import Markup

LOWEST = -4
"""Decade at which the axis of false-positive rates begins."""
PANEL = (330.0, 178.0)


def panels(routing: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Name and chart of each negative class: positives upwards, the class downwards."""
    against = routing["positives"].get(routing["scored_against"], {})
    edges = routing["bins"]
    reference, top = _heights(against.get("histogram") or [], log=False)
    found = []
    for name, measured in routing["classes"].items():
        if not measured.get("histogram"):
            continue
        log = measured["unit"] == "token"
        heights, reach = _heights(measured["histogram"], log=log)
        above = Half(name=plain(routing["scored_against"]), heights=reference, top=top, style=1)
        below = Half(name=f"{plain(name)} (log)" if log else plain(name), heights=heights, top=reach, style=2)
        title = f"Evidence of {name} (down) against {routing['scored_against']} (up); the gate opens from 1"
        chart = mirrored(title, edges, above, below, threshold=1.0, size=PANEL)
        found.append((name, chart))
    return found


def _heights(counts: Sequence[int], *, log: bool) -> tuple[list[float], str]:
    """Counts as heights up to 1, and the share that 1 stands for. On a log scale a single count still shows."""
    total, most = sum(counts), max(counts, default=0)
    if not most:
        return [0.0] * len(counts), ""
    if log:
        span = math.log(most) + 1
        return [(math.log(count) + 1) / span if count else 0.0 for count in counts], percent(most / total)
    return [count / most for count in counts], percent(most / total)


def roc(routing: Mapping[str, Any]) -> Markup | None:
    """True against false positives of each class, on a log axis; every curve bears its class's number."""
    series = []
    classes = routing["classes"]
    for i, measured in enumerate(classes.values()):
        if measured.get("roc"):
            where = 10 ** (LOWEST + 0.35 + (-LOWEST - 0.7) * (i + 0.5) / len(classes))
            curve = _from_lowest(measured["roc"])
            badge = (str(i + 1), where)
            series.append(Series(name="", points=curve, style=i % 9 + 1, step=True, badge=badge))
    if not series:
        return None
    opened = (routing["positives"].get(routing["scored_against"]) or {}).get("opened")
    rule = None if opened is None else (opened, f"the gate as it is: {percent(opened)}")
    x = decades("unrelated text that a threshold would route", LOWEST, 0)
    y = shares(f"{routing['scored_against']} that it would route")
    return lines("ROC curves by class, numbered as in the table", x, y, series, rule=rule, size=(560, 400))


def _from_lowest(curve: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The curve from the lowest rate on the axis, at which it has reached what any rate up to that gives."""
    lowest = 10.0**LOWEST
    reached = max((y for x, y in curve if x <= lowest), default=0.0)
    return [(lowest, reached), *((x, y) for x, y in curve if x > lowest)]


def by_age(routing: Mapping[str, Any]) -> Markup | None:
    """Opened gates by how many edits came after."""
    stops = routing.get("by_age") or []
    if not stops:
        return None
    names = [f"{stop['from']}–{stop['to']}" for stop in stops]
    series = [
        Series(name=name, style=style, points=_points(stops, key))
        for style, (key, name) in enumerate([("opened", "edits"), ("paraphrases_opened", "paraphrases")], start=1)
    ]
    title = "Share of opened gates by the number of edits made later"
    return lines(title, named("edits made later", names), shares("gates opened"), series, right=110)


def _points(stops: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(i), stop[key]) for i, stop in enumerate(stops) if stop.get(key) is not None]
