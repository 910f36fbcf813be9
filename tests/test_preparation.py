"""The floors of an untrained router: found for the base at hand, with questions that ship, unless they are set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise import preparation
from wise.demo import model_path
from wise.preparation import FALSE_ROUTES, PLAIN
from wise.questions import shipped_lessons
from wise.training.calibration import Facts
from wise.training.evidence import Evidence, observe
from wise.training.lesson import Lesson


def demo(**settings: Any) -> wise.WiseModel:
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    return wise.wrap(model, AutoTokenizer.from_pretrained(model_path()), wise.WiseConfig(mode="hybrid", **settings))


def floors(wrapped: wise.WiseModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    background = wrapped.trainer.background
    assert background.subject_space is not None
    return background.key_space.floors, background.subject_space.floors


def test_of_other_questions_about_a_subject_about_the_stated_share_reaches_the_floor() -> None:
    wrapped = demo()
    relation, subject = wrapped.trainer.background.key_space, wrapped.trainer.background.subject_space
    assert subject is not None

    def read(asked: Sequence[Lesson], surroundings: int) -> Evidence:
        assert wrapped.reader is not None
        return observe(wrapped.trainer.spliced, wrapped.reader, wrapped.encoder, asked, relation.recent, surroundings)

    asked = shipped_lessons(seed=7, subjects=1)  # of other subjects than the floors were found on
    first = list({each.fact: each for each in reversed(asked) if not each.negative}.values())
    others = [each for each in asked if each.negative]
    facts = Facts.of(read, first, (relation, subject))
    cosines = (relation.queries(read(others, 0).relation) * facts.keys[facts.own(others)]).sum(-1)
    passed, plain = (float((cosines >= floor).float().mean()) for floor in (relation.floor(1), PLAIN[0]))
    assert passed <= FALSE_ROUTES + 3 * (FALSE_ROUTES / len(others)) ** 0.5 < plain, (passed, plain)


def test_what_is_set_is_kept_and_nothing_is_asked_where_both_are(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [each for each in shipped_lessons(subjects=2) if each.fact.startswith(("city", "person"))]
    monkeypatch.setattr(preparation, "shipped_lessons", lambda **_: few)
    found = floors(demo())
    assert floors(demo(relation_floor=0.3)) == ((0.3,), found[1])
    assert floors(demo(subject_floor=0.4)) == (found[0], (0.4,))
    monkeypatch.setattr(preparation, "calibrate", lambda *_: pytest.fail("there was nothing to be found"))
    assert floors(demo(relation_floor=0.3, subject_floor=0.4)) == ((0.3,), (0.4,))


def test_a_tokenizer_that_does_not_know_the_words_gets_plain_floors() -> None:
    wrapped = wise.wrap(tiny_model("llama"), tiny_tokenizer(), wise.WiseConfig(mode="hybrid", terminator=""))
    assert not wrapped.encoder.reads("The mother tongue of Ada Lovelace is") and wrapped.encoder.reads("w4 w5")
    assert not wrapped.encoder.reads("w4 " * wrapped.encoder.context)
    assert floors(wrapped) == ((PLAIN[0],), (PLAIN[1],))


def test_an_edits_own_question_reaches_a_floor_that_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "FALSE_ROUTES", 1e-6)  # of so few nothing can be promised
    few = [each for each in shipped_lessons(subjects=2) if each.fact.startswith(("city", "person"))]
    monkeypatch.setattr(preparation, "shipped_lessons", lambda **_: few)
    wrapped = demo()
    assert {*floors(wrapped)[0], *floors(wrapped)[1]} == {0.99}
    edit = wise.Edit(prompt="The capital of France is", target="Lyon", subject="France")
    assert wrapped.edit(edit).failed == () and wrapped.ask(edit.prompt)[0].text == "Lyon"
    assert torch.isfinite(wrapped.state.keys[edit.id]).all()
