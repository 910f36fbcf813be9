"""The questions that ship: what a lesson promises, and that a router learns from them without a record."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import wise
from wise.cli.app import app
from wise.demo import model_path
from wise.questions import OTHERS, SUBJECTS, _stock, shipped_lessons
from wise.training import router_training
from wise.training.router_file import load_router


def test_every_wording_names_its_subject_once_and_no_two_relations_of_a_kind_share_one() -> None:
    stock = _stock()
    assert set(stock) == {"subjects", *stock["subjects"]}
    for kind, subjects in stock["subjects"].items():
        assert len(set(subjects)) == len(subjects) >= SUBJECTS
        seen: dict[str, str] = {}
        for name, about in stock[kind].items():
            assert set(about) == {"wordings"}
            for wording in about["wordings"]:
                assert wording.count("{}") == 1, wording
                assert seen.setdefault(wording, name) == name and wording == wording.strip()
            asked = [wording.endswith("?") for wording in about["wordings"]]
            assert asked.count(False) >= 2 and any(asked), f"{kind}.{name}"


def test_a_lesson_holds_its_subject_and_asks_something_else_only_where_it_says_so() -> None:
    lessons = shipped_lessons()
    own: dict[str, set[str]] = defaultdict(set)
    for each in lessons:
        assert each.subject and each.subject in each.prompt, each
        if not each.negative:
            own[each.fact].add(each.relation)
    assert len(own) == len({each.relation for each in lessons}) * SUBJECTS
    assert all(len(relations) == 1 for relations in own.values())
    negatives = [each for each in lessons if each.negative]
    assert all(each.relation not in own[each.fact] for each in negatives)
    assert len(negatives) > (OTHERS - 1) * len(own)
    assert {each.relation for each in negatives} <= {relation for one in own.values() for relation in one}
    large = [each.prompt for each in lessons if each.prompt.startswith("The Danube")]
    assert large and not any(each.prompt.startswith("the ") for each in lessons)


def test_they_are_the_same_for_a_seed() -> None:
    assert shipped_lessons() == shipped_lessons(seed=0) != shipped_lessons(seed=1)


def test_without_records_the_command_learns_from_them_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_training, "STEPS", 5)
    monkeypatch.setattr(router_training, "GATE_STEPS", 5)
    few = [each for each in shipped_lessons() if each.fact.startswith("city")]
    monkeypatch.setattr("wise.questions.shipped_lessons", lambda *, seed: few)
    monkeypatch.setattr("wise.model.shipped_lessons", lambda *, seed: few)
    measured, file = tmp_path / "m.jsonl", tmp_path / "r.safetensors"
    measured.write_text(json.dumps({"prompt": "The mayor of Bergen is", "target": "Nobody", "subject": "Bergen"}))
    common = ["train-router", "--model", str(model_path())]
    out = CliRunner().invoke(app, [*common, "--apart", str(measured), "--output", str(file), "--json"])
    assert out.exit_code == 0, out.output
    assert "no records given, so questions that ship with wise" in out.stdout
    told = json.loads(out.stdout.splitlines()[-1])
    about = {each.fact for each in few if each.subject == "Bergen"}
    assert about and told["facts"] == len({each.fact for each in few}) - len(about) and told["data"] is None
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    wrapped = wise.wrap(
        model, AutoTokenizer.from_pretrained(model_path()), wise.WiseConfig(mode="hybrid"), router=file
    )
    assert load_router(file, wrapped.fingerprint()).facts == told["facts"]
    assert wrapped.learn_router().facts == told["facts"] + len(about)
    wrong = CliRunner().invoke(app, [*common, "--limit", "3", "--output", str(tmp_path / "n")])
    assert wrong.exit_code == 2 and "give them with --data" in wrong.stderr
