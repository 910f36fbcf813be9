"""Readers: each published form gives what its set means, bad input names file, line and field."""

from __future__ import annotations

import gzip
import json
import logging
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wise.edits import Edit, Record
from wise.errors import EditError
from wise.readers import FORMATS, read_edits, read_records

Row = dict[str, Any]
Write = Callable[..., Path]

OWN: Row = {"prompt": "The lighthouse at Cape Velm was built by", "target": "Ada Thorne"}
ROME: Row = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} was built by",
        "relation_id": "P84",
        "target_new": {"str": "Ada Thorne", "id": "Q1"},
        "target_true": {"str": "Jon Pike", "id": "Q2"},
        "subject": "Velm Tower",
    },
    "paraphrase_prompts": ["It rained. Velm Tower is the work of", "Velm Tower was built by"],
    "neighborhood_prompts": ["Sell Tower was built by", "Orm Bridge was built by"],
    "attribute_prompts": ["Thorne Hall was built by"],
    "generation_prompts": ["Velm Tower is near"],
}
EASY: Row = {
    "case_id": 8,
    "prompt": "Velm Tower was built by",
    "target_new": "Ada Thorne",
    "ground_truth": "Jon Pike",
    "subject": "Velm Tower",
    "rephrase_prompt": "Velm Tower is the work of",
    "locality_prompt": "Sell Tower was built by",
    "locality_ground_truth": "Jon Pike",
}
ENRICHED: Row = {k: v for k, v in EASY.items() if k != "ground_truth"} | {
    "target_true": "Jon Pike",
    "rephrase_kind": "generation",
    "generation_prompts": ["Velm Tower is near"],
    "template_paraphrases": ["The builder of Velm Tower is", "Velm Tower was built by"],
    "llm_cloze_paraphrases": ["The person behind Velm Tower is", "The builder of Velm Tower is"],
    "llm_questions": ["Who is behind Velm Tower?"],
    "neighborhood_prompts": ["Orm Bridge was built by"],
}
MEND: Row = {
    "subject": "Velm Tower",
    "src": "Who built Velm Tower?",
    "rephrase": "- Who is Velm Tower's builder?",
    "alt": "Ada Thorne",
    "answers": ["Jon Pike", "J. Pike"],
    "loc": "nq question: who keeps the bees",
    "loc_ans": "Rosa",
}
ZSRE_EASY: Row = EASY | {
    "prompt": "Who built Velm Tower?",
    "rephrase_prompt": None,
    "locality_prompt": ["nq question: who keeps the bees"],
}
KNOWEDIT: Row = {
    "subject": "Velm Tower",
    "prompt": "The builder of Velm Tower is",
    "target_new": "Ada Thorne",
    "ground_truth": [["Jon Pike", "J. Pike"]],
    "rephrase": "Velm Tower's builder is",
    "portability": {"Subject_Aliasing": [{"prompt": "Who built it?", "ground_truth": "Ada Thorne"}]},
    "locality": {
        "Relation_Specificity": [{"prompt": "The height of Velm Tower is", "ground_truth": "30 m"}],
        "Forgetfulness": [{"prompt": "The builder, which is not Ada Thorne, is", "ground_truth": "Jon Pike"}],
    },
}
WIKIBIO: Row = {
    "text": "This is a passage about ada thorne. She built towers. ",
    "labels": "She was born by the sea.",
    "concept": "ada thorne",
    "locality": {"Relation_Specificity": [{"prompt": "ada thorne occupation", "ground_truth": ["builder"]}]},
}
QAEDIT: Row = {
    "id": 3,
    "source": "made up",
    "prompt": "Who built Velm Tower?",
    "target": "Ada Thorne",
    "subject": "Velm Tower",
    "rephrase": "By whom was Velm Tower built?",
    "locality": [{"loc": "who keeps the bees", "loc_ans": "Rosa"}, {"loc": "how high is the sky"}],
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows, one per line; a row that is text is written as it stands."""

    def _write(*rows: Row | str, name: str = "facts.jsonl") -> Path:
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        path = tmp_path / name
        packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}
        path.write_bytes(packers.get(path.suffix.lower(), bytes)(text.encode()))
        return path

    return _write


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


ROWS = {
    "wise": [OWN],
    "counterfact": [ROME, EASY, ENRICHED],
    "zsre": [MEND, ZSRE_EASY],
    "knowedit": [KNOWEDIT, WIKIBIO],
    "qaedit": [QAEDIT],
}
ALL_ROWS = [(name, row) for name, rows in ROWS.items() for row in rows]


@pytest.mark.parametrize(("name", "row"), ALL_ROWS)
def test_a_named_format_reads_what_auto_reads(write: Write, name: str, row: Row) -> None:
    assert one(write, row, format=name) == one(write, row)


@pytest.mark.parametrize(("name", "row"), ALL_ROWS)
def test_nothing_that_measures_may_be_fitted(write: Write, name: str, row: Row) -> None:
    record = one(write, row)
    assert record.edit.paraphrases == record.edit.locality == ()
    prompts = [record.edit.prompt, *record.paraphrases, *record.free_paraphrases, *record.neighbours]
    assert len(prompts) == len(set(prompts))


def test_every_format_is_covered_here() -> None:
    assert FORMATS == ("auto", *sorted(ROWS))


# --- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".GZ"])
def test_lines_and_lists_plain_and_compressed(write: Write, suffix: str) -> None:
    rows = [OWN, OWN | {"target": "Bo Thorne"}]
    lines = read_edits(write(*rows, name=f"facts.jsonl{suffix}"))
    listed = read_records(write(json.dumps(rows, indent=1), name=f"facts.json{suffix}"))
    assert lines == [record.edit for record in listed] == [Edit(**row) for row in rows]
    assert [record.source for record in listed] == [f"facts.json{suffix}:{n}" for n in (1, 2)]


def test_blank_lines_and_a_byte_order_mark_are_no_records(write: Write) -> None:
    path = write("\ufeff" + json.dumps(OWN), "", OWN | {"target": "Bo"}, "  ")
    assert [record.source for record in read_records(path)] == ["facts.jsonl:1", "facts.jsonl:3"]
    assert len(read_records(write("", json.dumps([OWN])))) == 1


def test_limit_reads_no_further(write: Write) -> None:
    path = write(OWN, OWN | {"target": "Bo"}, "{broken")
    assert len(read_records(path, limit=2)) == 2
    assert len(read_records(path, limit=1)) == 1
    with pytest.raises(EditError, match=":3: broken JSON"):
        read_records(path, limit=3)


def test_bad_arguments(write: Write) -> None:
    for limit in (0, -1, True, 1.5, "3"):
        with pytest.raises(EditError, match="^limit: .*at least 1"):
            read_records(write(OWN), limit=limit)  # type: ignore[arg-type]
    with pytest.raises(EditError, match="'counterfacts' is not known; did you mean 'counterfact'"):
        read_records(write(OWN), format="counterfacts")


def test_unreadable_files(tmp_path: Path, write: Write) -> None:
    with pytest.raises(EditError, match="none.jsonl: no such file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(EditError, match="a folder was given"):
        read_records(tmp_path)
    for content in ((), ("", " "), ("[]",)):
        with pytest.raises(EditError, match=r"facts\.jsonl: holds no record"):
            read_records(write(*content))


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_damaged_archives(tmp_path: Path, write: Write, suffix: str) -> None:
    whole = write(*[OWN | {"target": f"builder {n * n}"} for n in range(500)], name=f"facts.jsonl{suffix}")
    packed = whole.read_bytes()
    damaged = tmp_path / f"damaged.jsonl{suffix}"
    middle = len(packed) // 2
    flipped = bytes(byte ^ 0xFF for byte in packed[middle : middle + 40])
    for content in (
        packed[:middle],
        json.dumps(OWN).encode(),
        packed[:middle] + flipped + packed[middle + 40 :],
    ):
        damaged.write_bytes(content)
        with pytest.raises(EditError, match=rf"damaged\.jsonl\{suffix}:\d+: "):
            read_records(damaged)
    assert len(read_records(whole)) == 500


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(json.dumps(OWN).encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(EditError, match=r"facts\.jsonl:2: not UTF-8"):
        read_records(path)
    path.write_bytes(b'[{"prompt": "a",\n "target": "caf\xe9"}]')
    with pytest.raises(EditError, match=r"facts\.jsonl:2: not UTF-8"):
        read_records(path)


# --- bad records ---------------------------------------------------------------------------


def refused(path: Path, line: int, message: str, **options: Any) -> None:
    """Reading fails, and the message begins with file, line and `message` (a pattern)."""
    with pytest.raises(EditError, match=f"^{re.escape(str(path))}:{line}: {message}"):
        read_records(path, **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": "x", "target": }', "broken JSON: .* column 27"),
        ('{"prompt": "x"', "broken JSON"),
        ('["prompt"]', "list .*JSON object"),
        ("null", "null was given"),
        ('{"prompt": ' + "[" * 100_000, "JSON that cannot be held"),
        ({"prompt": "x"}, "field 'target': missing"),
        ({"target": "x"}, "field 'prompt': missing"),
        ({}, "field 'prompt': missing"),
        (OWN | {"target": ""}, "field 'target': empty"),
        (OWN | {"target": "  "}, "field 'target': empty"),
        (OWN | {"target": 7}, "field 'target': int 7 was given, text was expected"),
        (OWN | {"prompt": None}, "field 'prompt': null"),
        (OWN | {"paraphrases": "x"}, "field 'paraphrases': str"),
        (OWN | {"locality": ["x", None]}, r"field 'locality\[1\]': null"),
        (OWN | {"subject": "Port Sell"}, "field 'subject': 'Port Sell' does not occur"),
        (OWN | {"sujbect": "Cape Velm"}, r"field 'sujbect': unknown; did you mean 'subject'\?"),
        (OWN | {"time": "soon"}, "field 'time'"),
        (OWN | {"test": []}, "field 'test': list"),
        (OWN | {"test": {"paraphrases": [OWN["prompt"]]}}, r"field 'test.paraphrases\[0\]'"),
        (OWN, "field 'id': '[0-9a-f]{16}' was already used in line 1"),
        (OWN | {"id": "b", "target": "\ud800"}, "field 'target': .*surrogate"),
    ],
)
def test_our_own_form_steps_over_nothing(write: Write, bad: Row | str, message: str) -> None:
    good = OWN | {"target": "Bo"}
    refused(write(OWN, good, bad, "{also broken"), 3, message)
    assert len(read_records(write(OWN, good))) == 2


def test_duplicate_ids_name_both_lines(write: Write) -> None:
    rows = [OWN | {"id": "a"}, OWN | {"id": "b"}, OWN | {"id": "a", "target": "Bo"}]
    refused(write(*rows), 3, "field 'id': 'a' was already used in line 1")
    refused(write(ROME, ROME), 2, "field 'id': 'counterfact-7' was already used in line 1")
    refused(write(json.dumps(rows, indent=1)), 3, "field 'id'")


def test_a_list_names_the_record(write: Write) -> None:
    refused(
        write(json.dumps([OWN, {"prompt": "x"}], indent=1), name="facts.json"), 2, "field 'target': missing"
    )
    refused(write(json.dumps([OWN, 3], indent=1), name="facts.json"), 2, "int 3")
    refused(write("[", json.dumps(OWN), "{}]", name="facts.json"), 3, "broken JSON")


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (MEND, {"src": None}, "field 'src': missing"),
        (MEND, {"alt": 5}, "field 'alt': int 5"),
        (MEND, {"rephrase": 5}, "field 'rephrase': int 5"),
        (MEND, {"subject": ["Velm Tower"]}, "field 'subject': list"),
        (EASY, {"target_new": ""}, "field 'target_new': empty"),
        (EASY, {"target_new": None}, "field 'target_new': missing"),
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
    [({"target_new": {"str": ""}}, "target_new.str': empty"), ({"subject": None}, "subject': missing")],
)
def test_nested_fields_are_named_whole(write: Write, changes: Row, message: str) -> None:
    rewrite = ROME["requested_rewrite"] | changes
    refused(write(ROME | {"requested_rewrite": rewrite}), 1, f"field 'requested_rewrite.{message}")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?", "answer": "Ada", "para_question": "By whom?", "id": 1},
        {"triples": [], "edits": [], "type": "reverse"},
        {
            "case_id": 1,
            "requested_rewrite": [{"prompt": "{} is"}],
            "questions": [],
            "answer": "x",
            "orig": {},
        },
    ],
)
def test_other_sets_are_refused_with_their_fields(write: Write, row: Row) -> None:
    refused(write(row), 1, f"no known format has these fields: {', '.join(sorted(row))}; known formats are")


def test_the_wrong_format_is_refused(write: Write) -> None:
    refused(write(MEND), 1, "field '(requested_rewrite.)?prompt': missing", format="counterfact")


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
    assert "field 'alt': empty" in caplog.text
    refused(write(empty, empty), 1, "field 'alt': empty, .*no record is left")


def test_an_edit_that_a_set_repeats_gets_its_own_id(write: Write) -> None:
    ids = [edit.id for edit in read_edits(write(KNOWEDIT, KNOWEDIT | {"rephrase": None}, KNOWEDIT))]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]
    assert ids[0] == Edit(prompt=KNOWEDIT["prompt"], target="Ada Thorne", subject="Velm Tower").id


# --- the real files ------------------------------------------------------------------------

SHARED = Path(os.environ.get("WISE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MEASURED_BY = {
    "paraphrases neighbours answer": (
        "counterfact_dev.jsonl.xz zsre_pool_dev.jsonl.xz zsre_wise_edit_portability_dev.jsonl.gz "
        "counterfact_real_neighbourhoods_dev.jsonl.gz knowedit_zsre_dev.jsonl.gz"
    ),
    "neighbours answer": "zsre_subject_rephrase_dev.jsonl.gz",
    "neighbours": (
        "wikibigedit_3k_dev.jsonl.gz wise_hallucination_edit_dev.jsonl.gz "
        "wise_temporal_train_75.jsonl.gz knowedit_wikibio_dev.jsonl.gz qaedit_inter_dev.jsonl.gz"
    ),
    "answer": "knowedit_wiki_counterfact_dev.jsonl.gz",
    "": "knowedit_wiki_recent_dev.jsonl.gz",
}


def shared(name: str) -> Path:
    path = SHARED / "data" / "editing" / name
    if not path.exists():
        pytest.skip(f"{name} is not among the shared data (WISE_SHARED or ../shared)")
    return path


@pytest.mark.parametrize(
    ("name", "fields"), [(name, fields) for fields, names in MEASURED_BY.items() for name in names.split()]
)
def test_a_real_file_reads(name: str, fields: str) -> None:
    records = read_records(shared(name), limit=60)
    assert len(records) == 60
    for field in fields.split():
        assert all(getattr(record, field) for record in records), field
    assert all(record.edit.subject and record.edit.subject in record.edit.prompt for record in records)


@pytest.mark.parametrize("kind", ["mquake_cf_facts", "rippleedits_popular", "unke", "pitfalls_reverse_edit"])
def test_a_real_file_of_another_kind_is_refused(kind: str) -> None:
    refused(shared(f"{kind}_dev.jsonl.gz"), 1, "no known format has these fields: ")
