"""The table of a comparison of editors, from the files of its runs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]
COLUMNS = (
    "editor",
    "edits",
    "reliability",
    "generalization",
    "free wordings",
    "locality: unchanged",
    "locality: gold answer",
    "locality: neighbourhood",
    "perplexity ratio",
    "s per edit",
    "KiB kept per edit",
    "peak MiB",
    "s to prepare",
)
"""Of cells with two figures the first is generated, the second teacher-forced. The three localities are three things:
answers unchanged from the base's; right by the known answer; CounterFact's true answer likelier than the new one."""


def table(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` per run."""
    return [_row(run) for run in runs]


def markdown(runs: Sequence[Run]) -> str:
    """The table in Markdown."""
    lines: list[Sequence[str]] = [COLUMNS, ["---"] * len(COLUMNS), *table(runs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _row(run: Run) -> tuple[str, ...]:
    locality = run["locality"] or {}
    probability = run["counterfact"] or {}
    perplexity = run["perplexity"] or {}
    return (
        run["editor"],
        str(run["edits"]),
        *(_both(run, measure) for measure in ("reliability", "generalization", "free_generalization", "locality")),
        f"{_short(locality.get('gold_generated'))} / {_short(locality.get('gold_teacher_forced'))}",
        _short(probability.get("neighbourhood", {}).get("score")),
        _short(perplexity.get("ratio")),
        _short(run["seconds_per_edit"]),
        _short(run.get("stored_bytes_per_edit"), 1024, places=1),
        _short(run.get("peak_editing_bytes"), 2**20, places=0),
        _short(_preparing(run), places=1),
    )


def _preparing(run: Run) -> float | None:
    """Seconds that an editor needs once per base: of the search, where the run itself found it in a cache."""
    search = run.get("search") or {"trials": (), "chosen": None}
    searched = [t.get("preparing_seconds") for t in search["trials"] if t["settings"] == search["chosen"]]
    return max((s for s in (run["timing"].get("preparing_seconds"), *searched) if s is not None), default=None)


def _both(run: Run, measure: str) -> str:
    return f"{_short(run['generated'].get(measure))} / {_short(run['teacher_forced'].get(measure))}"


def _short(value: float | None, unit: float = 1, places: int = 3) -> str:
    return "-" if value is None else f"{value / unit:.{places}f}"
