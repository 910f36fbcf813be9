"""Reading the file of a run: a whole one is given back, anything else is named and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wise.errors import ConfigError
from wise.lab.eval.results_file import KEYS, OUTCOME, SCHEMA, read_run

VALUES = {"number": 1, "text": "x", "object": {}, "object or null": None, "list": []}
ASKED = {"record": "a", "measure": "reliability", "prompt": "w4", "generated": 1.0, "teacher_forced": 0.5}


def a_run(**changes: Any) -> dict[str, Any]:
    """The smallest run there is."""
    return {"schema": SCHEMA, **{name: VALUES[kind] for name, kind in KEYS.items()}, "outcomes": [ASKED]} | changes


def written(folder: Path, content: Any) -> Path:
    path = folder / "run.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = a_run(routing={"classes": {}}, further=[1, {"é": None}])
    assert read_run(written(tmp_path, run)) == run
    assert read_run(str(written(tmp_path, a_run(outcomes=[])))) == a_run(outcomes=[])


@pytest.mark.parametrize("content", ["", "{", "schema: 1", '{"schema": NaN}', '{"schema": -Infinity}', "[" * 200_000])
def test_what_is_not_json_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError, match="not JSON") as refused:
        read_run(path)
    assert str(refused.value).startswith(f"{path}: ") and "wise eval --output" in str(refused.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path, said in ((tmp_path / "bytes", "not JSON"), (tmp_path / "gone", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ConfigError, match=said) as refused:
            read_run(path)
        assert str(path) in str(refused.value)
    for content in ([1], "1", '"text"', "null"):
        with pytest.raises(ConfigError, match="the object of a run was expected"):
            read_run(written(tmp_path, content))


@pytest.mark.parametrize("name", KEYS)
def test_each_missing_key_is_named(tmp_path: Path, name: str) -> None:
    run = a_run()
    del run[name]
    with pytest.raises(ConfigError, match=f"it has no {name};"):
        read_run(written(tmp_path, run))


def test_all_missing_keys_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=", ".join(KEYS)):
        read_run(written(tmp_path, {"schema": SCHEMA}))
    with pytest.raises(ConfigError, match="it has no schema"):
        read_run(written(tmp_path, {}))


@pytest.mark.parametrize("name", KEYS)
def test_each_value_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: bool True was found, {KEYS[name]} was expected"):
        read_run(written(tmp_path, a_run(**{name: True})))


@pytest.mark.parametrize(
    ("schema", "remedy"),
    [(SCHEMA + 1, "upgrade"), (0, "again"), (True, "again"), (1.0, "again"), ("1", "again"), (None, "again")],
)
def test_an_unknown_schema_is_refused(tmp_path: Path, schema: Any, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"schema {SCHEMA} is what is read here.*{remedy}"):
        read_run(written(tmp_path, a_run(schema=schema)))


@pytest.mark.parametrize("name", OUTCOME)
def test_a_wrong_outcome_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    lacking = {key: value for key, value in ASKED.items() if key != name}
    for wrong, said in ((lacking, f"it has no {name}"), (ASKED | {name: None}, "null was found"), ([], "list")):
        with pytest.raises(ConfigError, match=rf"outcomes\[1\].*{said}"):
            read_run(written(tmp_path, a_run(outcomes=[ASKED, wrong])))


def test_a_number_too_large_is_refused(tmp_path: Path) -> None:
    content = json.dumps(a_run(edits="HERE")).replace('"HERE"', "1e999")
    with pytest.raises(ConfigError, match="edits: float inf"):
        read_run(written(tmp_path, content))


@pytest.mark.parametrize("name", ["generated", "teacher_forced"])
def test_an_outcome_lies_between_0_and_1(tmp_path: Path, name: str) -> None:
    for value in (0, 1, 0.25):
        assert read_run(written(tmp_path, a_run(outcomes=[ASKED | {name: value}])))["outcomes"][0][name] == value
    for value in (1.7e308, -0.1, 10**200):
        with pytest.raises(ConfigError, match=rf"outcomes\[0\]\.{name}: .* number from 0 to 1 was expected"):
            read_run(written(tmp_path, a_run(outcomes=[ASKED | {name: value}])))


@pytest.mark.parametrize("place", ["edits", "seed", "further"])
def test_a_whole_number_that_is_no_float_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="not JSON .a whole number of 401 characters"):
        read_run(written(tmp_path, a_run(**{place: 10**400})))
    assert read_run(written(tmp_path, a_run(**{place: -(10**200)})))[place] == -(10**200)


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / ("x" * 5000), loop):
        reason = "too long" if path != loop else "symbolic links"
        with pytest.raises(ConfigError, match=f"(?i){reason}.*wise eval --output"):
            read_run(path)


def test_reading_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy'}"
    check = f"import sys, wise.lab.eval.results_file; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
