"""Other questions about an edit's subject: which the router leaves alone, and what is reported of the others."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from chats import TEMPLATE
from pydantic import ValidationError
from tiny import WordReader, tiny_model, tiny_tokenizer

import wise
from wise.memory.state import MemoryState
from wise.serving.settings import Settings
from wise.training.router.calibration import relation_kinds

QUESTIONS = {
    "subjects": {"thing": ["w1"]},
    "thing": {
        "own": {"wordings": ["w51 {} w52"]},
        "near": {"wordings": ["w51 {} w53"]},
        "far": {"wordings": ["w51 {} w54 w58"]},
        "alike": {"wordings": ["w51 {} w52 w53"]},
    },
}
CENTRES = ("this w51 w52 w70.", "this w51 w53 w56 w57 w58", "this w51 w54 w58", "this w51 w52 w53 w56")
EDIT = wise.Edit(prompt="w50 w51 w52", target="w70", subject="w50")
NEAR, FAR, ALIKE = "sister: w51 w50 w53", "sister: w51 w50 w54 w58", "w51 w50 w52 w53"


@pytest.fixture(autouse=True)
def questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wise.training.build_trainer.builtin_questions", lambda: QUESTIONS)


def chat_model(require: str = "listed", *, kinds: bool = True) -> wise.WiseModel:
    """kinds: the reader knows of which kind of subject its relations are; else each is of a kind of its own."""
    tokenizer, reader = tiny_tokenizer(), WordReader()
    tokenizer.chat_template = TEMPLATE
    reader.relation_centres = reader.read(CENTRES)
    reader.relation_kinds = relation_kinds(QUESTIONS) if kinds else torch.arange(len(CENTRES))
    config = wise.WiseConfig(layer=1, terminator="w9", require=require)
    return wise.wrap(tiny_model("llama"), tokenizer, config, reader=reader)


def test_a_question_that_is_much_nearer_to_a_rival_does_not_ask_for_the_edit() -> None:
    for kinds, opens in ((True, False), (False, True)):
        model = chat_model(kinds=kinds)
        model.edit(EDIT)
        moved = [answer.text == "w70" for answer in model.ask(["w51 w50 w54 w58", "w50 w51 w52"])]
        assert moved == [opens, True], f"with rivals: {kinds}"


@pytest.mark.parametrize(("require", "status"), [("prompt", "partial"), ("listed", "partial"), ("sisters", "failed")])
def test_a_sister_question_that_moves_is_reported_and_served_if_the_settings_say_so(require: str, status: str) -> None:
    model = chat_model(require)
    (outcome,) = model.edit(EDIT).outcomes
    assert {name: held for name, held in outcome.holds.items() if not held} == {NEAR: False} and outcome.holds[FAR]
    assert outcome.also_answers == (ALIKE,), "too near to be promised anything"
    assert outcome.status == status and len(model.edits) == (status == "partial")
    assert (model.ask("w51 w50 w53")[0].text == "w70") == (status == "partial")


def test_a_service_may_change_what_its_store_requires() -> None:
    stored = wise.WiseConfig(seed=7)
    assert Settings().wise_config(stored) == stored
    assert Settings(require="sisters").wise_config(stored) == replace(stored, require="sisters")
    with pytest.raises(ValidationError):
        Settings(require="all")


def test_what_is_required_of_an_edit_that_misses_a_listed_promise() -> None:
    listed = wise.Edit(prompt="w50 w51 w52", target="w70", subject="w50", locality=("w51 w50 w52",))
    for require, status in (("prompt", "partial"), ("listed", "failed")):
        (outcome,) = chat_model(require).edit(listed).outcomes
        assert (outcome.status, outcome.holds["locality[0]"]) == (status, False)


def test_an_answer_that_the_base_gives_too_is_not_moved() -> None:
    model = chat_model()
    model.edit(EDIT)
    with model.disabled():
        verdict = model.trainer.verifier.ask(model.state, [EDIT], lambda state: nullcontext(model.model))[EDIT.id]
    assert verdict.results[NEAR] and not verdict.results["chat: prompt"]


def test_what_other_live_edits_ask_of_the_subject_is_a_sister_question() -> None:
    model = chat_model()
    other = wise.Edit(prompt="w50 w60 w61", target="w71", subject="w50")
    elsewhere = wise.Edit(prompt="w80 w60 w61", target="w71", subject="w80")
    first, *_ = model.edit([EDIT, other, elsewhere]).outcomes
    assert first.holds["sister: w50 w60 w61"] and "sister: w80 w60 w61" not in first.holds


def test_a_state_without_the_edit_says_nothing_of_its_sisters() -> None:
    model = chat_model()
    verdict = model.trainer.verifier.ask(MemoryState(), [EDIT], model.serving)[EDIT.id]
    assert not verdict.keeps("prompt") and verdict.holds["sisters"] == {}
