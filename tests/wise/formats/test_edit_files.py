"""Files and folders of edits: tables, saved datasets, files that are too large or none, and any JSON at all."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import os
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import ALL_ROWS, EASY, KNOWEDIT, MEND, OWN, ROME, Row, Write, refused, write_rows

from wise.cli.common import file_facts
from wise.edits import Edit
from wise.errors import EditError
from wise.formats import edit_file, files
from wise.formats.edit_file import RecordParser, read_edits, read_records
from wise.formats.files import object_of

FULL = OWN | {"subject": "Cape Velm", "paraphrases": ["Who built the light?", "Its builder is"]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_rows, tmp_path)


def table(path: Path, *rows: list[str], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return path


# --- tables of text ------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["edits.csv", "edits.tsv", "edits.CSV"])
def test_a_table_is_read_by_the_names_of_its_columns(tmp_path: Path, name: str, delimiter: str) -> None:
    head, empty = ["target", "subject", "prompt"], ["Bo; Jo, Lee", "", "Two lines,\nof \"text\" is"]
    path = table(tmp_path / name, head, [OWN["target"], "Cape Velm", OWN["prompt"]], empty, delimiter=delimiter,
                 encoding="utf-8-sig")  # fmt: skip
    first, second = read_records(path)
    assert first.edit == Edit(**OWN, subject="Cape Velm")
    assert second.edit == Edit(prompt=empty[2], target=empty[0])
    assert (first.source, second.source) == (f"{name}:2", f"{name}:3")
    packed = path.with_name("edits.csv.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_edits(packed) == [first.edit, second.edit]


@pytest.mark.parametrize("spelt", [json.dumps, repr])
def test_a_cell_that_spells_a_list_or_an_object_is_one(tmp_path: Path, spelt: Any) -> None:
    columns = FULL | {"test": {"neighbours": ["The sea is"]}}
    cells = [value if isinstance(value, str) else spelt(value) for value in columns.values()]
    (record,) = read_records(table(tmp_path / "e.csv", list(columns), cells))
    assert record.edit == Edit(**FULL) and record.neighbours == ("The sea is",)
    nested = [spelt(value) if isinstance(value, dict | list) else str(value) for value in KNOWEDIT.values()]
    (found,) = read_records(table(tmp_path / "k.csv", list(KNOWEDIT), nested))
    (expected,) = read_records(write_rows(tmp_path, KNOWEDIT, name="k.jsonl"))
    assert found.probes == expected.probes and found.edit == expected.edit
    (plain,) = read_records(table(tmp_path / "p.csv", ["prompt", "target"], ["[the prompt", "{x"]))
    assert (plain.edit.prompt, plain.edit.target) == ("[the prompt", "{x")


def test_columns_that_are_no_fields_of_edits_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = table(tmp_path / "e.csv", ["", "prompt", "target", "score"], ["0", OWN["prompt"], OWN["target"], "0.5"])
    assert read_edits(path) == [Edit(**OWN)]
    assert "'score' (1)" in caplog.text and "'' (1)" in caplog.text
    refused(write_rows(tmp_path, OWN | {"score": 1}), 1, "field 'score': unknown")  # lines have no columns


def test_other_names_of_columns(tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    head = ["question", "answer", "subject", "target"]
    path = table(tmp_path / "e.csv", head, ["Who built Velm?", "Ada", "Velm", "easy"])
    columns = {"prompt": "question", "target": "answer"}
    expected = [Edit(prompt="Who built Velm?", target="Ada", subject="Velm")]
    assert read_edits(path, columns=columns) == expected
    assert "not used, and in how many records: 'target' (1)" in caplog.text
    lines = write({"question": "Who built Velm?", "answer": "Ada", "subject": "Velm"})
    assert read_edits(lines, columns=columns) == expected
    refused(path, 2, "field 'questoin': missing; fields found: answer", columns=columns | {"prompt": "questoin"})
    with pytest.raises(EditError, match="columns: no record has a value in a column 'entity'"):
        read_edits(path, columns=columns | {"subject": "entity"})
    with pytest.raises(EditError, match=r"field 'columns.sujbect': unknown; did you mean 'subject'"):
        read_edits(path, columns={"sujbect": "subject"})


def test_what_measures_an_edit_may_have_columns_of_its_own(tmp_path: Path, write: Write) -> None:
    columns = {"prompt": "q", "target": "a", "paraphrases": "other", "test.answer": "old", "test.neighbours": "near"}
    cells = ["Who built Velm?", "Ada", "Velm's builder is", "Bo", '["Who built Orm?", "The sea is"]']
    for path in (table(tmp_path / "e.csv", [*columns.values()], cells),
                 write(dict(zip(columns.values(), [*cells[:-1], json.loads(cells[-1])], strict=True)))):  # fmt: skip
        (record,) = read_records(path, columns=columns)
        assert record.edit == Edit(prompt=cells[0], target="Ada", paraphrases=("Velm's builder is",))
        assert (record.answer, record.neighbours) == ("Bo", ("Who built Orm?", "The sea is"))
    flat = table(tmp_path / "f.csv", ["prompt", "target", "test.answer"], ["Who built Velm?", "Ada", "Bo"])
    assert read_records(flat)[0].answer == "Bo"
    twice = table(tmp_path / "t.csv", ["prompt", "target", "test", "test.answer"], ["a b", "c", '{"answer": "x"}', "y"])
    refused(twice, 2, "columns 'test' and 'test.answer': both say what 'test.answer' is")
    with pytest.raises(EditError, match="columns.test.anwser': unknown; did you mean 'test.answer'"):
        read_records(flat, columns={"test.anwser": "old"})
    refused(write({"q": "a b", "a": "c", "old": 3}), 1, "field 'test.answer': int 3", columns=columns)


@pytest.mark.parametrize("name", ["Subject", " subject", "SUBJECT "])
def test_a_column_with_almost_the_name_of_a_field_is_not_stepped_over(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / "e.csv", ["prompt", "target", name], ["Who built Velm?", "Ada", "Velm"])
    refused(path, 2, f"column '{name}': is it 'subject'")
    if name == "Subject":
        assert read_edits(path, columns={"subject": name})[0].subject == "Velm"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("prompt,target\nx\n", 2, "1 cells were given, 2 were expected"),
        ('prompt,target\n"a\nb",c\nx,y,z\n', 4, "3 cells were given"),
        ("prompt,target,target\nx,y,z\n", 1, "column 'target' is there twice"),
        ('prompt,target\n"x,y\n', 2, "unexpected end of data"),
        ("prompt,target\nx,\n", 2, "field 'target': missing"),
        ("question,reply,day\nx,y,z\n", 2, "no known format has these fields: day, question, reply"),
        ("prompt,target\nx,caf\xe9\n", 2, "not UTF-8"),
    ],
)
def test_a_table_that_is_not_even_is_refused_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "e.csv"
    path.write_bytes(text.encode("latin-1"))
    refused(path, line, message)
    path.write_text("prompt,target\n")
    with pytest.raises(EditError, match="holds no record; .* a table whose first row names the columns"):
        read_records(path)


# --- Parquet, Arrow, datasets --------------------------------------------------------------


ROWS: list[Row] = [FULL, OWN | {"target": "Bo"}, OWN | {"target": "Jo", "test": {"neighbours": ["The sea is"]}}]


def test_parquet_and_arrow(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    expected = read_records(write_rows(tmp_path, *ROWS, name="e.jsonl"))
    whole = pa.Table.from_pylist([{**dict.fromkeys({*FULL, "test"}), **row} for row in ROWS])
    pq.write_table(whole, tmp_path / "e.parquet", row_group_size=2)
    for name, opened in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        with opened(tmp_path / name, whole.schema) as writer:
            writer.write_table(whole)
    for name in ("e.parquet", "stream.arrow", "file.arrow"):
        records = read_records(tmp_path / name)
        assert [r.edit for r in records] == [r.edit for r in expected]
        assert records[2].neighbours == ("The sea is",) and records[2].source == f"{name}:3"
    nested = pa.Table.from_pylist([ROME])
    pq.write_table(nested, tmp_path / "rome.parquet")
    assert read_records(tmp_path / "rome.parquet")[0].edit == read_edits(write_rows(tmp_path, ROME))[0]


def test_dates_of_a_table_are_times_and_numbers_are_ids(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from datetime import datetime

    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([OWN | {"time": datetime(2026, 1, 2), "id": 7}]), tmp_path / "e.parquet")
    (edit,) = read_edits(tmp_path / "e.parquet")
    assert (edit.time, edit.id) == ("2026-01-02T00:00:00", "7")  # as in a table of text


@pytest.mark.parametrize("name", ["e.parquet", "e.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1", b"\xff" * 64, b'{"prompt": "x"}', b"PAR1" + b"\0" * 99])
def test_a_damaged_binary_table_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EditError, match=rf"{name}(:1: cannot be read|: holds no record)"):
        read_records(tmp_path / name)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EditError, match=r"e.parquet: needs pyarrow .*pip install 'wise-runtime\[datasets\]'"):
        read_records(tmp_path / "e.parquet")
    assert read_edits(write_rows(tmp_path, OWN)) == [Edit(**OWN)]


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [OWN | {"target": str(number)} for number in range(7)]
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(tmp_path / "one", num_shards=2)
    assert [edit.target for edit in read_edits(tmp_path / "one")] == [row["target"] for row in rows]
    both = datasets.DatasetDict(train=one, test=one.select([0, 2]))
    both.save_to_disk(tmp_path / "both")
    assert [edit.target for edit in read_edits(tmp_path / "both" / "test")] == ["0", "2"]
    with pytest.raises(EditError, match="both: holds several splits; name one: .*both/test, .*both/train"):
        read_records(tmp_path / "both")


def test_a_folder_of_shards_is_one_split(tmp_path: Path) -> None:
    for name in ("README.md", "dataset_infos.json", ".hidden.jsonl", "cache-1.arrow", "notes.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "data").mkdir()
    for shard in range(2):
        write_rows(tmp_path / "data", OWN | {"target": f"{shard}"}, name=f"train-0000{shard}-of-00002.jsonl")
    assert [edit.target for edit in read_edits(tmp_path)] == ["0", "1"]
    write_rows(tmp_path / "data", OWN, name="test-00000-of-00001.jsonl.gz")
    assert read_edits(tmp_path / "test") == read_edits(tmp_path / "data" / "test") == [Edit(**OWN)]
    with pytest.raises(EditError, match="several splits; name one: .*data/test, .*data/train"):
        read_records(tmp_path)
    (tmp_path / "other").mkdir()
    write_rows(tmp_path / "other", OWN, name="test.jsonl")
    with pytest.raises(EditError, match="several splits; name one: .*data/test, .*other/test"):  # of two configurations
        read_records(tmp_path / "test")
    assert len(read_records(tmp_path / "other")) == len(read_records(tmp_path / "data" / "test")) == 1
    again = write_rows(tmp_path / "data", OWN | {"target": "0"}, name="train-00001-of-00002.jsonl")
    with pytest.raises(EditError, match=f"{again}:1: field 'id': .* already used in line 1 of .*train-00000"):
        read_records(tmp_path / "train")
    again.unlink()
    with pytest.raises(EditError, match="1 of the 2 files of this split are there; fetch the others too"):
        read_records(tmp_path / "train")


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    """A report names the data by it."""
    whole = write_rows(tmp_path, OWN, OWN | {"target": "Bo"}, name="e.jsonl")
    (tmp_path / "folder").mkdir()
    for place, row in enumerate((OWN, OWN | {"target": "Bo"})):
        write_rows(tmp_path / "folder", row, name=f"train-0000{place}-of-00002.jsonl")
    assert file_facts(tmp_path / "folder") == file_facts(whole) | {"name": "folder"}
    assert file_facts(tmp_path / "folder" / "train")["sha256"] == sha256(whole.read_bytes()).hexdigest()


def test_a_split_in_two_kinds_of_file_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, OWN, name="train.jsonl")
    table(tmp_path / "train.csv", list(OWN), list(OWN.values()))
    with pytest.raises(EditError, match="this split is there in several kinds of file"):
        read_records(tmp_path)
    assert len(read_records(tmp_path / "train.csv")) == 1
    with pytest.raises(EditError, match="other: no such file"):
        read_records(tmp_path / "other")


def test_folders_in_folders_are_read_and_other_kinds_of_data_are_not_stepped_over(tmp_path: Path) -> None:
    for hidden in (".git", "deep/.cache"):
        (tmp_path / hidden).mkdir(parents=True)
        write_rows(tmp_path / hidden, OWN, name="e.jsonl")
    (tmp_path / "deep/er/still").mkdir(parents=True)
    write_rows(tmp_path / "deep/er/still", OWN, name="train.ndjson")
    assert read_edits(tmp_path) == [Edit(**OWN)]
    (tmp_path / "deep/test.jsonl.zst").write_bytes(b"packed otherwise")
    with pytest.raises(EditError, match="several splits; name one: .*/deep/er/still/train, .*/deep/test.jsonl"):
        read_records(tmp_path)
    with pytest.raises(EditError, match=r"test.jsonl.zst: .zst is not read; unpack or save it as one of .json, .jsonl"):
        read_records(tmp_path / "deep/test.jsonl")
    assert read_edits(tmp_path / "deep/er/still/train") == [Edit(**OWN)]


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"


@pytest.mark.parametrize("name", ["e.jsonl", "e.json", "e.csv", "e.jsonl.gz", "e.parquet", "e.arrow"])
def test_a_pointer_of_git_lfs_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(EditError, match=rf"{name}: is a Git LFS pointer, .*`git lfs pull`"):
            read_records(path)
    (tmp_path / "e.jsonl").write_text(json.dumps(OWN | {"target": POINTER}) + "\n")  # a text about them is none
    assert read_edits(tmp_path / "e.jsonl")[0].target == POINTER.rstrip()


# --- kinds and sizes -----------------------------------------------------------------------


def test_a_device_or_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    (tmp_path / "link.jsonl").symlink_to("/dev/zero")
    for path in (pipe, Path("/dev/zero"), tmp_path / "link.jsonl"):
        with pytest.raises(EditError, match="is a pipe or a device"):
            read_records(path)
    (tmp_path / "loop").symlink_to("loop")
    for bad in (tmp_path / "loop", "a\0b", "x" * 5000):
        with pytest.raises(EditError):
            read_records(bad)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("name", ["e.jsonl", "e.json", "e.csv"])
def test_no_more_is_unpacked_than_the_bound(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 100_000)
    opening = {"e.json": "[", "e.csv": "prompt,target\n"}.get(name, "")
    assert len(write(opening + " " * 1_000_000, name=f"{name}{suffix}").read_bytes()) < 10_000 or not suffix
    with pytest.raises(EditError, match="holds more than 100,000 bytes; split it"):
        read_records(write(opening + " " * 1_000_000, name=f"{name}{suffix}"))
    monkeypatch.setattr(files, "MAX_BYTES", 2_000_000)
    with pytest.raises(EditError, match="holds no record|broken JSON|field larger"):
        read_records(write(opening + " " * 1_000_000, name=f"{name}{suffix}"))


def test_a_large_binary_table_is_refused_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [OWN | {"id": str(number), "author": "a" * 1000} for number in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet", use_dictionary=False, compression="zstd")
    assert (tmp_path / "e.parquet").stat().st_size < 100_000
    assert len(read_edits(tmp_path / "e.parquet")) == 1000
    monkeypatch.setattr(files, "MAX_BYTES", 100_000)
    with pytest.raises(EditError, match="holds more than 100,000 bytes"):
        read_records(tmp_path / "e.parquet")


# --- any JSON ------------------------------------------------------------------------------

NAMES = sorted({name for _, row in ALL_ROWS for name in row} | {"str", "subject", "ground_truth", "{}", "x"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["{} is", "x y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(value=VALUES, row=st.sampled_from([row for _, row in ALL_ROWS]), data=st.data())
def test_any_json_is_read_or_refused(value: object, row: Row, data: st.DataObject) -> None:
    changed = row | {data.draw(st.sampled_from(NAMES)): value} | (value if isinstance(value, dict) else {})
    for given_value in (value, changed):
        try:
            RecordParser().add(Path("e.jsonl"), 1, object_of(json.dumps(given_value).encode()))
        except EditError as error:
            assert str(error)


@settings(max_examples=100)
@given(line=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_line_is_read_or_refused(line: bytes) -> None:
    with pytest.raises(EditError):
        RecordParser().add(Path("e.jsonl"), 1, object_of(line))


def test_a_key_twice_is_refused_wherever_it_stands(write: Write) -> None:
    twice = '{"prompt": "x", "target": "y", "target": "z"}'
    refused(write(twice), 1, "field 'target': given twice in one object")
    refused(write(f"[{json.dumps(OWN)},\n{twice}]"), 2, "field 'target': given twice")
    inner = json.dumps(EASY).replace("}", ', "locality": {"a": [{"b": 1, "b": 1}]}}')
    refused(write(inner), 1, "field 'b': given twice")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[{}", 2), ("[\n{},\n]", 3), ("[{} {}]", 1), ("[,]", 1), ("[{}]\nx", 2), ("[1]", 1), ("[[]]", 1),
        ("[{}],", 1), ("[", 2), ("[{},,{}]", 1),
    ],
)  # fmt: skip
def test_a_list_that_is_broken_anywhere_is_refused(write: Write, text: str, line: int) -> None:
    own = json.dumps(OWN)
    refused(write(text.replace("{}", own, 1).replace("{}", own.replace("Ada", "Bo"))), line, "")


def test_lists_may_be_written_with_any_space(write: Write) -> None:
    own = [json.dumps(OWN), json.dumps(OWN | {"target": "Bo"})]
    for text in (f"[{own[0]},{own[1]}]", f"\n [ \n{own[0]}\n ,\n\n {own[1]} ] \n\n"):
        assert len(read_records(write(text))) == 2
    packed = write(f"[{own[0]}]", name="e.json.xz")
    assert lzma.decompress(packed.read_bytes()).startswith(b"[") and len(read_records(packed)) == 1


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize("field", ["rephrase", "subject", "portability", "answers", "unknown"])
def test_what_lies_too_deep_is_refused_or_named(write: Write, field: str) -> None:
    row = json.dumps(MEND | {field: "DEEP"}).replace('"DEEP"', DEEP)
    try:
        assert len(read_records(write(row))) == 1
    except EditError as error:
        assert "facts.jsonl:1: " in str(error)
    refused(write(row.replace(DEEP, "[" * 100_000)), 1, "JSON that cannot be held")


def test_a_record_that_is_repeated_very_often_costs_no_more_for_each(write: Write) -> None:
    path = write(*[KNOWEDIT] * 2000)
    ids = [edit.id for edit in read_edits(path)]
    assert len(set(ids)) == 2000 and ids[-1] == f"{ids[0]}-2000"


def test_many_names_in_one_object_make_a_short_message(write: Write) -> None:
    many = {f"name {number}": 1 for number in range(20_000)}
    twice = json.dumps(many)[:-1] + ', "name 19999": 2}'
    refused(write(twice), 1, "field 'name 19999': given twice")
    refused(write({"\x1b[2J": 1, "b": 2, "c": 3}), 1, r"no known format has these fields: '\\x1b\[2J', b, c")
    for row in (many, {"prompt": "x"} | {"n" * 100_000: 1}):
        with pytest.raises(EditError) as refusal:
            read_records(write(row))
        assert len(str(refusal.value)) < 2000
    (write(OWN).parent / "e.csv").write_text(",".join(many) + ",name 1\n")
    refused(write(OWN).parent / "e.csv", 1, "column 'name 1' is there twice")


def test_there_are_no_more_edits_than_the_bound(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit_file, "MAX_EDITS", 3)
    rows = [OWN | {"target": str(number)} for number in range(5)]
    assert len(read_records(write(*rows), limit=4)) == 4
    with pytest.raises(EditError, match="5: more than 3 edits"):
        read_records(write(*rows))


def test_prompts_alike_for_several_subjects_are_a_template(write: Write) -> None:
    """Whatever stands for the subject; one record alone could be a question that does not name it."""
    rows = [{"prompt": "The capital of SUBJ is", "target_new": "x", "subject": name} for name in ("Velm", "Orm")]
    assert len(read_records(write(rows[0], rows[0]))) == 2
    refused(write(*rows), 2, "field 'prompt': .* was given for the subject 'Velm' and for 'Orm', and names neither")
