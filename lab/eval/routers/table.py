"""The two tables of a comparison of routers, from its figures alone: what scores tell apart, what gates let pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wise.lab.eval.comparison import markdown_table

Comparison = Mapping[str, Any]
"""What `wise.lab.eval.routers.contest.compare_routers` gives."""
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Head and rows."""


def separation(compared: Comparison) -> Table:
    """AUROC of paraphrases against each class of negatives, how often the right candidate is the best, and the time."""
    classes = list(compared["routers"][0]["auroc"])
    rows = [
        (
            row["router"],
            *(f"{row['auroc'][name]:.3f}" for name in classes),
            " / ".join(f"{row['top1'][name]:.3f}" for name in _wordings(row["top1"]))
            + (" (slot)" if row["tells_apart"] == "slots" else ""),
            _number(row["microseconds_per_token"], 1),
        )
        for row in compared["routers"]
    ]
    top1 = f"top-1: {' / '.join(_wordings(compared['routers'][0]['top1']))}"
    return ("router", *classes, top1, "µs a token"), rows


def gates(compared: Comparison) -> Table:
    """What opens at each rate, one behind the other: for the right candidate of positives, for any of negatives."""
    first = compared["routers"][0]["gates"]
    positives = [f"{name} reached" for name in first[0]["reached"]]
    opened = list(compared["calibrated_on"]["classes"])
    known = [name for name in opened if name in first[0]["opened"]]
    head = ("router", *positives, "hard opened", *(f"{name} opened" for name in known), "false routes / M")
    rows = []
    for row in compared["routers"]:
        each = row["gates"]
        columns = [[gate["reached"][name] for gate in each] for name in first[0]["reached"]]
        columns += [[gate["hard_opened"] for gate in each]]
        columns += [[gate["opened"][name] for gate in each] for name in known]
        false = " / ".join(_number(gate["false_routes_per_million"], 0) for gate in each)
        rows.append((row["router"], *(" / ".join(f"{value:.3f}" for value in values) for values in columns), false))
    return head, rows


def markdown(compared: Comparison) -> str:
    """Both tables in Markdown, each under a line that says what it shows."""
    rates = " / ".join(f"{gate['promised']:g}" for gate in compared["routers"][0]["gates"])
    return "\n".join(
        (
            f"{compared['edits']} edits: AUROC of paraphrases against each class.\n",
            markdown_table(*separation(compared)),
            f"{compared['edits']} edits: gates at thresholds for a share of {rates} of hard negatives.\n",
            markdown_table(*gates(compared)),
        )
    )


def _wordings(top1: Mapping[str, float]) -> Sequence[str]:
    return [name for name in top1 if name != "edits"]


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"
