"""Probes: matched as documented, counted only where their conditions hold, the base beside the edited model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tiny import EOS, text, wrap_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.lab.eval.probing import MAX_PROBES, begins_with, normalised
from wise.lab.eval.quality import Quality, measure_quality
from wise.probes import Probe, Query

KIND = "ripple.compositionality_1"


def query(prompt: str, *answers: str) -> Query:
    return Query(prompt=prompt, answers=answers)


def probe(*queries: Query, kind: str = KIND, **fields: Any) -> Probe:
    return Probe(kind=kind, queries=queries, **fields)


def record(start: int, *probes: Probe, **fields: Any) -> wise.Record:
    edit = wise.Edit(id=f"r{start}", prompt=text([start, start + 1]), target="w40")
    return wise.Record(edit=edit, probes=probes, **fields)


Said = Mapping[str, str]
"""Prompt -> answer, which then stops; to all else nothing is answered."""


def measure(
    monkeypatch: pytest.MonkeyPatch, records: Sequence[wise.Record], *, edited: Said, base: Said | None = None
) -> Quality:
    """What a model with these answers is measured as."""
    wrapped = wrap_tiny("llama")
    begin = len(wrapped.encoder.bos)
    assert wrapped.encoder.terminator == (EOS,)

    def speak(_model: Any, prompts: Sequence[Sequence[int]], **_: Any) -> list[list[int]]:
        said = (base or {}) if wrapped.layer.memory is None else edited
        answers = [said.get(text(prompt[begin:]), "") for prompt in prompts]
        return [[*(int(word[1:]) for word in answer.split()), EOS] for answer in answers]

    monkeypatch.setattr("wise.lab.eval.prompting.greedy", speak)
    return measure_quality(wrapped, records)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The United States", "united states", True),
        (' "Paris". ', "paris", True),
        ("an  Apple\npie!", "apple pie", True),
        ("(London)", "London", True),
        ("STRASSE", "straße", True),
        ("Paris, France", "Paris", False),
        ("Theodore", "odore", False),
        ("A", "a", True),
        ("C++", "C", False),
        ("...", "", False),
        ("3.5", "35", False),
        ("U.S.", "U.S", True),
        ("Answer: the Alps", "Alps", True),
        ("An answer: Alps", "Alps", False),
        ("Answer:", "", False),
        ("-5", "5", False),
        ('"-5".', "-5", True),
        ("- -5", "-5", True),
        ("- 5", "5", True),
        ('- "Paris" -', "Paris", True),
        ("--Paris", "Paris", True),
        ("---", "", False),
        ('The "United States"', "United States", True),
        ("The -5", "5", False),
    ],
)
def test_answers_are_compared_as_documented(one: str, other: str, same: bool) -> None:
    assert (normalised(one) == normalised(other)) == same


def test_any_answer_is_right_and_one_that_does_not_stop_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [record(20, probe(query("w60 w61", "w70", "w71 w72")))]
    for said, right in (("w70", 1), ("w71 w72", 1), ("w71", 0), ("w70 w71", 0), ("", 0)):
        found = measure(monkeypatch, asked, edited={"w60 w61": said}).probes[KIND]
        assert (found["generated"], found["n"]) == (right, 1), said
    wrapped = wrap_tiny("llama")
    monkeypatch.setattr("wise.lab.eval.prompting.greedy", lambda _model, prompts, **_: [[70]] * len(prompts))
    assert measure_quality(wrapped, asked).probes[KIND]["generated"] == 0


@pytest.mark.parametrize(("need", "right"), [("any", 1), ("all", 0)])
def test_one_right_query_is_enough_or_all_are_needed(monkeypatch: pytest.MonkeyPatch, need: str, right: int) -> None:
    asked = record(20, probe(query("w60", "w70"), query("w61", "w71"), kind="multi_hop", need=need))
    quality = measure(monkeypatch, [asked], edited={"w60": "w4", "w61": "w71"})
    assert quality.probes["multi_hop"]["generated"] == right
    (outcome,) = [o for o in quality.outcomes if o.measure == "multi_hop"]
    assert (outcome.prompt, outcome.expected, outcome.answer) == ("w60\nw61", "w70\nw71", "w4\nw71")
    assert outcome.generated == right
    both = measure(monkeypatch, [asked], edited={"w60": "w70", "w61": "w71"}).probes["multi_hop"]
    assert both["generated"] == 1


def test_a_probe_counts_where_the_unedited_base_knows_its_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = (query("w62", "w72"), query("w63", "w73"))
    asked = [record(20, probe(query("w60", "w70"), conditions=conditions), probe(query("w61", "w71")))]
    edited = {"w60": "w70", "w62": "w72", "w63": "w73"}
    for base, counted in ((edited, True), ({"w62": "w72"}, False)):
        found = measure(monkeypatch, asked, edited=edited, base=base).probes[KIND]
        assert found["n"] == 1 + counted and found["conditions_failed"] == 1 - counted
        assert found["generated"] == (0.5 if counted else 0.0)
        assert found["base_generated"] == (0.5 if counted else 0.0)
    alone = [record(20, probe(query("w60", "w70"), conditions=conditions))]
    found = measure(monkeypatch, alone, edited=edited).probes[KIND]
    assert found["generated"] is found["teacher_forced"] is found["base_generated"] is None
    assert (found["n"], found["conditions_failed"]) == (0, 1)


@pytest.mark.parametrize(
    ("said", "known"),
    [("w72", True), ("w72 w9 w9", True), ("w75", True), ("w720", False), ("w9 w72", False), ("", False)],
)
def test_a_condition_is_met_by_an_answer_that_begins_right(
    monkeypatch: pytest.MonkeyPatch, said: str, known: bool
) -> None:
    asked = [record(20, probe(query("w60", "w70"), conditions=(query("w62", "w72", "w75 w76", "w75"),)))]
    found = measure(monkeypatch, asked, edited={"w60": "w70"}, base={"w62": said}).probes[KIND]
    assert (found["n"], found["conditions_failed"]) == (known, not known)


@pytest.mark.parametrize(("said", "known"), [([72] * 9, True), ([73] * 9, False)])
def test_a_base_that_never_ends_an_answer_may_know_a_condition(
    monkeypatch: pytest.MonkeyPatch, said: list[int], known: bool
) -> None:
    monkeypatch.setattr("wise.lab.eval.prompting.greedy", lambda _model, prompts, **_: [said] * len(prompts))
    asked = record(20, probe(query("w60", "w72"), conditions=(query("w62", "w72"),)))
    found = measure_quality(wrap_tiny("llama"), [asked]).probes[KIND]
    assert (found["n"], found["conditions_failed"]) == (known, not known)
    assert not found["generated"]  # what is measured itself must end


@pytest.mark.parametrize(
    ("said", "right", "begins"),
    [
        ("The United States, of course", "united states", True),
        ("Parisian", "paris", False),
        ("3.5 million", "3", False),
        ("1,000", "1", False),
        ("3. And", "3", True),
        ("C++ is", "c++", True),
        ("-5 degrees", "5", False),
    ],
)
def test_an_answer_begins_with_whole_words_and_numbers(said: str, right: str, begins: bool) -> None:
    assert begins_with(said, {right}) is begins


def test_the_base_is_measured_on_the_same_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [record(20, probe(query("w60", "w70"))), record(30, probe(query("w61", "w71")))]
    found = measure(monkeypatch, asked, edited={"w60": "w70"}, base={"w60": "w70", "w61": "w71"}).probes[KIND]
    assert (found["generated"], found["base_generated"]) == (0.5, 1.0)


def test_a_figure_is_a_mean_over_records(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [probe(query(f"w6{i}", "w70")) for i in range(3)]
    asked = [record(20, *many), record(30, probe(query("w69", "w71")))]
    found = measure(monkeypatch, asked, edited={f"w6{i}": "w70" for i in range(3)}).probes[KIND]
    assert found["generated"] == 0.5 and found["n"] == 4


@pytest.mark.parametrize(("kind", "figure"), [("multi_hop", 0.75), ("single_hops", 0.75), (KIND, 0.5)])
def test_of_a_case_a_figure_is_a_mean_over_cases(monkeypatch: pytest.MonkeyPatch, kind: str, figure: float) -> None:
    """Three cases end in the same edit, one in another."""
    cases = [record(20, probe(query(f"w6{i}", "w70"), kind=kind)) for i in range(3)]
    said = {f"w6{i}": "w70" for i in range(3)}
    asked = [*cases, record(30, probe(query("w69", "w71"), kind=kind))]
    found = measure(monkeypatch, asked, edited=said, base=said).probes[kind]
    assert (found["generated"], found["base_generated"], found["n"]) == (figure, figure, 4)
    one = measure(monkeypatch, [record(30, probe(query("w69", "w71"), kind=kind))], edited={}).probes[kind]
    assert (one["generated"], one["n"]) == (0, 1)


def test_token_accuracy_of_a_case_is_a_mean_over_cases() -> None:
    cases = [record(20, probe(query(f"w6{i}", f"w5{i}"), kind="multi_hop")) for i in range(3)]
    wrapped = wrap_tiny("llama")
    first = int(wrapped(torch.tensor([wrapped.encoder.prompt("w69")]), use_cache=False).logits[0, -1].argmax())
    asked = [*cases, record(30, probe(query("w69", f"w{first}"), kind="multi_hop"))]
    found = measure_quality(wrapped, asked)
    shares = [o.teacher_forced for o in found.outcomes if o.measure == "multi_hop"]
    assert found.probes["multi_hop"]["teacher_forced"] == sum(shares) / 4 and shares[-1] == 1


def test_probes_of_a_kind_are_capped_but_not_questions_of_several_hops(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, n in ((KIND, MAX_PROBES), ("multi_hop", 6), ("single_hops", 6)):
        many = [probe(query(f"w6{i}", "w70"), kind=kind) for i in range(6)]
        found = measure(monkeypatch, [record(20, *many)], edited={})
        assert found.probes[kind]["n"] == n
        prompts = [o.prompt for o in found.outcomes if o.measure == kind]
        assert prompts == [f"w6{i}" for i in range(n)]


def test_what_is_too_long_is_counted_and_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    long = text([9] * 127)
    asked = [
        record(
            20,
            probe(query(long, "w70")),
            probe(query("w60", "w70"), conditions=(query("w61", long),)),
            probe(query("w62", long + " w9", "w70")),
        )
    ]
    quality = measure(monkeypatch, asked, edited={"w62": "w70"})
    found = quality.probes[KIND]
    assert (found["too_long"], found["n"], found["generated"]) == (2, 1, 1)
    assert [o.prompt for o in quality.outcomes if o.measure == KIND] == ["w62"]


def test_what_is_edited_elsewhere_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """r30 edits `w30 w31`; only a kind that asks for an edit itself may ask that."""
    kinds = {"locality.gold": 1, "ripple.preservation": 1, KIND: 1, "conflict": 0, "ood": 0, "single_hops": 0}
    for kind, excluded in kinds.items():
        asked = record(20, probe(query("w30 w31", "w70"), kind=kind), probe(query("w60", "w70"), kind=kind))
        found = measure(monkeypatch, [asked, record(30)], edited={"w60": "w70"}).probes[kind]
        assert (found["excluded"], found["n"]) == (excluded, 2 - excluded), kind
    # A paraphrase that is only tested is no fitting, but its answer is meant to change.
    other = record(30, paraphrases=("w60",))
    for kind, excluded in (("locality.gold", 1), (KIND, 0)):
        found = measure(monkeypatch, [record(20, probe(query("w60", "w70"), kind=kind)), other], edited={})
        assert found.probes[kind]["excluded"] == excluded, kind


def test_gold_locality_stands_beside_the_other_two(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = probe(query("w60", "w70"), kind="locality.gold")
    asked = [record(20, gold, neighbours=("w60",))]
    quality = measure(monkeypatch, asked, edited={"w60": "w70"}, base={"w60": "w71"})
    assert quality.locality["gold_generated"] == 1 and quality.locality["unchanged"] == 0
    assert quality.locality["gold_teacher_forced"] == quality.probes["locality.gold"]["teacher_forced"]
    without = measure(monkeypatch, [record(20)], edited={})
    assert set(without.locality.values()) == {None} and without.probes == {}


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bloom", "opt"])
@torch.no_grad()
def test_token_accuracy_is_that_of_the_best_answer_fed_alone(model_type: str) -> None:
    wrapped = wrap_tiny(model_type)
    encoder = wrapped.encoder
    prompts = ["w60", "w61 w62 w63 w64", "w65 w66"]

    def best(prompt: str, answer: list[int]) -> list[int]:
        rows = [[*encoder.prompt(prompt), *answer[:place]] for place in range(len(answer))]
        return [int(wrapped(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()) for row in rows]

    asked, expected = [], []
    for prompt in prompts:
        first = best(prompt, [50])[0]
        answers = [[50, 51, 52, 53], [max(first, 4), 51], [51, 52]]
        shares = [
            sum(a == b for a, b in zip(best(prompt, answer), answer, strict=True)) / len(answer) for answer in answers
        ]
        expected.append(max(shares))
        asked.append(query(prompt, *map(text, answers)))
    found = measure_quality(wrapped, [record(20, *(probe(each) for each in asked))])
    assert [o.teacher_forced for o in found.outcomes if o.measure == KIND] == pytest.approx(expected)
    assert max(expected) > 0
    both = measure_quality(wrapped, [record(20, probe(*asked, need="all"))]).probes[KIND]
    assert both["teacher_forced"] == pytest.approx(sum(expected) / 3)


def test_a_real_model_is_asked() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path())
    wrapped = wise.wrap(model, AutoTokenizer.from_pretrained(model_path()))
    prompt = "The capital of France is"
    said = wrapped.ask(prompt)[0].text
    probes = [probe(query(prompt, answer)) for answer in ("nowhere", f"the {said.upper()}.", f"{said} again")]
    edit = wise.Edit(prompt="The capital of Japan is", target="Lima")
    quality = measure_quality(wrapped, [wise.Record(edit=edit, probes=tuple(probes))])
    assert [o.generated for o in quality.outcomes if o.measure == KIND] == [0, 1, 0]
    assert quality.probes[KIND]["base_generated"] == quality.probes[KIND]["generated"]
