"""The table of a comparison of editors, made from the files of its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

Run = Mapping[str, Any]
Figure = Callable[[Run], float | None]
Group = Sequence[Run]
"""Runs of one editor over streams of one size."""


def figure_at(*keys: str, unit: int = 1) -> Figure:
    """The figure that stands at a path of keys in a run; None where there is nothing."""

    def figure(run: Run) -> float | None:
        value: Any = run
        for key in keys:
            value = None if value is None else value.get(key)
        return None if value is None else float(value) / unit

    return figure


def _preparing(run: Run) -> float | None:
    """Seconds that an editor needs once per base: of the search, where the run itself found it in a cache."""
    search = run.get("search") or {"trials": (), "chosen": None}
    searched = [t.get("preparing_seconds") for t in search["trials"] if t["settings"] == search["chosen"]]
    return max((s for s in (run["timing"].get("preparing_seconds"), *searched) if s is not None), default=None)


MEASURES = ("reliability", "generalization", "free_generalization")
LOCALITIES = {
    "unchanged": ("unchanged", "unchanged_teacher_forced"),
    "gold answer": ("gold_generated", "gold_teacher_forced"),
    "neighbourhood": ("neighbourhood_score",),
}
"""The three things that go by this name: answers are the base's; right by the known answer; CounterFact's true answer
is likelier than the new one."""
COLUMNS: dict[str, tuple[int, tuple[Figure, ...]]] = {
    **{m.replace("_", " "): (3, (figure_at("generated", m), figure_at("teacher_forced", m))) for m in MEASURES},
    **{f"locality: {n}": (3, tuple(figure_at("locality", key) for key in keys)) for n, keys in LOCALITIES.items()},
    "perplexity ratio": (3, (figure_at("perplexity", "ratio"),)),
    "CPU-s per edit": (3, (figure_at("cpu_seconds_per_edit"),)),
    "KiB kept per edit": (1, (figure_at("stored_bytes_per_edit", unit=2**10),)),
    "s to prepare": (1, (_preparing,)),
}
"""Name -> decimals, and figures of a run; of two the first is generated, the second teacher-forced."""
HEAD = ("editor", "edits", "streams", *COLUMNS)


def mean(group: Group, figure: Figure) -> float | None:
    """The mean over the runs that have a figure."""
    values = [value for run in group if (value := figure(run)) is not None]
    return fmean(values) if values else None


def table(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """A row under `HEAD` per editor and size, figures being means over its streams."""
    return [
        (
            group[0]["editor"],
            str(group[0]["edits"]),
            str(len(group)),
            *(
                " / ".join(_short(mean(group, figure), places) for figure in figures)
                for places, figures in COLUMNS.values()
            ),
        )
        for group in groups
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; a mark in a cell that would end it is escaped."""
    lines: list[Sequence[str]] = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _short(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"
