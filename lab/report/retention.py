"""How edits hold while others follow, as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wise.lab.report.axes import counted, shares
from wise.lab.report.charts import Series, lines
from wise.lab.report.svg import Markup

NAMES = {"reliability": "all so far", "oldest": "oldest tenth", "teacher_forced": "all, teacher-forced"}


def chart(stops: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Recall along the stream, the number of edits on a log axis; None without two stops."""
    if len(stops) < 2:
        return None
    series = [
        Series(name=name, style=i, points=[(stop["edits"], stop[key]) for stop in stops if stop.get(key) is not None])
        for i, (key, name) in enumerate(NAMES.items(), start=1)
    ]
    x = counted("edits made", [stop["edits"] for stop in stops])
    return lines("Recall after so many edits", x, shares("edits recalled"), series, right=150, size=(680, 300))
