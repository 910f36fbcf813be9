"""Readers: files plain and packed, and bad input that names file, line and field."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from published import KNOWEDIT, MEND, MQUAKE, OWN, ROME, Row, Write, refused, write_rows

from wise.edits import Edit
from wise.errors import EditError
from wise.formats.edit_file import read_edits, read_records


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_rows, tmp_path)


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


def test_a_limit_cuts_through_groups(write: Write) -> None:
    path = write(MQUAKE, MQUAKE | {"case_id": 5})
    whole = read_records(path)
    assert [record.group for record in whole] == ["mquake-4", "mquake-4", "mquake-5", "mquake-5"]
    for limit in range(1, 6):
        assert read_records(path, limit=limit) == whole[:limit]


# --- bad records ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": "x", "target": }', "broken JSON: .* column 27"),
        ('{"prompt": "x"', "broken JSON"),
        ('["prompt"]', "list .*JSON object"),
        ("null", "null was given"),
        ('{"prompt": ' + "[" * 100_000, "JSON that cannot be held: it is nested too deeply"),
        ('{"prompt": ' + "9" * 5000 + "}", "JSON that cannot be held: a number of more than 4,300 digits"),
        ({"prompt": "x"}, "field 'target': missing"),
        ({"target": "x"}, "field 'prompt': missing"),
        ({}, "no known format has these fields: none"),
        ({"prompt": "x", "subject": "x", "answer": "y"}, "field 'answer': unknown"),
        ({"question": "x", "subject": "x", "answer": "y"}, "no known format has these fields"),
        (OWN | {"target": ""}, "field 'target': empty"),
        (OWN | {"target": "  "}, "field 'target': empty"),
        (OWN | {"target": 7}, "field 'target': int 7 was given, text was expected"),
        (OWN | {"prompt": None}, "field 'prompt': null"),
        (OWN | {"paraphrases": "x"}, "field 'paraphrases': str"),
        (OWN | {"locality": ["x", None]}, r"field 'locality\[1\]': null"),
        (OWN | {"subject": "Port Sell"}, "field 'subject': 'Port Sell' does not occur"),
        (OWN | {"sujbect": "Cape Velm"}, r"field 'sujbect': unknown; did you mean 'subject'\?"),
        (OWN | {"time": "soon"}, "field 'time'"),
        (OWN | {"valid_until": "2027-01-01"}, "field 'valid_until': only a store keeps it; use `wise stream`"),
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
    refused(write(json.dumps([OWN, {"prompt": "x"}], indent=1), name="facts.json"), 2, "field 'target': missing")
    refused(write(json.dumps([OWN, 3], indent=1), name="facts.json"), 2, "int 3")
    refused(write("[", json.dumps(OWN), "{}]", name="facts.json"), 3, "broken JSON")


def test_an_edit_that_a_set_repeats_gets_its_own_id(write: Write) -> None:
    ids = [edit.id for edit in read_edits(write(KNOWEDIT, KNOWEDIT | {"rephrase": None}, KNOWEDIT))]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]
    assert ids[0] == Edit(prompt=KNOWEDIT["prompt"], target="Ada Thorne", subject="Velm Tower").id


def test_the_edits_of_one_row_need_ids_of_their_own(write: Write) -> None:
    refused(write(MQUAKE, MQUAKE), 2, "field 'id': 'mquake-4.0' was already used in line 1")


def test_the_wrong_format_is_refused(write: Write) -> None:
    refused(write(MEND), 1, "field '(requested_rewrite.)?prompt': missing", format="counterfact")
