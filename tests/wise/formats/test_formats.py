"""Formats whose fields map one by one: what each gives, which file is recognised, what is stepped over."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from published import (
    ALL_ROWS,
    EASY,
    ENRICHED,
    HALLUCINATION,
    KILT,
    KNOWEDIT,
    KNOWN_FACT,
    MEMIT,
    MEND,
    OWN,
    QAEDIT,
    ROME,
    ROWS,
    TEMPORAL,
    UNKE,
    WIKIBIGEDIT,
    WIKIBIO,
    ZSRE_EASY,
    Row,
    Write,
    finding,
    probed,
    refused,
    shared,
    write_rows,
)
from repository import ROOT

from wise.edits import Edit, Record
from wise.errors import EditError
from wise.formats import LAYOUTS
from wise.formats.edit_file import FORMATS, RecordParser, read_edits, read_records
from wise.formats.tracked_row import tracked


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_rows, tmp_path)


def one(write: Write, row: Row, **options: Any) -> Record:
    (record,) = read_records(write(row), **options)
    return record


# --- what each form means ------------------------------------------------------------------


def test_our_own_form(write: Write) -> None:
    test = {"paraphrases": ["Whose work is it?"], "neighbours": ["The sea there is"], "answer": "Jon Pike"}
    record = one(write, OWN | {"subject": "Cape Velm", "locality": ["The sky is"], "test": test})
    assert record.edit == Edit(**OWN, subject="Cape Velm", locality=("The sky is",))
    assert record.paraphrases == ("Whose work is it?",)
    assert record.neighbours == ("The sea there is",)
    assert (record.answer, record.source) == ("Jon Pike", "facts.jsonl:1")


def test_counterfact_as_rome_published_it(write: Write) -> None:
    record = one(write, ROME)
    asked = {"prompt": "Velm Tower was built by", "target": "Ada Thorne", "subject": "Velm Tower"}
    assert record.edit == Edit(id="counterfact-7", **asked)
    assert record.paraphrases == ("It rained. Velm Tower is the work of",)
    assert record.neighbours == ("Sell Tower was built by", "Orm Bridge was built by")
    assert record.answer == "Jon Pike"


def test_counterfact_plain_easyedit(write: Write) -> None:
    record = one(write, EASY)
    assert (record.edit.id, record.answer) == ("counterfact-8", "Jon Pike")
    assert record.paraphrases == ("Velm Tower is the work of",)
    assert record.neighbours == ("Sell Tower was built by",)


@pytest.mark.parametrize("kind", ["paraphrase", "generation", "other", None])
@pytest.mark.parametrize("listed", [True, False])
def test_only_true_paraphrases_count(write: Write, kind: str | None, listed: bool) -> None:
    generation = {"generation_prompts": [EASY["rephrase_prompt"]]} if listed else {}
    record = one(write, ENRICHED | generation | {"rephrase_kind": kind})
    counts = kind == "paraphrase" or (kind is None and not listed)
    assert (EASY["rephrase_prompt"] in record.paraphrases) is counts


def test_counterfact_enriched(write: Write) -> None:
    record = one(write, ENRICHED)
    assert record.paraphrases == ("The builder of Velm Tower is",)
    assert record.free_paraphrases == ("The person behind Velm Tower is",)
    assert record.neighbours == ("Orm Bridge was built by",)
    assert one(write, ENRICHED | {"neighborhood_prompts": []}).neighbours == ("Sell Tower was built by",)


def test_a_rephrase_list_keeps_wordings_that_name_the_subject(write: Write) -> None:
    row = ENRICHED | {"rephrase_kind": None, "template_paraphrases": None, "cf_case_id": 99}
    record = one(write, row | {"rephrase_prompt": ["Built by", " ", "Velm Tower is by", "Velm Tower is by"]})
    assert (record.edit.id, record.paraphrases) == ("counterfact-99", ("Velm Tower is by",))


def test_zsre_as_mend_published_it(write: Write) -> None:
    record = one(write, MEND)
    assert record.edit == Edit(prompt="Who built Velm Tower?", target="Ada Thorne", subject="Velm Tower")
    assert record.paraphrases == ("Who is Velm Tower's builder?",)
    assert (record.neighbours, record.answer) == (("nq question: who keeps the bees",), "Jon Pike")


def test_only_a_list_dash_is_stripped(write: Write) -> None:
    assert one(write, MEND | {"rephrase": "-Who?"}).paraphrases == ("Who?",)
    assert one(write, MEND | {"rephrase": "-3 is what?"}).paraphrases == ("-3 is what?",)


def test_zsre_as_easyedit_writes_it(write: Write) -> None:
    record = one(write, ZSRE_EASY)
    assert (record.edit.id, record.paraphrases) == ("zsre-8", ())
    assert record.neighbours == ("nq question: who keeps the bees",)


def test_the_easyedit_family(write: Write) -> None:
    plain = {k: EASY[k] for k in ("prompt", "target_new", "subject", "rephrase_prompt", "locality_prompt")}
    record = one(write, plain)
    assert record.edit == Edit(prompt=EASY["prompt"], target="Ada Thorne", subject="Velm Tower")
    assert record.paraphrases == ("Velm Tower is the work of",)
    assert one(write, plain | {"rephrase_prompt": "Reformulated Question:"}).paraphrases == ()


def test_knowedit_leaves_out_portability_and_forgetfulness(write: Write) -> None:
    record = one(write, KNOWEDIT)
    assert record.paraphrases == ("Velm Tower's builder is",)
    assert record.neighbours == ("The height of Velm Tower is",)
    assert record.answer == "Jon Pike"


def test_knowedit_wikibio(write: Write) -> None:
    record = one(write, WIKIBIO)
    assert (record.edit.prompt, record.edit.subject) == (WIKIBIO["text"].rstrip(), "ada thorne")
    assert record.neighbours == ("ada thorne occupation",)
    assert one(write, WIKIBIO | {"concept": "Ada Thorne"}).edit.subject is None


def test_qaedit(write: Write) -> None:
    record = one(write, QAEDIT)
    assert record.paraphrases == ("By whom was Velm Tower built?",)
    assert record.neighbours == ("who keeps the bees", "how high is the sky")


# --- what the sets ask beyond that ---------------------------------------------------------


def test_neighbours_of_counterfact_have_the_true_object(write: Write) -> None:
    for row in (ROME, ENRICHED):
        record = one(write, row)
        assert probed(record, "locality.gold") == [(prompt, ("Jon Pike",)) for prompt in record.neighbours]
        assert len(record.probes) == len(record.neighbours) > 0
    assert probed(one(write, EASY), "locality.gold") == [("Sell Tower was built by", ("Jon Pike",))]
    assert not one(write, {k: v for k, v in EASY.items() if k != "locality_ground_truth"}).probes


@pytest.mark.parametrize("names", [["Jon Pike", "J. Pike"], ["Jon Pike"], ["Jon Pike", "J. Pike", "Pike"]])
def test_names_of_the_true_object_hold_for_every_neighbour(write: Write, names: list[str]) -> None:
    """As many names as neighbours are still names of one thing, not an answer to each."""
    neighbours = ["Orm Bridge was built by", "Sell Tower was built by"]
    easy = {k: v for k, v in ENRICHED.items() if k not in ("target_true", "locality_prompt", "locality_ground_truth")}
    rome = copy.deepcopy(ROME)
    rome["requested_rewrite"]["target_true"]["str"] = names
    for row in (easy | {"ground_truth": names}, rome):
        found = probed(one(write, row | {"neighborhood_prompts": neighbours}), "locality.gold")
        assert found == [(prompt, tuple(names)) for prompt in neighbours]


def test_counterfact_names_its_relation(write: Write) -> None:
    assert one(write, ROME).relation == "P84"
    assert one(write, EASY | {"relation_id": "P84"}).relation == "P84"
    assert one(write, EASY).relation is None


def test_generation_prompts_are_not_paraphrases(write: Write) -> None:
    assert one(write, ROME).generation_prompts == ("Velm Tower is near",)
    assert one(write, ENRICHED).generation_prompts == ("Velm Tower is near", EASY["rephrase_prompt"])
    assert one(write, ENRICHED | {"rephrase_kind": "paraphrase"}).generation_prompts == ("Velm Tower is near",)
    assert one(write, EASY).generation_prompts == ()


def test_other_names_of_the_subject_take_its_place(write: Write) -> None:
    names = {"subject_rephrase": ["The Velm", "Velm Tower", " ", "The Velm"]}
    expected = [("The Velm was built by", ("Ada Thorne",))]
    assert probed(one(write, EASY | names), "portability.subject_aliasing") == expected
    zsre = one(write, ZSRE_EASY | names)
    assert probed(zsre, "portability.subject_aliasing") == [("Who built The Velm?", ("Ada Thorne",))]
    elsewhere = one(write, EASY | names | {"subject": "Orm Tower"})
    assert not probed(elsewhere, "portability.subject_aliasing")


def test_zsre_keeps_its_neighbour_as_published_and_asks_its_answer(write: Write) -> None:
    for row in (MEND, ZSRE_EASY | {"locality_ground_truth": "Rosa"}):
        record = one(write, row)
        assert probed(record, "locality.gold") == [("nq question: who keeps the bees", ("Rosa",))]
    ported = MEND | {"portability": {"New Question": "Where did its builder live?", "New Answer": "Port Sell"}}
    assert probed(one(write, ported), "portability.reasoning") == [("Where did its builder live?", ("Port Sell",))]


def test_answers_beside_prompts_go_by_place(write: Write) -> None:
    two = ZSRE_EASY | {"locality_prompt": ["nq question: who sows", "nq question: who reaps"]}
    record = one(write, two | {"locality_ground_truth": ["Rosa", "Jon"]})
    assert [answers for _, answers in probed(record, "locality.gold")] == [("Rosa",), ("Jon",)]
    both = one(write, two | {"locality_ground_truth": "Rosa"})
    assert [answers for _, answers in probed(both, "locality.gold")] == [("Rosa",), ("Rosa",)]
    refused(write(two | {"locality_ground_truth": ["Rosa"]}), 1, "field 'locality_ground_truth': a list of 1")


def test_knowedit_asks_portability_and_locality(write: Write) -> None:
    record = one(write, KNOWEDIT)
    assert probed(record, "portability.subject_aliasing") == [("Who built it?", ("Ada Thorne",))]
    assert probed(record, "locality.gold") == [("The height of Velm Tower is", ("30 m",))]
    assert probed(record, "locality.distracting") == [("The builder, which is not Ada Thorne, is", ("Jon Pike",))]
    part = {"prompt": "Who follows?", "ground_truth": [["Rosa", "R."], [], ["Jon"]]}
    both = {"Reasoning": [part], "Logical_Generalization": [part, part]}
    record = one(write, KNOWEDIT | {"portability": both})
    for kind in ("portability.reasoning", "portability.logical_generalization"):
        assert probed(record, kind) == [("Who follows?", ("Rosa", "R.", "Jon"))]


def test_the_answer_that_a_question_rules_out_is_not_right(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    def record(*groups: list[str]) -> Record:
        asked = [{"prompt": "Its builder, which is not Ada Thorne, is", "ground_truth": list(groups)}]
        return one(write, KNOWEDIT | {"locality": {"Forgetfulness": asked}})

    left = record(["ada thorne", "A. Thorne"], ["Jon Pike", "J. Pike"])
    assert [answers for _, answers in probed(left, "locality.distracting")] == [("Jon Pike", "J. Pike")]
    assert not probed(record(["Ada Thorne"]), "locality.distracting")
    assert "field 'locality.Forgetfulness': a question without a right answer" in caplog.text


def test_a_probe_that_asks_the_edit_itself_is_left_out(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    same = [{"prompt": KNOWEDIT["prompt"], "ground_truth": "Ada Thorne"}]
    record = one(write, KNOWEDIT | {"portability": {"Subject_Aliasing": same}})
    assert not probed(record, "portability.subject_aliasing")
    assert "a probe of portability.subject_aliasing asks the prompt of the edit itself; left out" in caplog.text


def test_a_gold_question_without_an_answer_stays_a_neighbour(write: Write) -> None:
    record = one(write, QAEDIT)
    assert probed(record, "locality.gold") == [("who keeps the bees", ("Rosa",))]
    assert record.neighbours == ("who keeps the bees", "how high is the sky")


def test_running_text_is_no_gold_answer(write: Write) -> None:
    record = one(write, HALLUCINATION)
    assert record.neighbours == (HALLUCINATION["locality_prompt"],)
    assert (record.probes, record.edit.subject) == ((), "ada thorne")
    assert probed(one(write, HALLUCINATION | {"rephrase_prompt": "x"}), "locality.gold")


def test_text_of_another_origin_goes_on_from_the_prompt(write: Write) -> None:
    record = one(write, TEMPORAL)
    assert probed(record, "ood") == [(TEMPORAL["prompt"], ("Nobody knows the year.",))]
    for whole in ("It is old.", TEMPORAL["prompt"] + "s"):
        assert probed(one(write, TEMPORAL | {"ood_rephrase": whole}), "ood") == [(TEMPORAL["prompt"], (whole,))]
    assert not one(write, TEMPORAL | {"ood_rephrase": " "}).probes


def test_wikibigedit_as_its_authors_published_it(write: Write) -> None:
    record = one(write, WIKIBIGEDIT | {"relation": "P84"})
    assert record.edit == Edit(prompt="Who built Velm Tower?", target="Ada Thorne", subject="Velm Tower")
    assert record.paraphrases == ("By whom was Velm Tower built?",)
    assert record.free_paraphrases == ("Hey, who put up Velm Tower?",)
    assert probed(record, "locality.gold") == [("Who keeps the bees?", ("Rosa",))]
    assert probed(record, "portability.reasoning") == [("Where was the builder of Velm Tower born?", ("Port Sell",))]
    assert record.relation == "P84"
    bare = one(write, WIKIBIGEDIT | {"mhop": None, "mhop_ans": None, "personas": None})
    assert [probe.kind for probe in bare.probes] == ["locality.gold"]


def test_requests_of_memit(write: Write) -> None:
    record = one(write, MEMIT)
    expected = {"prompt": "Velm Tower was built by", "target": "Ada Thorne", "subject": "Velm Tower"}
    assert record.edit == Edit(**expected, id="memit-3")
    assert (record.answer, record.relation) == ("Jon Pike", "P84")
    bare = {name: MEMIT[name] for name in ("prompt", "subject", "target_new")}
    assert one(write, bare).edit == Edit(**expected)
    refused(write(bare | {"subject": None}), 1, "field 'subject': null")
    laid_out = MEMIT | {name: ROME[name] for name in ("paraphrase_prompts", "neighborhood_prompts")}
    whole = one(write, laid_out)
    assert whole.neighbours and len(whole.probes) == len(whole.neighbours) and len(whole.paraphrases) == 1


def test_zsre_in_the_form_of_kilt(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    record = one(write, KILT)
    assert record.edit == Edit(prompt="Who built Velm Tower?", target="Ada Thorne")
    assert (record.paraphrases, record.answer) == (("By whom was Velm Tower built?",), "Jon Pike")
    assert len(read_records(write(KILT, KILT | {"alternatives": []}))) == 1
    assert "field 'alternatives': empty, so no edit is asked for" in caplog.text


# --- templates, spellings, fields ----------------------------------------------------------

FLAT: Row = {"prompt": "The builder of {} is", "target_new": "Ada", "subject": "Velm Tower"}


@pytest.mark.parametrize("name", ["target_new", "target"])
def test_a_template_is_filled_or_refused(write: Write, name: str) -> None:
    towers = ["Velm Tower", "Orm Bridge", "Sell Tower"]
    rows = [{"prompt": FLAT["prompt"], name: "Ada", "subject": tower} for tower in towers]
    if name == "target":  # our own form says the very prompt
        refused(write(*rows), 1, "field 'subject': 'Velm Tower' does not occur in the prompt")
        return
    found = read_edits(write(*rows))
    assert [edit.prompt for edit in found] == [f"The builder of {tower} is" for tower in towers]
    assert [edit.subject for edit in found] == towers
    more = FLAT | {"rephrase_prompt": "Whose work is {}?", "locality_prompt": "The height of {} is"}
    record = one(write, more)
    assert (record.paraphrases, record.neighbours) == (("Whose work is Velm Tower?",), ())


@pytest.mark.parametrize("hole", ["{subject}", "[X]", "{0}", "<subject>", "%s"])
def test_a_template_of_another_kind_is_refused_not_stepped_over(write: Write, hole: str) -> None:
    refused(write(FLAT | {"prompt": f"The builder of {hole} is"}), 1, "field 'prompt': .* names its subject or has")
    literal = f"The text {hole} in Velm Tower is"
    assert one(write, FLAT | {"prompt": literal}).edit.prompt == literal  # it names its subject


def test_a_template_without_its_subject_is_refused(write: Write) -> None:
    refused(write({"prompt": FLAT["prompt"], "target_new": "Ada"}), 1, "field 'subject': missing")
    refused(write(FLAT | {"prompt": "{} is at Velm Tower"}), 1, "field 'prompt': .*has {} in its place")


@pytest.mark.parametrize(("written", "named"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("target", ["target", "target_new"])
def test_a_subject_composed_otherwise_is_found(write: Write, target: str, written: str, named: str) -> None:
    prompt, subject = normalize(written, "The mayor of Zürich is"), normalize(named, "Zürich")
    assert subject not in prompt
    edit = one(write, {"prompt": prompt, target: "Ada", "subject": subject}).edit
    assert edit.prompt == prompt and edit.subject == normalize(written, "Zürich")
    other = {"prompt": prompt, "target": "Ada", "subject": "Bern"}
    refused(write(other), 1, "field 'subject': 'Bern' does not occur")


def test_each_record_is_read_by_its_own_fields(write: Write) -> None:
    rows = [FLAT, KNOWEDIT, OWN, MEND, ROME, WIKIBIGEDIT | {"ans": "Bo"}, UNKE]
    together = read_records(write(*rows, name="all.jsonl"))
    alone = [one(write, row) for row in rows]
    assert [replace(record, source="") for record in together] == [replace(record, source="") for record in alone]
    reversed_ = read_records(write(*rows[::-1], name="all.jsonl"))
    assert {record.edit for record in reversed_} == {record.edit for record in together}
    refused(write(FLAT, OWN, {"instruction": "x", "output": "y"}), 3, "no known format")
    refused(write(FLAT, KNOWN_FACT), 2, "this file holds facts")


def test_a_field_that_nothing_reads_is_named_once(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    unknown = {"portability": KNOWEDIT["portability"] | {"New_Kind": [{"prompt": "Who?", "ground_truth": "Ada"}]}}
    read_records(write(KNOWEDIT | unknown, KNOWEDIT | unknown | {"wordings": ["Who built it?"], "none": None}))
    told = [record for record in caplog.records if "not used" in record.message]
    assert len(told) == 1
    assert "'wordings' (1), 'portability.New_Kind' (2)" in told[0].message and "none" not in told[0].message
    caplog.clear()
    read_records(write(KNOWEDIT))
    assert not caplog.records


@pytest.mark.parametrize(("name", "row"), ALL_ROWS)
def test_every_field_is_used_or_named(
    write: Write, name: str, row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    """What may be taken out of a record without a trace is named, and what is added too."""
    read_records(write(row))
    expected = [replace(record, source="") for record in read_records(write(row))]
    named = caplog.text
    for field in row:
        less = {key: value for key, value in row.items() if key != field}
        try:
            same = [replace(record, source="") for record in read_records(write(less), format=name)] == expected
        except EditError:
            continue
        told = f"'{field}" in named or (field == "locality_ground_truth" and "'locality_prompt': a question" in named)
        assert not same or told or row[field] in (None, "", [], {}), field
    caplog.clear()
    if name == "wise":
        refused(write(row | {"qqq": 1}), 1, "field 'qqq': unknown")
    else:
        read_records(write(row | {"qqq": 1}))
        assert "'qqq' (1)" in caplog.text


def test_plural_wordings_are_read(write: Write) -> None:
    row = {**FLAT, "prompt": "Velm Tower is by", "rephrase_prompts": ["By whom is Velm Tower?"]}
    assert one(write, row).paraphrases == ("By whom is Velm Tower?",)


def test_a_null_is_not_called_missing(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    refused(write(FLAT | {"target_new": None}), 1, "field 'target_new': null was given; fill it in")
    refused(write(ROME | {"requested_rewrite": None}), 1, "field 'requested_rewrite': null", format="counterfact")
    refused(write({"prompt": "x y", "subject": "x"}), 1, "field 'target': missing")
    listed = one(write, ENRICHED | {"neighborhood_prompts": [None, "Orm Bridge was built by"]})
    assert len(listed.neighbours) == 1 and "field 'neighborhood_prompts': an empty" in caplog.text
    assert len(read_records(write(MEND | {"alt": None}, MEND))) == 1
    assert "field 'alt': null or empty" in caplog.text


# --- inputs that once went wrong -----------------------------------------------------------


def test_inputs_that_were_once_read_wrong() -> None:
    flat = read_edits(finding("f03_zsre_flat_tmpl.json"))
    assert [edit.prompt for edit in flat] == [f"The capital of {land} is" for land in ("France", "Spain", "Italy")]
    assert [edit.subject for edit in read_edits(finding("f05_nfd.jsonl"))] == ["Zürich"]
    mixed = read_records(finding("f29_hetero.json"))
    assert len(mixed[1].paraphrases) == len(mixed[1].neighbours) == 1
    assert {probe.kind for probe in mixed[1].probes} == {"locality.gold", "portability.reasoning"}
    assert len(read_records(finding("f38_plural.json"))[0].paraphrases) == 1
    (big,) = read_records(finding("w01_wikibigedit_hf.json"))
    assert big.edit.target == "Lyon" and len(big.probes) == 2
    assert [edit.target for edit in read_edits(finding("w04_mend_null.json"))] == ["Seville"]
    refused(finding("f21_dupkeys.jsonl"), 1, "field 'target': given twice")


# --- all forms -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "row"), ALL_ROWS)
def test_a_named_format_reads_what_auto_reads(write: Write, name: str, row: Row) -> None:
    assert read_records(write(row), format=name) == read_records(write(row))


@pytest.mark.parametrize(("name", "row"), ALL_ROWS)
def test_nothing_that_measures_may_be_fitted(write: Write, name: str, row: Row) -> None:
    for record in read_records(write(row)):
        assert record.edit.paraphrases == record.edit.locality == ()
        prompts = [record.edit.prompt, *record.paraphrases, *record.free_paraphrases, *record.neighbours]
        assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize(("name", "row"), ALL_ROWS)
def test_what_is_read_survives_our_own_form(write: Write, name: str, row: Row) -> None:
    records = read_records(write(row))
    again = read_records(write(*[record.to_dict() for record in records], name="own.jsonl"))
    assert [replace(record, source="") for record in again] == [replace(record, source="") for record in records]


def test_every_format_is_covered_here() -> None:
    assert FORMATS == ("auto", *sorted(ROWS))


def test_the_page_of_files_shows_every_layout() -> None:
    """Each example has the fields of its layout, and what it cannot do without."""
    page = (ROOT / "docs" / "reference" / "files.md").read_text()
    shown, format = [], ""
    for name, example in re.findall(r"^\| (?:`(\w+)` )?\|[^|]+\| `(\{.+\})` \|$", page, flags=re.MULTILINE):
        format = name or format
        row = json.loads(example.replace("[...]", "[]").replace("{...}", "{}").replace('"...": ...', ""))
        fitting = [
            layout
            for layout in LAYOUTS
            if layout.format == format and row.keys() <= layout.fields
            and layout.needed <= row.keys()
        ]  # fmt: skip
        assert fitting, example
        shown.append(fitting[0])
    assert {layout.format for layout in shown} | {"wise"} == {*FORMATS[1:]}
    assert len(shown) == len(LAYOUTS) - 1


# --- bad records ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (MEND, {"src": None}, "field 'src': null"),
        (MEND, {"alt": 5}, "field 'alt': int 5"),
        (MEND, {"rephrase": 5}, "field 'rephrase': int 5"),
        (MEND, {"subject": ["Velm Tower"]}, "field 'subject': list"),
        (EASY, {"target_new": ""}, "field 'target_new': empty"),
        (EASY, {"target_new": None}, "field 'target_new': null"),
        (EASY, {"prompt": ["x"]}, "field 'prompt': list"),
        (EASY, {"case_id": True}, "field 'case_id': bool"),
        (ENRICHED, {"neighborhood_prompts": ["x", 3]}, r"field 'neighborhood_prompts\[1\]': int 3"),
        (
            KNOWEDIT,
            {"locality": {"Relation_Specificity": [5]}},
            r"field 'locality.Relation_Specificity\[0\]'",
        ),
        (WIKIBIO, {"labels": " "}, "field 'labels': empty"),
        (QAEDIT, {"target": ""}, "field 'target': empty"),
        (ROME, {"requested_rewrite": "x"}, "field 'requested_rewrite': str 'x' was given, an object"),
        (ROME, {"requested_rewrite": {}}, "field 'requested_rewrite.prompt': missing"),
    ],
)
def test_published_forms_name_their_own_fields(write: Write, row: Row, changes: Row, message: str) -> None:
    refused(write(row | changes), 1, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"target_new": {"str": ""}}, "target_new.str': empty"), ({"subject": None}, "subject': null")],
)
def test_nested_fields_are_named_whole(write: Write, changes: Row, message: str) -> None:
    rewrite = ROME["requested_rewrite"] | changes
    refused(write(ROME | {"requested_rewrite": rewrite}), 1, f"field 'requested_rewrite.{message}")


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a row, from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*way, key)
        yield from places(item, (*way, key))


@pytest.mark.parametrize("bad", [None, 3, True, "a\0b", " ", [], {}, [None], [["x"]], [{"a": 1}]])
def test_whatever_stands_in_a_field_is_read_or_named(bad: object) -> None:
    read = 0
    for name, row in [*ALL_ROWS, ("auto", KNOWN_FACT)]:
        for *way, last in places(row):
            broken = part = copy.deepcopy(row)
            for key in way:
                part = part[key]
            part[last] = bad
            try:
                read += len(RecordParser(name).add(Path("facts.jsonl"), 1, tracked(broken))) > 0
            except EditError as error:
                assert str(error).startswith("facts.jsonl:1: ")
    assert read > 0


# --- known defects of published sets -------------------------------------------------------


def test_a_subject_that_is_not_in_a_published_prompt_is_dropped_and_counted(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    other = MEND | {"src": "Who built the old tower?"}
    with caplog.at_level(logging.WARNING):
        subjects = [edit.subject for edit in read_edits(write(MEND, other, other | {"alt": "Bo"}))]
    assert subjects == ["Velm Tower", None, None]
    assert "field 'subject': does not occur in the prompt; dropped (2 times, first at 2)" in caplog.text
    caplog.clear()
    read_records(write(MEND))
    assert not caplog.records


def test_a_zsre_record_without_alt_is_no_edit(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    empty = MEND | {"alt": " "}
    assert [record.source for record in read_records(write(empty, MEND))] == ["facts.jsonl:2"]
    assert "field 'alt': null or empty" in caplog.text
    refused(write(empty, empty), 1, "field 'alt': null or empty, .*no record is left")


# --- files that are not of a known format --------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "x", "output": "y"},
        {"question": "Who?", "reply": "Ada", "day": 1},
        {"data": [OWN]},
        {"question": "Who?", "answer": "Ada"},
    ],
)
def test_an_unknown_form_is_refused_with_its_fields_and_the_known_ones(write: Write, row: Row) -> None:
    names = ", ".join(FORMATS[1:])
    refused(write(row), 1, f"no known format has these fields: {', '.join(sorted(row))}; known formats are {names}")


def test_data_with_common_names_are_no_edits(write: Write) -> None:
    refused(write({"text": "a film", "labels": "good"}), 1, "field 'concept': missing")
    refused(write({"text": "a film", "label": 1}), 1, "no known format")


def test_facts_are_no_edits(write: Write) -> None:
    for format in ("auto", "counterfact"):
        refused(write(KNOWN_FACT), 1, "this file holds facts .*`wise locate`", format=format)


# --- the real files ------------------------------------------------------------------------

GOLD, ALIAS = "locality.gold", "portability.subject_aliasing"
RIPPLE_KINDS = ("logical_generalization", "compositionality_1", "preservation", "subject_aliasing")
MOST = 9000
"""Records of a file that are read, for time's sake."""
REAL: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "counterfact_dev.jsonl.xz": (MOST, "paraphrases neighbours answer relation", (GOLD, ALIAS)),
    "zsre_pool_dev.jsonl.xz": (8912, "paraphrases neighbours answer", (GOLD,)),
    "zsre_wise_edit_portability_dev.jsonl.gz": (
        716,
        "paraphrases neighbours answer probes",
        (GOLD, "portability.reasoning"),
    ),
    "zsre_subject_rephrase_dev.jsonl.gz": (469, "neighbours answer probes", (GOLD, ALIAS)),
    "counterfact_real_neighbourhoods_dev.jsonl.gz": (460, "paraphrases neighbours answer", (GOLD, ALIAS)),
    "knowedit_zsre_dev.jsonl.gz": (887, "paraphrases neighbours answer", (GOLD, ALIAS, "portability.reasoning")),
    "knowedit_wiki_counterfact_dev.jsonl.gz": (1386, "answer", (GOLD, ALIAS, "locality.distracting")),
    "knowedit_wiki_recent_dev.jsonl.gz": (348, "", (GOLD, ALIAS, "portability.logical_generalization")),
    "knowedit_wikibio_dev.jsonl.gz": (426, "neighbours probes", (GOLD,)),
    "wikibigedit_3k_dev.jsonl.gz": (1850, "neighbours probes", (GOLD,)),
    "qaedit_inter_dev.jsonl.gz": (665, "paraphrases neighbours probes", (GOLD,)),
    "wise_hallucination_edit_dev.jsonl.gz": (361, "neighbours", ()),
    "wise_hallucination_train_dev.jsonl.gz": (190, "neighbours", ()),
    "wise_temporal_train_75.jsonl.gz": (75, "neighbours probes", ("ood",)),
    "mquake_akew_354.jsonl.gz": (436, "free_paraphrases answer relation group", ("multi_hop",)),
    "mquake_cf_facts_dev.jsonl.gz": (2608, "free_paraphrases", ()),
    "rippleedits_popular_dev.jsonl.gz": (423, "answer relation", tuple(f"ripple.{kind}" for kind in RIPPLE_KINDS)),
    "unke_dev.jsonl.gz": (703, "paraphrases probes", ("unstructured",)),
    "pitfalls_coverage_edit_dev.jsonl.gz": (3458, "free_paraphrases answer relation group", ("conflict",)),
    "pitfalls_reverse_edit_dev.jsonl.gz": (3468, "free_paraphrases relation group", ("conflict",)),
    "pitfalls_composite_edit_dev.jsonl.gz": (2870, "free_paraphrases answer relation group", ()),
}
"""File -> its records, what nearly each of them has, and kinds of probes that there are."""
LARGE = ("counterfact_dev.jsonl.xz", "zsre_pool_dev.jsonl.xz")
"""Those that take many seconds."""
WITHOUT_SUBJECT = ("mquake_cf_facts_dev.jsonl.gz", "unke_dev.jsonl.gz")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in REAL]
)
def test_a_real_file_reads(name: str) -> None:
    count, fields, kinds = REAL[name]
    records = read_records(shared(name), limit=MOST)
    assert len(records) == count
    assert len({record.edit.id for record in records}) == count
    for field in fields.split():
        assert sum(bool(getattr(record, field)) for record in records) > 0.95 * count, field
    assert {probe.kind for record in records[:1000] for probe in record.probes} >= {*kinds}
    if name not in WITHOUT_SUBJECT:
        assert all(record.edit.subject and record.edit.subject in record.edit.prompt for record in records)


def test_every_real_file_is_known_here() -> None:
    folder = shared("counterfact_dev.jsonl.xz").parent
    there = {path.name for path in folder.iterdir() if ".jsonl" in path.name}
    assert there == {*REAL, "known_facts_rome_1209.jsonl.gz"}


def test_the_real_known_facts_are_refused() -> None:
    refused(shared("known_facts_rome_1209.jsonl.gz"), 1, "this file holds facts")
