"""Compares editors: every editor edits the same records, with settings that the same small search found.

A search tries an editor's own defaults and a few random draws of its settings on records that are not measured, and
keeps what does best when the model speaks. Then each size of stream is one run of `evaluate`, in a file of its own,
so that a comparison goes on where it was interrupted and further editors can be added to it.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.edits import Record
from wise.errors import ConfigError, EditError
from wise.lab.eval.candidates import EDITORS, Learning, find_editor, search_space
from wise.lab.eval.prompting import apart
from wise.lab.eval.quality import RELIABILITY
from wise.lab.eval.results_file import read_run, with_source, write_json
from wise.lab.eval.run import Scope, evaluate
from wise.memory.artifact import digest_of_json
from wise.memory.fingerprint import weights_digest
from wise.progress import Progress, silent

CANDIDATES = 10_000
"""Combinations of settings that are listed before any is drawn."""
SEARCHED = ("reliability", "generalization", "locality")
"""What a search goes by: the mean of these, generated."""
TRAINING = 1000
SEARCH = ".search.json"
MEASURED = tuple(name for name, editor in EDITORS.items() if editor.edits)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which records are for what; no record is for two things."""

    measured: tuple[Record, ...]
    """As many as the longest stream has."""
    searched: tuple[Record, ...]
    training: tuple[Record, ...]
    least: int = 20
    """Edits measured at each size, at least, as far as there are records: a shorter stream is made again of the next
    ones, and again."""
    trials: int = 4
    """Settings that a search tries, the defaults among them; 1 takes the defaults without a search."""
    seed: int = 0
    texts: tuple[str, ...] | None = None
    corpus: tuple[str, ...] | None = None
    cache: Path | None = None

    def streams(self, size: int) -> list[tuple[Record, ...]]:
        """The streams of a size, none of which has a record of another."""
        count = max(1, min(ceil(self.least / size), len(self.measured) // size))
        return [self.measured[i * size : (i + 1) * size] for i in range(count)]

    @property
    def learning(self) -> Learning:
        return Learning(corpus=self.corpus, training=self.training, cache=self.cache)


def make_plan(records: Sequence[Record], *, edits: int, searched: int, skip: int = 0, **rest: Any) -> Plan:
    """A plan over the records of a file, in their order: those to measure, to search on, and to train on, of which none
    asks in any wording what one of the others does. Openings of free text, which are not measured here, are left out.
    Raises EditError where there are too few."""
    bare = [replace(record, generation_prompts=()) for record in records[skip:]]
    measured, others = bare[:edits], apart(bare[edits:], bare[:edits])
    if len(measured) < edits or len(others) < searched:
        raise EditError(
            f"{edits} records to measure and {searched} others to search on were asked for after the first {skip}, and "
            f"there are {len(measured) + len(others)}; ask for fewer edits, or search on fewer"
        )
    searching = others[:searched]
    training = apart(others[searched:], searching)[:TRAINING]
    return Plan(measured=tuple(measured), searched=tuple(searching), training=tuple(training), **rest)


def candidates(editor: str, count: int, *, seed: int) -> list[dict[str, Any]]:
    """Settings to try: none, which leaves the defaults, and then combinations drawn without repetition."""
    space = search_space(editor)
    combined = [dict(zip(space, values, strict=True)) for values in islice(product(*space.values()), CANDIDATES)]
    drawn = random.Random(f"{seed} {editor}").sample(combined, min(count - 1, len(combined))) if space else []
    return [{}, *drawn]


def search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    editor: str,
    plan: Plan,
    *,
    earlier_trials: Sequence[dict[str, Any]] = (),
    keep: Callable[[list[dict[str, Any]]], None] = lambda trials: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What was tried with an editor, ready for JSON: `chosen`, the settings that did best, and all `trials`.

    A draw that an editor refuses on this base counts as tried, and says why. earlier_trials: those of a search that
    was interrupted. keep: is given all trials after each.
    """
    combinations = candidates(editor, plan.trials, seed=plan.seed)
    if len(combinations) == 1:
        return {"chosen": {}, "trials": [], "records": 0}
    trials = list(earlier_trials)
    for settings in combinations[len(trials) :]:
        trials.append(_attempt(model, tokenizer, editor, settings, plan))
        keep(trials)
        progress(f"{editor}: search", len(trials), len(combinations))
    best = max(trials, key=lambda trial: trial["score"])  # of equals the first
    return {"chosen": best["settings"], "trials": trials, "records": len(plan.searched)}


def _attempt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, editor: str, settings: dict[str, Any], plan: Plan
) -> dict[str, Any]:
    try:
        result = evaluate(
            model,
            tokenizer,
            plan.searched,
            editor=editor,
            settings={"seed": plan.seed, **settings},
            learning=plan.learning,
        )
    except ConfigError as error:
        if not settings:  # the defaults must work
            raise
        return {"settings": settings, "score": -1.0, "refused": str(error)}
    figures = {name: result.quality.generated[name] for name in SEARCHED}
    values = [value for value in figures.values() if value is not None]
    return {
        "settings": settings,
        "score": fmean(values) if values else 0.0,
        "figures": figures,
        "seconds": result.seconds,
        "preparing_seconds": result.preparing_seconds,
    }


def compare_editors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    *,
    editors: Sequence[str],
    sizes: Sequence[int],
    folder: Path,
    about: Mapping[str, Mapping[str, Any]],
    progress: Progress = silent,
) -> None:
    """Searches and runs what is not in `folder` yet: `EDITOR.search.json`, and `EDITOR-SIZE.STREAM.json`, each the file
    of a run with the search in it. about: the names of the data and the model, for each run.

    Raises ConfigError for an unknown editor, or a folder of other records or texts, another model or seed, or other
    trials.
    """
    for editor in editors:
        find_editor(editor)
    folder.mkdir(parents=True, exist_ok=True)
    basis = {  # what all searches and runs of a folder have in common
        "data": about["data"]["sha256"],
        "skip": about["data"].get("skip", 0),
        "model": weights_digest(model),
        "precision": str(model.dtype).removeprefix("torch."),
        "seed": plan.seed,
        "trials": plan.trials,
        "searched records": [record.edit.id for record in plan.searched] if plan.trials > 1 else [],
        "corpus": digest_of_json(plan.corpus),
        "text": digest_of_json(plan.texts),
    }
    searched: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob(f"*{SEARCH}")):  # of other editors too: one table holds all
        searched[file.name.removesuffix(SEARCH)] = saved_search = json.loads(file.read_text(encoding="utf-8"))
        _check_basis(file, saved_search, basis)
    for editor in editors:
        if "chosen" not in searched.get(editor, {}):

            def keep(trials: list[dict[str, Any]], file: Path = folder / f"{editor}{SEARCH}") -> None:
                write_json(file, {"trials": trials, "basis": basis})

            earlier = searched.get(editor, {}).get("trials", ())
            saved_search = search(
                model, tokenizer, editor, plan, earlier_trials=earlier, keep=keep, progress=progress
            )
            searched[editor] = saved_search | {"basis": basis}
            write_json(folder / f"{editor}{SEARCH}", searched[editor])
    for size, editor in product(sizes, editors):  # short streams first: all editors can be seen early
        for number, records in enumerate(plan.streams(size)):
            file = folder / f"{editor}-{size}.{number}.json"
            if file.exists():
                _check_same(file, basis, records)
                continue
            result = evaluate(
                model,
                tokenizer,
                records,
                editor=editor,
                settings={"seed": plan.seed, **searched[editor]["chosen"]},
                scope=Scope(texts=None if number else plan.texts),  # reading them once a size is enough
                learning=plan.learning,
                progress=progress,
            )
            run = result.to_dict(outcomes=True) | {"search": searched[editor]}
            write_json(file, with_source(run, about))


def _check_basis(file: Path, search: Mapping[str, Any], basis: Mapping[str, Any]) -> None:
    saved_basis = search.get("basis", {})
    differing = [name for name in basis if saved_basis.get(name) != basis[name]]
    if differing:
        raise ConfigError(f"{file}: was made with other {', '.join(differing)}; delete it, or give another folder")


def _check_same(file: Path, basis: Mapping[str, Any], records: Sequence[Record]) -> None:
    run = read_run(file)
    _check_basis(file, run.get("search", {}), basis)
    record_ids = {outcome["record"] for outcome in run["outcomes"] if outcome["measure"] == RELIABILITY}
    if not record_ids <= {record.edit.id for record in records}:
        raise ConfigError(f"{file}: a run of other records; delete it, or give another folder")


def finished_runs(folder: Path) -> list[list[Mapping[str, Any]]]:
    """The runs in a folder: for each editor, in the order of `EDITORS`, and each size, those of its streams."""
    results: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for place, editor in enumerate(EDITORS):
        for file in sorted(folder.glob(f"{editor}-*.*.json")):
            run = read_run(file)
            if run["editor"] == editor:
                results[place, run["edits"]].append(run)
    return [results[key] for key in sorted(results)]
