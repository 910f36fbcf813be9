"""Editors side by side: no record is for two things, every editor is searched alike, and what is finished stays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from editing_contexts import demo_context, records
from transformers import PreTrainedTokenizerBase

from wise.edits import Record
from wise.errors import ConfigError, EditError
from wise.lab.bench import benchmark
from wise.lab.bench.benchmark import Plan, candidates, compare_editors, finished_runs, make_plan, search
from wise.lab.bench.benchmark_table import HEAD, markdown, table
from wise.lab.bench.picture import draw_comparison
from wise.lab.eval.candidates import EDITORS, search_space

ABOUT = {"data": {"name": "facts", "sha256": "0", "skip": 0}, "model": {"name": "demo"}}
EDITOR = "ft-m"


@pytest.fixture(scope="module")
def known() -> list[Record]:
    return records(12)


@pytest.fixture(scope="module")
def base() -> tuple[Any, PreTrainedTokenizerBase]:
    context = demo_context()
    return context.model, context.encoder.tokenizer


@pytest.fixture(scope="module")
def plan(known: list[Record]) -> Plan:
    return make_plan(known, edits=3, searched=2, trials=2, least=2, texts=("The kettle was on the stove for an hour.",))


@pytest.fixture(scope="module")
def folder(base: Any, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("runs")
    compare(base, plan, found)
    return found


def compare(base: Any, plan: Plan, folder: Path, **options: Any) -> None:
    given: dict[str, Any] = {"editors": [EDITOR], "sizes": [1, 3], "about": ABOUT} | options
    compare_editors(*base, plan, folder=folder, **given)


def test_no_record_is_for_two_things(known: list[Record]) -> None:
    twice = replace(known[8], edit=replace(known[0].edit, id="again"), paraphrases=(), neighbours=())
    found = make_plan([*known[:8], twice, *known[9:]], edits=3, searched=2, skip=1)
    assert [r.edit.id for r in found.measured] == [r.edit.id for r in known[1:4]]
    assert [r.edit.id for r in found.searched] == [r.edit.id for r in known[4:6]]
    prompts = [{r.edit.prompt for r in part} for part in (found.measured, found.searched, found.training)]
    assert not (prompts[0] & prompts[1] | prompts[1] & prompts[2] | prompts[0] & prompts[2])
    measured_again = make_plan([*known[:8], twice, *known[9:]], edits=3, searched=2)
    assert "again" not in {record.edit.id for record in measured_again.training}
    assert not any(r.generation_prompts for r in (*found.measured, *found.searched))
    with pytest.raises(EditError, match="20 .* 2 .* 12"):
        make_plan(known, edits=20, searched=2)


def test_no_wording_of_what_is_measured_is_searched_or_trained_on(known: list[Record]) -> None:
    """Sets ask one thing in several records; a search on the same question is a search on what is measured."""
    question = known[0].paraphrases[0]
    again = [
        replace(known[i], edit=replace(known[i].edit, prompt=question, subject=None, id=f"again {i}")) for i in (3, 8)
    ]
    found = make_plan([*known[:3], again[0], *known[4:8], again[1], *known[9:]], edits=3, searched=2)
    assert [r.edit.id for r in found.searched] == [r.edit.id for r in known[4:6]]
    assert [r.edit.id for r in found.training] == [r.edit.id for r in (*known[6:8], *known[9:])]
    own = replace(again[0], edit=known[3].edit)  # the control
    assert own.edit.id in {r.edit.id for r in make_plan([*known[:3], own, *known[4:]], edits=3, searched=2).searched}


@pytest.mark.parametrize("name", [name for name, editor in EDITORS.items() if editor.edits])
def test_every_editor_is_searched_alike(name: str) -> None:
    tried = candidates(name, 4, seed=0)
    assert len(tried) == 4 and tried[0] == {}
    assert all(set(settings) == set(search_space(name)) for settings in tried[1:])
    assert len({json.dumps(settings) for settings in tried}) == 4


def test_a_search_takes_what_does_best(base: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    hopeless = {"learning_rate": 1e-9}
    monkeypatch.setattr("wise.lab.bench.benchmark.candidates", lambda *_, **__: [hopeless, {}, {"layer": 99}])
    found = search(*base, EDITOR, plan)
    assert found["chosen"] == {} and found["records"] == 2
    worst, best, refused = found["trials"]
    assert worst["figures"]["reliability"] == 0.0 < best["figures"]["reliability"]
    assert refused["score"] < worst["score"] < best["score"] and "layer=99" in refused["refused"]


def test_short_streams_are_repeated_on_other_records(plan: Plan) -> None:
    assert [len(plan.streams(size)) for size in (1, 2, 3)] == [2, 1, 1]
    first, second = plan.streams(1)
    assert (*first, *second) == plan.measured[:2]
    assert replace(plan, least=100).streams(1) == [(record,) for record in plan.measured]
    longer = replace(plan, measured=(*plan.measured, *plan.searched), least=3)
    assert [len(longer.streams(size)) for size in (1, 2, 3)] == [3, 2, 1], "at least three edits of each size"


def test_a_comparison_is_runs_of_the_same_records(plan: Plan, folder: Path) -> None:
    groups = finished_runs(folder)
    assert [[(run["editor"], run["edits"]) for run in group] for group in groups] == [[(EDITOR, 1)] * 2, [(EDITOR, 3)]]
    asked = [[o["record"] for o in r["outcomes"] if o["measure"] == "reliability"] for group in groups for r in group]
    ids = [record.edit.id for record in plan.measured]
    assert asked == [ids[:1], ids[1:2], ids]
    assert [run["perplexity"] is None for group in groups for run in group] == [False, True, False]
    runs = [groups[0][0], groups[1][0]]
    searched = json.loads((folder / f"{EDITOR}.search.json").read_text())
    assert len(searched["trials"]) == 2 and all(run["search"] == searched for run in runs)
    assert runs[0]["config"] == runs[1]["config"] and runs[0]["config"]["seed"] == 0
    assert runs[1]["stored_bytes_per_edit"] > 0


def test_what_is_done_is_not_done_again(base: Any, plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("wise.lab.bench.benchmark.evaluate", lambda *_, **__: pytest.fail("done again"))
    compare(base, plan, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ConfigError, match="a run of other records"):
        compare(base, replace(plan, measured=plan.measured[::-1]), folder)
    with pytest.raises(ConfigError, match="did you mean 'rome'"):
        compare(base, plan, folder, editors=["rom"])


@pytest.mark.parametrize(
    ("changed", "sha256", "other"),
    [
        ({"seed": 1}, "0", "seed"),
        ({"trials": 1}, "0", "trials, searched records"),
        ({"searched": ()}, "0", "searched records"),
        ({"corpus": ("The tea was cold.",)}, "0", "corpus"),
        ({"texts": ("The tea was cold.",)}, "0", "text"),
        ({}, "1", "data"),
        ({}, "0", "model"),
    ],
)
def test_searches_and_runs_of_something_else_are_not_gone_on_with(
    base: Any,
    plan: Plan,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    sha256: str,
    other: str,
) -> None:
    """Nor are the runs where the search is done again."""
    monkeypatch.setattr("wise.lab.bench.benchmark.search", lambda *_, **__: {"chosen": {}, "trials": []})
    copied = shutil.copytree(folder, tmp_path / "runs")
    if other == "model":
        monkeypatch.setattr("wise.lab.bench.benchmark.weights_digest", lambda _: "other weights")
    for file in (f"{EDITOR}.search.json", f"{EDITOR}-1.0.json"):
        with pytest.raises(ConfigError, match=f"{file}: was made with other {other};"):
            compare(base, replace(plan, **changed), copied, about=ABOUT | {"data": {"sha256": sha256}})
        (copied / f"{EDITOR}.search.json").unlink()


def test_an_interrupted_search_goes_on(
    base: Any, plan: Plan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name == f"{EDITOR}: search" and done == 1:
            raise KeyboardInterrupt

    tried: list[Any] = []
    evaluated = benchmark.evaluate
    monkeypatch.setattr(benchmark, "evaluate", lambda *a, **k: tried.append(k["settings"]) or evaluated(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        compare(base, plan, tmp_path, sizes=[], progress=interrupt)
    compare(base, plan, tmp_path, sizes=[])
    whole, found = (json.loads((place / f"{EDITOR}.search.json").read_text()) for place in (folder, tmp_path))
    assert len(tried) == len(whole["trials"]) == 2  # no settings were tried twice
    for name in ("chosen", "basis", "records"):
        assert found[name] == whole[name]
    assert [t["figures"] for t in found["trials"]] == [t["figures"] for t in whole["trials"]]


def test_no_editor_is_put_beside_others_of_something_else(
    base: Any, plan: Plan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of a folder holds all its runs; those of an editor that was not named were not looked at."""
    copied = shutil.copytree(folder, tmp_path / "runs")
    before = sorted(path.name for path in copied.iterdir())
    others = {"seed": (replace(plan, seed=1), ABOUT), "skip": (plan, ABOUT | {"data": ABOUT["data"] | {"skip": 3}})}
    for name, (changed, about) in others.items():
        with pytest.raises(ConfigError, match=f"{EDITOR}.search.json: was made with other {name};"):
            compare(base, changed, copied, editors=["grace"], about=about)
    assert sorted(path.name for path in copied.iterdir()) == before
    made: list[str] = []
    monkeypatch.setattr("wise.lab.bench.benchmark.search", lambda *given, **_: made.append(given[2]) or {"chosen": {}})
    compare(base, plan, copied, editors=["grace"], sizes=[])  # the control
    assert made == ["grace"]


def test_the_table_and_the_picture_are_of_the_runs(folder: Path, tmp_path: Path) -> None:
    groups = finished_runs(folder)
    rows = table(groups)
    assert all(len(row) == len(HEAD) for row in rows)
    means = [fmean(run[kind]["reliability"] for run in groups[0]) for kind in ("generated", "teacher_forced")]
    assert rows[0][:4] == (EDITOR, "1", "2", " / ".join(f"{mean:.3f}" for mean in means))
    trial = {"settings": {}, "preparing_seconds": 12.34}
    assert table([[dict(groups[1][0]) | {"search": {"chosen": {}, "trials": [trial]}}]])[0][-1] == "12.3"
    lines = markdown(HEAD, table(groups)).splitlines()
    assert len(lines) == 4 and lines[3].startswith(f"| {EDITOR} | 3 | 1 |")
    draw_comparison(groups, tmp_path / "figure.png", title="two runs")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError):
        draw_comparison(groups, tmp_path / "figure.nothing", title="two runs")
