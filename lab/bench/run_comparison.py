"""Compares two or more runs: which figures differ, and whether the difference is significant.

Runs are read by `wise.lab.eval.results_file`. The outcomes of two runs are paired by record, measure and prompt, and
only paired outcomes are tested. A figure is the mean over records of the mean over a record's prompts. The test is
`sign_flip` over records; all tests of one comparison are adjusted together (`holm`).

A run keeps no outcomes for routing and cost. They are shown with the intervals that the runs hold, and not tested.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from wise.errors import ConfigError
from wise.lab.eval.significance import LEVEL, RESAMPLES, bootstrap_interval, holm, sign_flip
from wise.probes import OF_A_CASE

MODES = ("generated", "teacher_forced")
FIRST = ("reliability", "generalization", "free_generalization", "locality")
"""Measures of every run, in their order; kinds of probes follow by name."""
LOCALITY = "locality"
DATA = ("sha256", "skip")
MACHINE = ("cpu", "threads", "device")
DIGITS = 12
"""Of a record's difference: what rounding leaves of equal shares is no difference."""

Pair = tuple[Mapping[str, Any], Mapping[str, Any]]
"""The outcomes of one prompt: of the reference, of the other run."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One measure in two runs, over what both were asked."""

    measure: str
    mode: str
    records: int
    prompts: int
    reference: float
    value: float
    difference: float
    interval: tuple[float, float] | None
    """95 % of `difference`, records drawn with replacement; None for a single record."""
    p: float
    p_holm: float
    """The same, adjusted for all tests of the comparison."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure that is not tested, in two runs."""

    name: str
    reference: float
    value: float
    difference: float
    reference_interval: tuple[float, float] | None
    interval: tuple[float, float] | None
    """Of each run by itself, as it has them."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One run against the reference."""

    run: str
    matched: int
    only_reference: int
    only_run: int
    warnings: tuple[str, ...]
    differences: tuple[Difference, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All runs against the first of them."""

    reference: str
    seed: int
    contrasts: tuple[Contrast, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "seed": self.seed,
            "level": LEVEL,
            "resamples": RESAMPLES,
            "tests": sum(len(contrast.differences) for contrast in self.contrasts),
            "contrasts": [asdict(contrast) for contrast in self.contrasts],
        }


def compare_runs(runs: Sequence[tuple[str, Mapping[str, Any]]], *, seed: int = 0) -> Comparison:
    """Compares every run, as `read_run` gives it, with the first. seed: of the bootstrap and of the random signs.
    Raises ConfigError for fewer than two runs, a name that is there twice, or a run that shares no outcome with the
    first."""
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run was given: a comparison takes two or more, the reference first")
    names = [name for name, _ in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name}: is there {names.count(name)} times; name every run once")
    (first, reference), *others = runs
    contrasts = [_contrast(first, reference, name, run, seed) for name, run in others]
    adjusted = iter(holm([entry.p for contrast in contrasts for entry in contrast.differences]))
    return Comparison(
        reference=first,
        seed=seed,
        contrasts=tuple(
            replace(
                contrast, differences=tuple(replace(entry, p_holm=next(adjusted)) for entry in contrast.differences)
            )
            for contrast in contrasts
        ),
    )


def _contrast(first: str, reference: Mapping[str, Any], name: str, run: Mapping[str, Any], seed: int) -> Contrast:
    ours, theirs = _keyed(reference), _keyed(run)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise ConfigError(
            f"{name} shares no outcome with {first} ({len(theirs)} and {len(ours)} there are): compare runs on the "
            "same records, such as two editors with the same --data, --skip and --edits"
        )
    of_measure: dict[str, list[Pair]] = defaultdict(list)
    for key in shared:
        of_measure[key[1]].append((ours[key], theirs[key]))
    pairs = len(shared), len(ours) - len(shared), len(theirs) - len(shared)
    order = sorted(of_measure, key=lambda measure: (FIRST.index(measure) if measure in FIRST else len(FIRST), measure))
    return Contrast(
        run=name,
        matched=pairs[0],
        only_reference=pairs[1],
        only_run=pairs[2],
        warnings=tuple(_warnings(reference, run, of_measure, pairs)),
        differences=tuple(_difference(measure, mode, of_measure[measure], seed) for measure in order for mode in MODES),
        figures=tuple(_figures(reference, run)),
    )


def _keyed(run: Mapping[str, Any]) -> dict[tuple[str, str, str, int], Mapping[str, Any]]:
    """Outcomes by record, measure and prompt; one that a record is asked again is told apart by its turn."""
    results: dict[tuple[str, str, str, int], Mapping[str, Any]] = {}
    turns: dict[tuple[str, str, str], int] = defaultdict(int)
    for outcome in run["outcomes"]:
        key = (outcome["record"], outcome["measure"], outcome["prompt"])
        results[(*key, turns[key])] = outcome
        turns[key] += 1
    return results


def _difference(measure: str, mode: str, pairs: Sequence[Pair], seed: int) -> Difference:
    of_record: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for place, (ours, theirs) in enumerate(pairs):
        of_record[str(place) if measure in OF_A_CASE else ours["record"]].append((ours[mode], theirs[mode]))
    means = [(fmean(a for a, _ in values), fmean(b for _, b in values)) for values in of_record.values()]
    changes = [round(fmean(b - a for a, b in values), DIGITS) for values in of_record.values()]
    reference, value = fmean(a for a, _ in means), fmean(b for _, b in means)
    p = sign_flip(changes, seed=seed)
    return Difference(
        measure=measure,
        mode=mode,
        records=len(changes),
        prompts=len(pairs),
        reference=reference,
        value=value,
        difference=value - reference,
        interval=bootstrap_interval(changes, seed=seed) if len(changes) > 1 else None,
        p=p,
        p_holm=p,
    )


def _warnings(
    reference: Mapping[str, Any],
    run: Mapping[str, Any],
    of_measure: Mapping[str, Sequence[Pair]],
    pairs: tuple[int, int, int],
) -> Iterator[str]:
    matched, only_reference, only_run = pairs
    differing = [name for name in DATA if reference["data"].get(name) != run["data"].get(name)]
    differing += ["edits"] if reference["edits"] != run["edits"] else []
    counted = f"{matched} outcomes are compared, {only_reference} of the reference and {only_run} of the run are not"
    if differing:
        yield f"on other data ({', '.join(differing)} differ): {counted}"
    elif only_reference or only_run:
        yield f"not asked the same: {counted}"
    other = sum(
        ours.get("expected") != theirs.get("expected")
        for measure, shared in of_measure.items()
        if measure != LOCALITY  # there it is what the base says
        for ours, theirs in shared
    )
    if other:
        yield f"{other} of the prompts compared expect another answer than in the reference"
    if reference["model"].get("fingerprint") != run["model"].get("fingerprint"):
        yield "another base model than the reference's"
    machine = [name for name in MACHINE if reference["environment"].get(name) != run["environment"].get(name)]
    if machine:
        yield f"another machine ({', '.join(machine)} differ): seconds cannot be compared"


def _figures(reference: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[Figure]:
    ours, theirs = dict(_listed(reference)), dict(_listed(run))
    for name in ours:
        (a, interval), (b, other) = ours[name], theirs.get(name, (None, None))
        if a is not None and b is not None:
            yield Figure(name=name, reference=a, value=b, difference=b - a, reference_interval=interval, interval=other)


def _listed(run: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float | None, tuple[float, float] | None]]]:
    """Name, value and interval of each figure that no outcomes stand for."""
    routing = run["routing"] or {}
    classes = routing.get("classes")
    for name, entry in classes.items() if isinstance(classes, Mapping) else ():
        yield f"routing AUROC, {name}", _with_interval(entry, "auroc")
    yield "false routes per million tokens", _with_interval(routing, "false_routes_per_million")
    yield "CPU seconds per edit", _with_interval(run, "cpu_seconds_per_edit")


def _with_interval(pair: Any, name: str) -> tuple[float | None, tuple[float, float] | None]:
    """A file may hold anything here; what is no number counts as not measured."""
    if not isinstance(pair, Mapping):
        return None, None
    value, interval = _number(pair.get(name)), pair.get(f"{name}_ci")
    if not isinstance(interval, list) or len(interval) != 2:
        return value, None
    low, high = map(_number, interval)
    return value, None if low is None or high is None else (low, high)


def _number(value: Any) -> float | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if right else None
