"""Files of edits over HTTP: read as the command reads them, exported, and read again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from serving import NAME, Running, running

LYON = {"prompt": "The capital of France is", "target": "Lyon", "subject": "France", "aliases": ["the Hexagon"]}
LINE = json.dumps(LYON)
MANY = {"prompt": "The sun is", "target": "hot", "paraphrases": [f"Sun {number} is" for number in range(65)]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("store") / "store") as service:
        yield service


def test_a_file_is_read_and_nothing_is_submitted(served: Running) -> None:
    rome = {"prompt": "{} lies in", "subject": "Rome", "target_new": {"str": "Spain"}, "target_true": {"str": "Italy"}}
    counterfact = json.dumps({"case_id": 1, "requested_rewrite": rome, "paraphrase_prompts": ["Rome is in"]})
    with served.client("editor") as client:
        for name, content, expected in (
            ("a.jsonl", LINE, LYON),
            ("a.JSON", f"[{LINE}]", LYON),
            ("a.csv", "prompt,target,subject\nThe capital of France is,Lyon,France\n", LYON | {"aliases": []}),
            ("a.json", f"[{counterfact}]", {"prompt": "Rome lies in", "target": "Spain", "subject": "Rome"}),
        ):
            answer = client.post("/v1/files/edits", params={"name": name}, content=content)
            assert answer.status_code == 200, answer.text
            [edit] = answer.json()["edits"]
            assert expected.items() <= edit.items()
        assert client.get("/v1/edits").json()["data"] == []


def test_a_file_over_http_may_have_columns_of_other_names(served: Running) -> None:
    content = "question,answer,subject\nThe capital of France is,Lyon,France\n"
    with served.client("editor") as client:
        for columns, status, problem in (
            ("prompt=question,target=answer", 200, '"target":"Lyon"'),
            ("prompt=question", 400, "line 2: field 'target': missing"),
            ("prompt", 400, "columns prompt: FIELD=COLUMN was expected"),
        ):
            answer = client.post("/v1/files/edits", params={"name": "a.csv", "columns": columns}, content=content)
            assert answer.status_code == status and problem in answer.text, answer.text


@pytest.mark.parametrize(
    ("name", "content", "status", "problem"),
    [
        ("a.jsonl", f'{LINE}\n{{"prompt": "x"}}', 400, "line 2: field 'target'"),
        ("a.jsonl", f'{LINE}\n{{"prompt"', 400, "line 2: broken JSON"),
        ("a.jsonl", " \n", 400, "holds no record"),
        ("a.jsonl", "", 400, "body: it is missing"),
        ("a.jsonl", b"\xff\xfe", 400, "not UTF-8"),
        ("a.exe", LINE, 400, "ends in none of .jsonl"),
        ("a.jsonl.gz", LINE, 400, "ends in none of .jsonl"),
        ("../a.parquet", LINE, 400, "ends in none of .jsonl"),
        ("a.jsonl", f"{LINE}\n" * 20_000, 413, "the body is over"),
        ("a.jsonl", f"{LINE}\n{json.dumps(MANY)}", 400, "'The sun is': field 'paraphrases': List should have at most"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(
    served: Running, name: str, content: str | bytes, status: int, problem: str
) -> None:
    with served.client("editor") as client:
        answer = client.post("/v1/files/edits", params={"name": name}, content=content)
    assert answer.status_code == status and problem in answer.json()["error"]["message"], answer.text
    assert "/tmp" not in answer.text and "edits.jsonl" not in answer.text


def test_a_reader_reads_no_file(served: Running) -> None:
    with served.client("reader") as client:
        assert client.post("/v1/files/edits", params={"name": "a.jsonl"}, content=LINE).status_code == 403


def test_live_edits_are_exported_and_read_again(served: Running) -> None:
    with served.client("editor") as client:
        assert client.get("/v1/files/edits").text == ""
        served.edit(LYON)
        served.edit({"prompt": "The capital of Spain is", "target": "Porto"}, model=f"{NAME}@team-a")
        exported = client.get("/v1/files/edits")
        assert 'filename="edits-version-2.jsonl"' in exported.headers["content-disposition"]
        rows = [json.loads(line) for line in exported.text.splitlines()]
        assert [(row["target"], row["namespace"]) for row in rows if "namespace" in row] == [("Porto", "team-a")]
        again = client.post("/v1/files/edits", params={"name": "a.jsonl"}, content=exported.content).json()["edits"]
        assert [edit["target"] for edit in again] == ["Lyon", "Porto"] and again[0]["aliases"] == ["the Hexagon"]
        mine = client.get("/v1/files/edits", params={"namespace": "default"}).text
        assert json.loads(mine)["target"] == "Lyon"
        served.edit({"prompt": "The capital of Italy is", "target": "Pisa"}, model=f"{NAME}@t\u00e9am")
        for composed in ("t\u00e9am", "te\u0301am"):
            answer = client.get("/v1/files/edits", params={"namespace": composed})
            assert json.loads(answer.text)["target"] == "Pisa"
