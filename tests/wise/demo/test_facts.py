"""The demo's facts and phrasings: well formed, unique, and apart from what training kept out."""

from __future__ import annotations

from collections import Counter

import pytest

from wise.demo.facts import (
    Fact,
    counterfactual,
    held_out_prompts,
    is_unseen_pair,
    load_facts,
    load_templates,
    neighbours,
    train_prompts,
)

TAUGHT = load_facts("train")
KEPT_OUT = load_facts("test")
FRANCE = Fact(relation="capital", subject="France", object="Paris", split="train")


def test_there_are_as_many_facts_as_promised() -> None:
    assert len(TAUGHT) >= 1_100
    assert len(KEPT_OUT) >= 50
    assert len({fact.relation for fact in TAUGHT}) >= 14
    assert {fact.relation for fact in KEPT_OUT} == {fact.relation for fact in TAUGHT} == set(load_templates())


def test_a_subject_has_one_object_in_a_relation() -> None:
    counts = Counter((fact.relation, fact.subject) for fact in TAUGHT + KEPT_OUT)
    assert [pair for pair, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("field", ["relation", "subject", "object"])
def test_fields_are_clean(field: str) -> None:
    values = [getattr(fact, field) for fact in TAUGHT + KEPT_OUT]
    assert all(value and value == " ".join(value.split()) and "{" not in value for value in values)


def test_objects_leave_the_full_stop_to_the_sentence() -> None:
    assert [fact for fact in TAUGHT + KEPT_OUT if not fact.object[-1].isalnum() or "." in fact.object] == []


def test_each_relation_is_phrased_often_enough() -> None:
    for phrasings in load_templates().values():
        assert len(phrasings.train) >= 4 and len(phrasings.held_out) >= 1
        assert any(t.startswith("Question:") and "Answer:" in t for t in phrasings.train)
        assert all(t.count("{}") == 1 and t == t.strip() for t in phrasings.train + phrasings.held_out)


def test_no_phrasing_serves_two_purposes() -> None:
    counts = Counter(t for p in load_templates().values() for t in p.train + p.held_out)
    assert [template for template, count in counts.items() if count > 1] == []


def test_no_prompt_begins_with_a_small_article() -> None:
    prompts = [p for fact in TAUGHT + KEPT_OUT for p in train_prompts(fact) + held_out_prompts(fact)]
    assert [prompt for prompt in prompts if prompt.startswith("the ")] == []


def test_prompts_of_a_fact() -> None:
    assert FRANCE in TAUGHT
    assert train_prompts(FRANCE)[0] == "The capital of France is"
    assert all("France" in prompt for prompt in train_prompts(FRANCE) + held_out_prompts(FRANCE))
    assert not set(train_prompts(FRANCE)) & set(held_out_prompts(FRANCE))


def test_one_pair_in_twenty_is_kept_out_and_never_the_first() -> None:
    pairs = [(fact, t) for fact in TAUGHT for t in load_templates()[fact.relation].train]
    share = sum(is_unseen_pair(fact, template) for fact, template in pairs) / len(pairs)
    assert 0.03 < share < 0.06
    assert not any(is_unseen_pair(fact, load_templates()[fact.relation].train[0]) for fact in TAUGHT)


def test_neighbours_share_relation_and_object_only() -> None:
    for fact in TAUGHT[::7] + KEPT_OUT:
        for other in neighbours(fact):
            assert (other.relation, other.object, other.split) == (fact.relation, fact.object, "train")
            assert other.subject != fact.subject
    assert neighbours(FRANCE) == ()
    assert sum(bool(neighbours(fact)) for fact in TAUGHT) > len(TAUGHT) / 2


def test_counterfactuals_are_wrong_known_and_repeatable() -> None:
    objects = {(fact.relation, fact.object) for fact in TAUGHT}
    for fact in TAUGHT:
        target = counterfactual(fact, seed=0)
        assert target != fact.object and (fact.relation, target) in objects
        assert target == counterfactual(fact, seed=0)
    moved = sum(counterfactual(fact, seed=0) != counterfactual(fact, seed=1) for fact in TAUGHT)
    assert moved > len(TAUGHT) / 2
