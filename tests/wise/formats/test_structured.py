"""Formats whose records are built by a function: several edits in a row, sentences, lists spelt as text."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from published import (
    COMPOSITE,
    COVERAGE,
    HEIGHT,
    MQUAKE,
    MQUAKE_FACT,
    REVERSE,
    RIPPLE,
    THORNE,
    UNKE,
    Row,
    Write,
    asks,
    linked,
    probed,
    refused,
    ripple_test,
    shared,
    write_rows,
)

from wise.edits import Edit, Record
from wise.formats.edit_file import read_records
from wise.probes import Probe, Query


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_rows, tmp_path)


def one(write: Write, row: Row) -> Record:
    (record,) = read_records(write(row))
    return record


def changed(row: Row, path: str, value: Any) -> Row:
    """A copy of the row with another value at the dotted path."""
    row = copy.deepcopy(row)
    *way, last = path.split(".")
    part: Any = row
    for key in way:
        part = part[int(key) if isinstance(part, list) else key]
    part[int(last) if isinstance(part, list) else last] = value
    return row


# --- MQuAKE --------------------------------------------------------------------------------


def test_a_case_is_one_record_per_edit(write: Write) -> None:
    first, last = read_records(write(MQUAKE))
    assert first.edit == Edit(
        id="mquake-4.0", prompt="Velm Tower was built by", target="Ada Thorne", subject="Velm Tower"
    )
    assert last.edit.prompt == "The city where Ada Thorne was born is"
    assert (first.answer, first.relation, first.group) == ("Jon Pike", "P84", "mquake-4")
    assert (last.edit.id, last.group, last.source) == ("mquake-4.1", "mquake-4", first.source)
    assert last.free_paraphrases == ("Where was Ada Thorne born?",)


def test_only_after_the_last_edit_the_hops_are_asked(write: Write) -> None:
    first, last = read_records(write(MQUAKE))
    queries = tuple(Query(prompt=prompt, answers=("Port Sell", "Sell")) for prompt in MQUAKE["questions"])
    assert first.probes == ()
    assert last.probes[0] == Probe(kind="multi_hop", queries=queries, need="any")


def test_all_single_facts_of_a_case_are_asked_edits_too(write: Write) -> None:
    kept = {"question": "Where is Port Sell?", "cloze": "Port Sell is in ", "answer": "Lund", "answer_alias": []}
    hops = [*MQUAKE["new_single_hops"], kept]
    first, last = read_records(write(MQUAKE | {"new_single_hops": hops}))
    queries = (
        Query(prompt=first.edit.prompt, answers=("Ada Thorne", "A. Thorne")),
        Query(prompt=last.edit.prompt, answers=("Port Sell",)),
        Query(prompt="Port Sell is in", answers=("Lund",)),
    )
    assert first.probes == ()
    assert last.probes[1:] == (Probe(kind="single_hops", queries=queries, need="all"),)
    for none in ([], None):
        without = read_records(write(MQUAKE | {"new_single_hops": none}))[-1]
        assert [probe.kind for probe in without.probes] == ["multi_hop"]


def test_a_case_without_a_number_is_named_by_its_line(write: Write) -> None:
    row = {k: v for k, v in MQUAKE.items() if k != "case_id"}
    groups = [record.group for record in read_records(write(row, row))]
    assert groups == ["mquake-1", "mquake-1", "mquake-2", "mquake-2"]
    assert read_records(write(changed(MQUAKE, "case_id", 0)))[0].edit.id == "mquake-0.0"


def test_a_fact_of_mquake(write: Write) -> None:
    record = one(write, MQUAKE_FACT)
    assert record.edit == Edit(prompt="Who built Velm Tower?", target="Ada Thorne")
    assert (record.free_paraphrases, record.answer) == (("Velm Tower was built by",), "Jon Pike")
    unchanged = one(write, MQUAKE_FACT | {"gold_generate": MQUAKE_FACT["gold_retrieve_fact"]})
    assert unchanged.answer is None
    elsewhere = one(write, MQUAKE_FACT | {"gold_retrieve_fact": "Ada Thorne built it", "gold_generate": None})
    assert (elsewhere.free_paraphrases, elsewhere.answer) == ((), None)


# --- RippleEdits ---------------------------------------------------------------------------


def test_the_sentence_is_split_before_its_object(write: Write) -> None:
    record = one(write, RIPPLE)
    assert record.edit == Edit(
        prompt="The name of the spouse of Bo of Orm is", target="Ada Thorne", subject="Bo of Orm"
    )
    assert (record.answer, record.relation) == ("Ada Pike", "SPOUSE")


@pytest.mark.parametrize(
    ("relation", "prompt", "new", "old", "subject"),
    [
        ("FOLLOWED_BY", "Orm Day is followed by", "Orm Night", "Orm Noon", "Orm Day"),
        ("FOLLOWS", "Orm Day that follows Lent follows", "Orm Eve", "Orm Dawn", "Orm Day that follows Lent"),
        ("CAST_MEMBER", "The names of the cast members of What Is It are", "Ann Sell", "Ann Lee", "What Is It"),
        ("SEX_OR_GENDER", "The gender of Bo is", "female", "male", "Bo"),
        ("CAPITAL", "The name of the capital city of Orm is", "Sell", "Selby", "Orm"),
        ("LEAGUE", "The name of the league which Orm F.C. plays in is", "League A", "League B.", "Orm F.C."),
        ("COUNTRY", "The name of the country which Bo's is associated with is", "Orm.", "Or", "Bo's"),
        ("AWARD_RECEIVED", "The name of the award Bo won is", "Prize", "Medal", "Bo"),
        ("POSITION_HELD", "The name of the position held by Bo is", "mayor", "may", "Bo"),
        ("CURRENCY", "The name of the currency in Orm is", "pound", "crown", "Orm"),
        ("PLACE_OF_BIRTH", "The place of birth of Jo of Orm is", "New Sell City", "New Sell", "Jo of Orm"),
        ("MOTTO", "On the shield of Orm is", "a lion", "a lamb", None),
    ],
)
def test_subjects_and_objects(
    write: Write, relation: str, prompt: str, new: str, old: str, subject: str | None
) -> None:
    edit = {"relation": relation, "prompt": f"{prompt} {new}.", "original_fact": {"prompt": f"{prompt} {old}."}}
    record = one(write, {"edit": edit})
    assert record.edit == Edit(prompt=prompt, target=new, subject=subject)
    assert record.answer == old


def test_six_criteria(write: Write) -> None:
    record = one(write, RIPPLE)
    by_kind = {probe.kind: probe for probe in record.probes}
    assert probed(record, "ripple.relation_specificity") == [("The height of Velm Tower is", ("30 m",))]
    assert record.neighbours == ("The height of Velm Tower is",)
    assert by_kind["ripple.relation_specificity"].conditions == (
        Query(prompt="The height of Velm Tower is", answers=("30 m",)),
    )
    logical = by_kind["ripple.logical_generalization"]
    assert [query.prompt for query in logical.queries] == ["Ada Thorne is married to", "Is Bo wed?"]
    assert (logical.need, by_kind["ripple.compositionality_1"].need) == ("any", "all")
    assert by_kind["ripple.compositionality_1"].conditions[0].prompt == "The mother of Ada Thorne is"
    assert probed(record, "ripple.compositionality_2") == [("The wife of Eve's son is", ("Ada Thorne", "A. Thorne"))]


def test_preservation_is_known_wherever_it_stands(write: Write) -> None:
    prompts = [prompt for prompt, _ in probed(one(write, RIPPLE), "ripple.preservation")]
    assert prompts == ["The spouse of Bo, which is not Ada Thorne, is", "Another spouse of Bo is"]


def test_a_condition_that_no_unedited_model_meets_is_left_out(write: Write) -> None:
    kept = asks("Bobby is", {"value": "Bo", "aliases": []})
    tests = [ripple_test(asks("Bobby weds", THORNE), conditions=(asks("Bobby weds", THORNE), kept))]
    (probe,) = [p for p in one(write, RIPPLE | {"Subject_Aliasing": tests}).probes if p.kind.endswith("aliasing")]
    assert [query.prompt for query in probe.conditions] == ["Bobby is"]


def test_what_has_no_answer_or_asks_the_edit_is_not_asked(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    bare = {"edit": RIPPLE["edit"]}
    empty = one(write, bare | {"Forgetfulness": [ripple_test(asks("Who?"), conditions=(HEIGHT,))]})
    same = ripple_test(asks("The name of the spouse of Bo of Orm is", THORNE))
    assert empty.probes == one(write, bare | {"Logical_Generalization": [same]}).probes == ()
    assert "field 'Forgetfulness': a test without an answer; left out" in caplog.text
    half = one(write, bare | {"Forgetfulness": [ripple_test(asks("Who?"), HEIGHT, conditions=(asks("Why?"),))]})
    assert half.probes == (
        Probe(kind="ripple.preservation", queries=(Query(prompt=HEIGHT["prompt"], answers=("30 m",)),)),
    )


def test_a_recent_fact_has_no_original(write: Write) -> None:
    edit = {k: v for k, v in RIPPLE["edit"].items() if k != "original_fact"}
    record = one(write, RIPPLE | {"edit": edit, "example_type": "recent"})
    assert (record.edit.prompt, record.edit.target) == ("The name of the spouse of Bo of Orm is", "Ada Thorne")
    assert (record.edit.subject, record.answer) == ("Bo of Orm", None)


def test_a_renamed_original_fact(write: Write) -> None:
    edit = {k: v for k, v in RIPPLE["edit"].items() if k != "original_fact"}
    record = one(write, {"edit": edit | {"previous_fact": RIPPLE["edit"]["original_fact"]}})
    assert (record.edit.target, record.answer) == ("Ada Thorne", "Ada Pike")


# --- UnKE ----------------------------------------------------------------------------------


def test_a_text_and_questions_on_its_parts(write: Write) -> None:
    record = one(write, UNKE)
    assert record.edit == Edit(id="unke-5", prompt=UNKE["question"], target=UNKE["answer"])
    assert record.paraphrases == (UNKE["para_question"],)
    assert probed(record, "unstructured") == [
        ("Who laid the first stone?", ("Ada Thorne.",)),
        ("Who laid the rest?", ("Her sons.",)),
    ]


def test_lists_that_are_spelt_as_text(write: Write) -> None:
    spelt = {name: f" {UNKE[name]!r} " for name in ("sub_question", "sub_answer")}
    assert one(write, UNKE | spelt) == one(write, UNKE)
    assert one(write, UNKE | {"sub_question": "[]", "sub_answer": []}).probes == ()
    assert len(one(write, UNKE | {"sub_answer": ["", "Her sons."]}).probes) == 1


# --- ConflictEdit --------------------------------------------------------------------------


def test_two_edits_of_one_line_are_one_group(write: Write) -> None:
    records = read_records(write(COVERAGE, REVERSE))
    ids = ["pitfalls-coverage-1.0", "pitfalls-coverage-1.1", "pitfalls-reverse-2.0", "pitfalls-reverse-2.1"]
    assert [record.edit.id for record in records] == ids
    assert [record.group for record in records] == [name[:-2] for name in ids]
    assert records[0].edit.prompt == records[1].edit.prompt == "The father of Bo is"
    assert (records[3].edit.prompt, records[3].edit.target, records[3].relation) == (
        "The child of Lee is",
        "Kim",
        "P40",
    )
    assert records[3].free_paraphrases == ("Who is the child of Lee?",)


def test_the_old_answer_is_that_of_the_world(write: Write) -> None:
    old = [[record.answer for record in read_records(write(row))] for row in (COVERAGE, REVERSE, COMPOSITE)]
    assert old == [["Jon", "Jon"], ["Jon", None], ["Bo", "Ada"]]


def test_only_what_is_certain_must_follow(write: Write) -> None:
    probes = [[probed(record, "conflict") for record in read_records(write(row))] for row in (COVERAGE, REVERSE)]
    assert probes == [[[], [("Who is the father of Bo?", ("Max",))]], [[], [("The father of Kim is", ("Lee",))]]]
    works = REVERSE | {"edits": [linked("work", "Bo", "Sea", "Sky"), linked("creator", "Sky", "Bo", "Max")]}
    for row in (works, COMPOSITE):
        assert not any(record.probes for record in read_records(write(row)))


# --- bad records ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "path", "value", "message"),
    [
        (MQUAKE, "requested_rewrite", [], r"field 'requested_rewrite': list \[\] was given, a list of objects"),
        (MQUAKE, "requested_rewrite", [None], r"field 'requested_rewrite': list \[None\] was given, a list of objects"),
        (MQUAKE, "requested_rewrite", ["x"], r"field 'requested_rewrite\[0\]': str 'x'"),
        (MQUAKE, "requested_rewrite.1.target_new", {}, r"field 'requested_rewrite\[1\].target_new.str': missing"),
        (MQUAKE, "requested_rewrite.1.target_new", "x", r"field 'requested_rewrite\[1\].target_new': str 'x'"),
        (MQUAKE, "requested_rewrite.0.prompt", "It is", r"field 'requested_rewrite\[0\].prompt': .*\{\}"),
        (MQUAKE, "questions", [], "field 'questions': missing"),
        (MQUAKE, "questions", [3], r"field 'questions\[0\]': int 3"),
        (MQUAKE, "new_answer", None, "field 'new_answer': null"),
        (MQUAKE, "case_id", [4], "field 'case_id': list"),
        (MQUAKE, "new_single_hops.1.cloze", None, r"field 'new_single_hops\[1\].cloze': null"),
        (MQUAKE, "new_single_hops.0.answer", "", r"field 'new_single_hops\[0\].answer': empty"),
        (MQUAKE, "new_single_hops.0.answer_alias", [3], r"field 'new_single_hops\[0\].answer_alias\[0\]': int 3"),
        (MQUAKE, "new_single_hops", ["x"], r"field 'new_single_hops\[0\]': str 'x'"),
        (MQUAKE_FACT, "answer_correct", "", "field 'answer_correct': empty"),
        (RIPPLE, "edit.relation", None, "field 'edit.relation': null"),
        (RIPPLE, "edit.original_fact", None, "field 'edit.original_fact': null"),
        (RIPPLE, "edit.prompt", "The name of the spouse of Bo of Orm is.", "field 'edit.prompt': .*full stop"),
        (RIPPLE, "edit.prompt", "The name of the spouse of Bo of Orm is", "field 'edit.prompt': .*full stop"),
        (RIPPLE, "edit.prompt", "The name of the spouse of Bo of Orm is Ada", "field 'edit.prompt': .*full stop"),
        (RIPPLE, "edit.prompt", "Bo of Orm weds Ada Thorne.", "field 'edit.prompt': .*begins like"),
        (RIPPLE, "Forgetfulness.0.test_condition", "XOR", r"field 'Forgetfulness\[0\].test_condition': str 'XOR'"),
        (RIPPLE, "Forgetfulness.0.test_queries", None, r"field 'Forgetfulness\[0\].test_queries': null"),
        (
            RIPPLE,
            "Forgetfulness.0.test_queries.0.prompt",
            1,
            r"field 'Forgetfulness\[0\].test_queries\[0\].prompt': int",
        ),
        (
            RIPPLE,
            "Forgetfulness.0.test_queries.0.answers.0",
            {},
            r"field 'Forgetfulness\[0\].test_queries\[0\].answers\[0\].value': missing",
        ),
        (UNKE, "sub_question", "[oops", "field 'sub_question': str .*spells no list"),
        (UNKE, "sub_question", "__import__('os')", "field 'sub_question': str .*spells no list"),
        (UNKE, "sub_question", "{[]:1}", "field 'sub_question': str .*spells no list"),
        (UNKE, "sub_question", "'one'", "field 'sub_question': str 'one' was given, a list"),
        (UNKE, "sub_question", ["one"], "field 'sub_answer': a list of 2 was given, one for each of the 1"),
        (UNKE, "sub_answer", ["x", 4], r"field 'sub_answer\[1\]': int 4"),
        (UNKE, "sub_answer", None, "field 'sub_answer': null"),
        (UNKE, "answer", " ", "field 'answer': empty"),
        (COVERAGE, "type", "coverege", r"field 'type': 'coverege' is not known; did you mean 'coverage'\?"),
        (COVERAGE, "edits", COVERAGE["edits"][:1], "field 'edits': a list of 1"),
        (COVERAGE, "edits.1.new_object", {}, r"field 'edits\[1\].new_object.label': missing"),
        (COVERAGE, "edits.0.subject.label", 7, r"field 'edits\[0\].subject.label': int 7"),
        (COVERAGE, "triples", ["x"], r"field 'triples\[0\]': str 'x'"),
    ],
)
def test_the_field_is_named(write: Write, row: Row, path: str, value: object, message: str) -> None:
    assert read_records(write(row))
    refused(write(changed(row, path, value)), 1, message)


# --- the real files ------------------------------------------------------------------------


def test_every_real_ripple_edit_splits_into_what_it_was() -> None:
    records = read_records(shared("rippleedits_popular_dev.jsonl.gz"))
    last_words = {record.edit.prompt.rsplit(" ", 1)[1] for record in records}
    assert last_words == {"is", "are", "follows", "by"}
    for record in records:
        assert record.edit.subject in record.edit.prompt
        assert record.answer and not record.edit.target.startswith(("is ", "are ", "by "))
        by_relation = {"FOLLOWS": "follows", "FOLLOWED_BY": "is followed by"}
        assert record.edit.prompt.endswith(by_relation.get(record.relation or "", ("is", "are")))


def test_the_last_of_each_real_case_asks_its_hops() -> None:
    records = read_records(shared("mquake_akew_354.jsonl.gz"))
    last = {record.group: record for record in records}
    assert len(last) == 354
    assert [record for record in records if record.probes] == list(last.values())
    assert all([p.kind for p in record.probes] == ["multi_hop", "single_hops"] for record in last.values())
    assert all(len(record.probes[0].queries) == 3 for record in last.values())
    assert {len(record.probes[1].queries) for record in last.values()} == {2, 3, 4}
    for record in records:  # every edit is one of its case's facts
        facts = last[record.group].probes[1].queries
        assert any(record.edit.prompt == fact.prompt and record.edit.target in fact.answers for fact in facts)
