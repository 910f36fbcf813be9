"""The command line: what stands on stdout, what on stderr, and with which code it ends."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chats import TEMPLATE
from commands import refused, run, tiny_folder
from tiny import WordReader, text, tiny_model, tiny_tokenizer
from typer.testing import Result

import wise
from wise.demo import model_path
from wise.demo.facts import load_facts
from wise.demo.records import demo_records
from wise.errors import ConfigError
from wise.formats.edit_file import read_records
from wise.lab.eval.candidates import EDITORS
from wise.lab.eval.chat.measure import ChatFigures
from wise.lab.eval.results_file import read_run
from wise.loading import load_model
from wise.router.encoder import load_encoder

MEASURES = {"reliability", "generalization", "free_generalization", "locality"}
PROMISED = {
    "editor": str,
    "edits": int,
    "generated": dict,
    "teacher_forced": dict,
    "cpu_seconds_per_edit": float,
    "seconds_per_edit": float,
    "failed_edits": int,
    "counts": dict,
}
CLASS_FIGURES = {"n", "auroc", "average_precision", "fpr_at_95_tpr", "tpr_at_fpr_0.001"}
ROUTING = {"classes", "false_routes_per_million", "slot_top1", "edit_top1", "flips", "oracle"}
TIMES = {"cpu_seconds_per_edit", "seconds_per_edit", "timing"}
FRANCE = ("--prompt", "The capital of France is", "--target", "Lyon", "--subject", "France")


def last_line(result: Result) -> Any:
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of five records."""
    file = tmp_path_factory.mktemp("data") / "edits.jsonl"
    records = [
        wise.Record(
            edit=wise.Edit(id=f"r{i}", prompt=text([i, i + 10]), target=text([i + 40])),
            paraphrases=(text([90, i, i + 10]),),
            neighbours=(text([80, i]),),
        )
        for i in range(20, 25)
    ]
    file.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records))
    return file


@pytest.fixture(scope="module")
def lyon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A memory of the demo model with one edit, and what making it printed."""
    folder = tmp_path_factory.mktemp("memory") / "lyon"
    return folder, run("edit", *FRANCE, "--mode", "retrieve", "--output", folder, "--json")


# -- starting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["bench", "editors", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    check = (
        "import sys\nfrom wise.__main__ import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end\n"
        "heavy = {'torch', 'transformers', 'faiss'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wise" in done.stdout


def test_help_of_eval_names_every_editor() -> None:
    shown = run("eval", "--help").stdout.replace("│", " ").split()
    assert set(EDITORS) <= {word.strip(",;.") for word in shown}


def test_help_names_every_command_and_the_exit_codes() -> None:
    shown = " ".join(run("--help").stdout.split())
    named = ("edit", "forget", "store", "ask", "eval", "compare", "locate", "info", "demo")
    assert all(f" {name} " in shown for name in named)
    assert all(f"{code} " in shown.partition("Exit codes:")[2] for code in range(4))


def test_version() -> None:
    assert run("--version").stdout == f"wise {wise.__version__}\n"


# -- edit, ask, info --------------------------------------------------------------------------


def test_an_edit_that_verifies_ends_with_code_0(lyon: tuple[Path, Result]) -> None:
    folder, result = lyon
    assert result.exit_code == 0, result.output
    found = last_line(result)
    assert (found["edits"], found["verified_edits"], found["failed_edits"]) == (1, 1, 0)
    assert found["outcomes"][0]["answer"] == "Lyon" and found["output"] == str(folder)
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["edit", "eval", "bench editors", "eval-chat", "locate"])
def test_namespaces_that_one_memory_would_mix_up_are_refused(tmp_path: Path, command: str) -> None:
    """Two edits of one question; before, the later one alone was left, and the exit code was 0."""
    asked = {"prompt": "The capital of France is", "subject": "France", "test": {"answer": "Paris"}}
    rows = [asked | {"target": town, "namespace": name} for town, name in (("Lyon", "a"), ("Nice", "b"))]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    option = "--edits" if command == "edit" else "--data"
    output = [] if command in ("eval", "eval-chat") else ["--output", str(tmp_path / "out")]
    done = run(*command.split(), option, file, *output)
    assert done.exit_code == 2 and not (tmp_path / "out").exists()
    assert "several namespaces were given ('a', 'b')" in done.stderr and "`wise stream`" in done.stderr


def test_a_memory_of_several_namespaces_is_not_asked(tiny: Path, tmp_path: Path) -> None:
    base, tokenizer = load_model(str(tiny))
    model = wise.wrap(base, tokenizer, wise.WiseConfig(mode="retrieve", layer=1, terminator=""))
    model.edit([wise.Edit(id=f"e{i}", prompt=text([i, i + 10]), target=text([i + 40])) for i in (20, 21)])
    for name in ("default", "b"):
        first, *rest = model.state.edits
        model.state = replace(model.state, edits=(replace(first, namespace=name), *rest))
        model.save_pretrained(tmp_path / name)
        done = run("ask", text([20, 30]), "--memory", tmp_path / name, "--model", tiny)
        assert done.exit_code == (0 if name == "default" else 2), done.output
    assert "several namespaces were given ('b', 'default')" in done.stderr


def test_edits_of_a_table_with_other_names_of_columns(tmp_path: Path) -> None:
    file = tmp_path / "edits.csv"
    file.write_text("question,answer,subject\nThe capital of France is,Lyon,France\n")
    done = run("edit", "--edits", file, "--output", tmp_path / "out", "--mode", "retrieve")
    assert done.exit_code == 2 and "--columns prompt=question,target=answer" in done.stderr
    for bad in ("prompt", "prompt=", "=question", "prompt=question,prompt=answer"):
        done = run("edit", "--edits", file, "--columns", bad, "--output", tmp_path / "out")
        assert done.exit_code == 2 and "FIELD=COLUMN was expected" in done.stderr
    done = run("edit", "--edits", file, "--columns", "prompt=question, target=answer", "--output", tmp_path / "out",
               "--mode", "retrieve", "--json")  # fmt: skip
    assert done.exit_code == 0 and last_line(done)["verified_edits"] == 1


def test_ask_shows_before_and_after_and_who_spoke(lyon: tuple[Path, Result]) -> None:
    folder, _ = lyon
    result = run("ask", "--memory", folder, "--json", "The capital of France is", "The [bold]moon[/bold] is")
    assert result.exit_code == 0, result.output
    assert "before: Paris\nafter:  Lyon\n" in result.stdout
    edited, other = last_line(result)["answers"]
    assert (edited["before"], edited["after"]) == ("Paris", "Lyon")
    assert other["before"] == other["after"] and "prompt: The [bold]moon[/bold] is\n" in result.stdout
    for answer in (edited, other):
        for token in answer["tokens"]:
            opened = token["threshold"] is not None and token["score"] >= token["threshold"]
            assert (token["slot"] is not None) == opened
    asked = [token for token in edited["tokens"] if token["part"] == "prompt"]
    assert "".join(token["token"] for token in asked).endswith("The capital of France is")
    assert asked[-1]["slot"] == 0 and asked[1]["slot"] is None
    assert all(token["slot"] is None for token in other["tokens"])
    assert "' is'" in result.stdout and "slot 0" in result.stdout


def test_ask_asks_in_a_chat_where_the_model_has_one_unless_told_otherwise(
    lyon: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wise.model.load_encoder", lambda *_, **__: WordReader())
    base, memory, tokenizer = tmp_path / "base", tmp_path / "memory", tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tiny_model("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = wise.wrap(tiny_model("llama"), tokenizer, wise.WiseConfig(layer=1, terminator="w9"))
    assert not model.edit(wise.Edit(prompt="w50 w51 w52", target="w70 w71", subject="w50")).failed
    model.save_pretrained(memory)

    def asked(*options: str) -> tuple[str, list[str]]:
        """The answer, and the tokens of the prompt."""
        command = ("ask", "--memory", memory, "--model", base, "--json", *options, "w50 w51 w52")
        [answer] = last_line(run(*command))["answers"]
        return answer["after"], [token["token"] for token in answer["tokens"] if token["part"] == "prompt"]

    turn = ["<bos>", "w4", "w50", "w51", "w52", "<eos>", "<bos>", "w5"]
    assert asked() == asked("--chat") == ("w70 w71", turn)
    assert asked("--plain") == ("w70 w71", ["<bos>", "w50", "w51", "w52"])
    refused(run("ask", "--memory", lyon[0], "--chat", "The capital of France is"), "no chat template", "plain")


def two_capitals(folder: Path, mode: str) -> Path:
    """A memory with the edits `france` and `spain`."""
    given = [
        wise.Edit(id="france", prompt="The capital of France is", target="Lyon", subject="France"),
        wise.Edit(id="spain", prompt="The capital of Spain is", target="Lisbon", subject="Spain"),
    ]
    edits = folder.with_suffix(".jsonl")
    edits.write_text("".join(json.dumps(edit.to_dict()) + "\n" for edit in given))
    assert run("edit", "--mode", mode, "--edits", edits, "--output", folder).exit_code == 0
    return folder


@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
def test_explain_says_which_edit_spoke_and_which_came_nearest(tmp_path: Path, mode: str) -> None:
    folder = two_capitals(tmp_path / mode, mode)
    asked = ("ask", "--memory", folder, "The capital of France is", "The population of Spain is", "--json")
    plain, result = run(*asked), run(*asked, "--explain")
    assert result.exit_code == 0, result.output
    france, spain = last_line(result)["answers"]
    assert france["after"] == "Lyon" and france["fired"] == ["france"]
    assert spain["after"] == spain["before"] and spain["fired"] == []
    tokens = [*france["tokens"], *spain["tokens"]]
    assert all((token["fired"] is not None) == (token["slot"] is not None) for token in tokens)
    end = next(token for token in france["tokens"] if token["token"] == " is")
    assert end["fired"]["edit"] == "france" and end["fired"]["evidence"] >= 1 and end["fired"]["missed_by"] == 0
    # Beside an edit that speaks `retrieve` names the one that comes next; `hybrid` looks at those alone that are named.
    told = {"retrieve": france, "hybrid": spain}[mode]
    near = next(token for token in told["tokens"] if token["token"] == " is")["missed"]
    assert told["missed"]["edit"] == near["edit"] == "spain" and near["evidence"] < 1
    assert near["missed_by"] == pytest.approx(1 - near["evidence"])
    shown = " ".join(result.stdout.split())
    assert "score" in shown and "threshold" in shown and "nearest that missed" in shown
    assert "france: The capital of France is -> Lyon" in shown and "nearest that spoke nowhere: spain" in shown
    assert "nearest" not in plain.stdout and "fired" not in last_line(plain)["answers"][0]["tokens"][0]


def test_info_of_a_memory_and_of_a_model(lyon: tuple[Path, Result], tiny: Path) -> None:
    folder, _ = lyon
    memory = last_line(run("info", "--memory", folder, "--json"))["memory"]
    assert [edit["target"] for edit in memory["edits"]] == ["Lyon"]
    assert memory["slots"][0]["edits"] == 1 and memory["slots"][0]["threshold"] > 0
    assert memory["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert memory["mode"] == "retrieve" and memory["reader"] is None
    model = last_line(run("info", "--mode", "retrieve", "--json"))["model"]
    assert model["target_module"].startswith("model.layers.5.") and model["terminator"][0] == "."
    assert model["mode"] == "retrieve" and "reader" not in model
    assert last_line(run("info", "--model", tiny, "--layer", "0", "--json"))["model"]["layer"] == 0
    refused(run("info", "--model", tiny, "--memory", folder), "another base")
    refused(run("info", "--memory", folder, "--mode", "hybrid"), "--mode", "leave it out")


def test_info_says_what_questions_are_compared_with(tmp_path: Path) -> None:
    result = run("info", "--json")
    model, reader = last_line(result)["model"], load_encoder()
    assert (model["mode"], model["reader"], model["threshold"]) == ("hybrid", reader.name, reader.threshold)
    assert model["unnamed_threshold"] == reader.unnamed_threshold
    assert model["chat_template"] == "none: chats are read as plain text"
    assert reader.name in result.stdout and "chat_template" in result.stdout
    tokenizer = tiny_tokenizer()
    turns = "{% for message in messages %}w4 {{ message.content }} w5 {% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}w6{% endif %}"
    tiny_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert last_line(run("info", "--model", tmp_path, "--json"))["model"]["chat_template"] == "found"
    refused(run("info", "--relations", tmp_path / "gone"), "gone", "no such file")
    refused(run("info", "--relations", tmp_path / "config.json"), "config.json", "cannot be read")


def test_an_edit_is_found_by_every_name_of_its_subject(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    names = ("--alias", "the Hexagon", "--alias", "Gallia")
    assert run("edit", *FRANCE, *names, "--output", folder).exit_code == 0
    held = last_line(run("info", "--memory", folder, "--json"))["memory"]
    assert (held["mode"], held["edits"][0]["target"]) == ("hybrid", "Lyon") and held["reader"]
    asked = ("The capital of the Hexagon is", "The capital of Gallia is", "The capital of Gaul is")
    answers = last_line(run("ask", "--memory", folder, "--json", *asked))["answers"]
    assert [answer["after"] == "Lyon" for answer in answers] == [True, True, False]
    lone = ("--prompt", "The capital of France is", "--target", "Lyon", "--alias", "Gallia")
    refused(run("edit", *lone, "--output", tmp_path / "out"), "'aliases'", "'subject'")


def test_an_edit_may_be_given_as_a_statement(tmp_path: Path) -> None:
    said = ("--statement", "The capital of France is Lyon.", "--subject", "France", "--alias", "Gallia")
    result = run("edit", *said, "--output", tmp_path / "memory", "--json")
    assert result.exit_code == 0, result.output
    [edit] = last_line(run("info", "--memory", tmp_path / "memory", "--json"))["memory"]["edits"]
    assert (edit["prompt"], edit["target"]) == ("The capital of France is", "Lyon")
    [answer] = last_line(run("ask", "--memory", tmp_path / "memory", "--json", "The capital of Gallia is"))["answers"]
    assert answer["after"] == "Lyon"
    refused(run("edit", *said, "--target", "Nice", "--output", tmp_path / "out"), "leave --prompt and --target out")
    refused(run("edit", "--statement", "Lyon!", "--output", tmp_path / "out"), "'statement'", "no verb")


def test_a_memory_is_edited_further(lyon: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = lyon
    spain = ("--prompt", "The capital of Spain is", "--target", "Lisbon")
    result = run("edit", *spain, "--memory", folder, "--output", tmp_path / "both", "--json")
    assert result.exit_code == 0, result.output
    held = last_line(run("info", "--memory", tmp_path / "both", "--json"))["memory"]["edits"]
    assert [edit["target"] for edit in held] == ["Lyon", "Lisbon"]
    refused(run("edit", *spain, "--memory", folder, "--output", tmp_path / "no", "--seed", "1"), "--seed")


def test_an_edit_is_taken_out_of_a_memory_on_disk(tmp_path: Path) -> None:
    for mode, rewritten in (("hybrid", []), ("retrieve", ["spain"])):
        folder = two_capitals(tmp_path / mode, mode)
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        refused(run("forget", folder, "--id", "portugal"), "'portugal' is not live", "known: france, spain")
        # Only where weights are shared is there a model to be loaded.
        elsewhere = ("--model", tmp_path / "gone") if mode == "hybrid" else ()
        result = run("forget", folder, "--id", "france", *elsewhere, "--output", tmp_path / "left", "--json")
        assert result.exit_code == 0, result.output
        found = last_line(result)
        assert (found["deleted"], found["rewritten"]) == (["france"], rewritten)
        assert (found["dropped"], found["edits"]) == ([], 1)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        asked = ("The capital of France is", "The capital of Spain is")
        answers = last_line(run("ask", "--memory", tmp_path / "left", "--json", *asked))["answers"]
        assert [answer["after"] for answer in answers] == ["Paris", "Lisbon"]
        assert run("forget", folder, "--id", "france", "--id", "spain").exit_code == 0
        assert last_line(run("info", "--memory", folder, "--json"))["memory"]["edits"] == []


def test_an_edit_that_gives_way_to_another_wording_is_named(tmp_path: Path) -> None:
    other = ("--prompt", "In France, the capital is", "--target", "Nice", "--subject", "France")
    assert run("edit", *FRANCE, "--mode", "hybrid", "--output", tmp_path / "memory").exit_code == 0
    result = run("edit", *other, "--memory", tmp_path / "memory", "--output", tmp_path / "memory", "--json")
    assert result.exit_code == 0, result.output
    [conflict] = last_line(result)["conflicts"]
    assert f"{conflict['superseded']} superseded by {conflict['by']}" in result.stdout
    assert len(last_line(run("info", "--memory", tmp_path / "memory", "--json"))["memory"]["edits"]) == 1


def test_edits_that_do_not_verify_end_with_code_3(tiny: Path, tmp_path: Path) -> None:
    # No optimiser brings a random model to say this much.
    target = text(range(60, 90))
    arguments = ("--model", tiny, "--mode", "retrieve", "--prompt", "w20 w21", "--target", target)
    result = run("edit", *arguments, "--output", tmp_path / "memory", "--json")
    assert result.exit_code == 3, result.output
    found = last_line(result)
    assert found["failed_edits"] == 1 and "1 failed" in result.stdout
    assert found["outcomes"][0]["holds"] == {"prompt": False}
    assert f"{found['outcomes'][0]['id']}: not as promised: prompt\n" in result.stdout
    assert last_line(run("info", "--memory", tmp_path / "memory", "--json"))["memory"]["edits"] == []


# -- eval -------------------------------------------------------------------------------------


@pytest.mark.parametrize("editor", ["none", "wise-merge", "wise-retrieve", "wise-hybrid"])
def test_eval_ends_with_the_promised_names(tiny: Path, data: Path, editor: str) -> None:
    arguments = ("--model", tiny, "--data", data, "--editor", editor, "--edits", "2", "--seed", "1")
    result = run("eval", *arguments, "--skip", "1", "--batch", "1", "--json")
    assert result.exit_code == 0, result.output
    found = last_line(result)
    assert {name: type(found[name]) for name in PROMISED} == PROMISED
    assert found["routing"] is None and "outcomes" not in found
    assert set(found["generated"]) == set(found["teacher_forced"]) == set(found["counts"]) == MEASURES
    assert (found["editor"], found["edits"]) == (editor, 2)
    assert ": " not in result.stdout.splitlines()[-1]
    if editor == "none":
        assert found["generated"] == {
            "reliability": 0.0,
            "generalization": 0.0,
            "free_generalization": None,
            "locality": 1.0,
        }


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str | Path, ...], Path, Result]:
    """`wise eval` on edits of the demo model, with all there is to measure: its arguments, folder, and output."""
    folder = tmp_path_factory.mktemp("measured")
    records = demo_records(7, seed=4)
    data = folder / "records.jsonl"
    data.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records))
    text = folder / "text.txt"
    text.write_text("The bus was late again, so we walked.\n\nNobody minded, for the evening was warm.\n")
    arguments = ("eval", "--model", model_path(), "--data", data, "--edits", "4", "--text", text, "--routing")
    arguments += ("--retention", "--editor", "wise-retrieve", "--json")
    return arguments, folder, run(*arguments, "--output", folder / "run.json", "--picture", folder / "run.png")


def test_eval_writes_the_run_and_a_picture_of_it(measured: tuple[tuple[str | Path, ...], Path, Result]) -> None:
    arguments, folder, result = measured
    assert result.exit_code == 0, result.output
    said, kept = last_line(result), read_run(folder / "run.json")
    assert set(said["routing"]) >= ROUTING
    assert all(set(figures) >= CLASS_FIGURES for figures in said["routing"]["classes"].values())
    assert set(said["routing"]["oracle"]) == MEASURES - {"locality"}
    assert "same_relation" in result.stdout and "oracle" in result.stdout
    assert said == {name: value for name, value in kept.items() if name != "outcomes"}
    assert kept["data"]["name"] == "records.jsonl" and kept["environment"]["torch"]
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {"records.jsonl", "text.txt", "run.json", "run.png"}
    before = (folder / "run.json").read_bytes()
    refused(run(*arguments, "--output", folder / "run.json"), "run.json", "is there already")
    assert (folder / "run.json").read_bytes() == before


@pytest.mark.slow
def test_eval_made_again_has_the_same_figures(measured: tuple[tuple[str | Path, ...], Path, Result]) -> None:
    arguments, folder, _ = measured
    assert run(*arguments, "--output", folder / "again.json").exit_code == 0
    first, again = read_run(folder / "run.json"), read_run(folder / "again.json")
    assert {k: v for k, v in first.items() if k not in TIMES} == {k: v for k, v in again.items() if k not in TIMES}
    compared = run("compare", folder / "run.json", folder / "again.json", "--json")
    assert compared.exit_code == 0, compared.output
    (folder / "again.json").unlink()


def test_eval_without_json_shows_a_table_alone(tiny: Path, data: Path) -> None:
    result = run("eval", "--model", tiny, "--data", data, "--editor", "none", "--edits", "1")
    assert "reliability" in result.stdout and "{" not in result.stdout


def test_progress_stays_off_stdout(tiny: Path, data: Path) -> None:
    arguments = ("eval", "--model", tiny, "--data", data, "--editor", "none", "--edits", "1")
    quiet, shown = run(*arguments), run(*arguments, "--progress")
    assert "locality" not in quiet.stderr and "locality" in shown.stderr
    assert quiet.stdout == shown.stdout
    lines = [line for line in shown.stderr.splitlines() if line.startswith("locality")]
    assert lines == list(dict.fromkeys(lines)) and "\x1b" not in shown.stderr  # made to be read in a file


def test_own_warnings_reach_stderr(tiny: Path) -> None:
    result = run("info", "--model", tiny)
    assert "WARNING: the base gave" in result.stderr and "WARNING" not in result.stdout


@pytest.mark.slow
def test_the_demo_edits_the_shipped_model_and_draws_what_it_measured(tmp_path: Path) -> None:
    picture = tmp_path / "routing.png"
    file = tmp_path / "records.jsonl"
    result = run("demo", "--edits", "6", "--seed", "3", "--picture", picture, "--records", file, "--json")
    assert result.exit_code == 0, result.output
    read = read_records(file)
    first, rest = read[:6], read[6:]
    assert [each.to_dict() for each in first] == [each.to_dict() for each in demo_records(6, seed=3)]
    assert len(read) == len(load_facts("train"))
    assert len({record.edit.prompt for record in read}) == len(read)
    edited = {record.edit.prompt for record in first}
    assert all(record.neighbours and edited.isdisjoint(record.neighbours) for record in rest)
    refused(run("demo", "--records", file), "records.jsonl", "is there already")
    refused(run("demo", "--picture", picture), "routing.png", "is there already")
    refused(run("demo", "--picture", tmp_path / "routing.xyz"), "routing.xyz", "no format")
    figures = last_line(result)
    assert set(figures) >= {*PROMISED, "base_recall", "routing", "seconds"}
    assert figures["edits"] == 6 and figures["base_recall"] >= 0.98 and figures["seconds"] > 0
    assert figures["generated"]["reliability"] >= 5 / 6
    assert 0 <= figures["routing"]["auroc"] <= 1
    assert f"AUROC of paraphrases against neighbours {figures['routing']['auroc']:.3f}" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


# -- what is refused --------------------------------------------------------------------------


def test_a_wrong_file_is_named_with_line_and_field(tiny: Path, data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data.read_text() + '{"prompt": "w4", "target": " "}\n')
    refused(run("eval", "--model", tiny, "--data", bad), f"{bad}:6: field 'target'")
    refused(
        run("edit", "--model", tiny, "--edits", bad, "--output", tmp_path / "out"), f"{bad}:6: field 'target'"
    )
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(tiny: Path, data: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    refused(run("eval", "--model", tiny, "--data", gone), str(gone), "no such file")
    refused(run("eval", "--model", gone, "--data", data), str(gone), "no such folder")
    refused(run("info", "--model", tmp_path), str(tmp_path))
    refused(run("info", "--memory", gone), str(gone))
    refused(run("ask", "--memory", gone, "--model", tiny, "w4"), str(gone))
    refused(run("eval-chat", "--model", tiny, "--device", "nowhere"), "--device nowhere")
    refused(run("train-router", "--output", tmp_path / "taught", "--device", "nowhere"), "--device nowhere")


def test_wrong_options_are_refused_with_what_to_do(tiny: Path, data: Path, tmp_path: Path) -> None:
    base = ("eval", "--model", tiny, "--data", data)
    refused(run(*base, "--editor", "wise-mrge"), "did you mean 'wise-merge'?")
    refused(run(*base, "--edits", "5", "--skip", "3"), "5 edits after the first 3", "there are 2")
    refused(run(*base, "--format", "zsr"), "zsre")
    refused(run(*base, "--set", "layer=9"), "layer=9", "3 blocks")
    refused(run(*base, "--output", tmp_path / "no" / "run.json"), "there is no folder")
    refused(run(*base, "--text", data.parent / "gone.txt"), "gone.txt")
    picture = ("--retention", "--edits", "1", "--picture", tmp_path / "run.png")
    for options, said in (
        (("--editor", "none", "--routing"), "routing measures the router"),
        (("--editor", "none", "--retention"), "retention measures how edits hold"),
        (("--editor", "grace", *picture), "--picture draws retention as a curve, and there is one edit"),
        (("--output", tmp_path / "run.png", *picture), "would be written over the figures"),
    ):  # each before a model is loaded
        refused(run("eval", "--model", tmp_path / "gone", "--data", data, *options), said)
    refused(run(*base, "--editor", "rom"), "did you mean 'rome'?")
    refused(run(*base, "--set", "learning_rate"), "NAME=VALUE")
    refused(run(*base, "--set", "learnin_rate=1"), "did you mean 'learning_rate'?")
    refused(run(*base, "--set", "learning_rate=1", "--set", "learning_rate=2"), "given twice")
    for value in ("9" * 5000, "[" * 100_000):
        refused(run(*base, "--set", f"seed={value}"), "expected a whole number")
    refused(run(*base, "--editor", "grace", "--set", "epsilon=-1"), "epsilon=-1", "a number above 0")
    refused(run("bench", "editors", *base[1:], "--output", tmp_path / "runs"), "500 records to measure", "there are 5")
    refused(run("bench", "editors", *base[1:], "--output", tmp_path / "runs", "--editor", "gracie"), "'grace'")
    refused(run("compare", data, data), str(data), "not")
    harness, train = ("harness", "--memory", tmp_path, "--tasks", "x"), ("train-router", "--output", tmp_path / "x")
    for command in (("compare", data, data), harness, train):
        for seed in (-1, 2**64):
            done = run(*command, "--seed", seed)
            assert done.exit_code == 2 and "Invalid value for '--seed'" in done.stderr, done.output
    refused(run("edit", *FRANCE, "--output", data), str(data), "give the name of a folder")
    refused(run("edit", *FRANCE, "--output", data.parent), str(data.parent), "holds other things")
    refused(run("edit", *FRANCE, "--mode", "merged", "--output", tmp_path / "out"), "merge, retrieve")
    refused(run("edit", *FRANCE, "--edits", data, "--output", tmp_path / "out"), "either --edits FILE")
    refused(run("edit", "--output", tmp_path / "out"), "either --edits FILE")
    for option, value in (("--format", "zsre"), ("--columns", "prompt=question")):
        refused(run("edit", *FRANCE, option, value, "--output", tmp_path / "out"), "give --edits FILE")
    refused(run("edit", *FRANCE, "--output", tmp_path / ("x" * 300)), "File name too long")
    threads = run("info", "--threads", 10**6)  # of which torch dies
    assert threads.exit_code == 2 and "Invalid value for '--threads'" in threads.stderr
    refused(run("edit", "--prompt", "w4", "--output", tmp_path / "out"), "field 'target': missing")
    refused(run("serve", "--set", "max_que=3"), "setting 'max_que' is not known; did you mean 'max_queue'?")
    refused(run("ask", "--memory", tmp_path, " "), "field 'prompt'")
    assert run("eval", "--modle", "x").exit_code == 2


def test_a_folder_that_cannot_be_replaced_is_refused_before_a_model_is_loaded(
    lyon: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused when the edits had been made, and they were lost."""
    folder, gone = shutil.copytree(lyon[0], tmp_path / "pack"), tmp_path / "gone"
    edit, chat = ("edit", *FRANCE, "--model", gone, "--output"), ("eval-chat", "--model", gone, "--save")
    for command in (edit, chat):
        refused(run(*command, folder), str(gone))  # as it is it would be replaced
    (folder / "tickets.json").write_text("{}")
    for command in (edit, chat):
        refused(run(*command, folder), "pack holds other files (tickets.json)")
    (folder / "tickets.json").unlink()
    monkeypatch.chdir(folder)
    for command in (edit, chat):
        refused(run(*command, "."), "is where this process works")


@pytest.mark.parametrize("command", [["edit", "--output"], ["info", "--model"], ["store", "log"]])
def test_an_empty_argument_is_refused_and_is_not_the_folder_of_the_command(command: list[str]) -> None:
    done = run(*command, "")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"An empty argument was given behind {command[-1]}" in done.stderr


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that takes nothing, from root either")
def test_a_place_that_takes_nothing_is_refused_before_a_model_is_loaded(
    lyon: tuple[Path, Result], data: Path, tmp_path: Path
) -> None:
    """What had been made was lost when it was to be written."""
    gone = tmp_path / "gone"
    for command in (
        ("edit", *FRANCE, "--model", gone, "--output", "/proc/memory"),
        ("edit", *FRANCE, "--model", gone, "--output", data / "memory"),
        ("eval", "--model", gone, "--data", data, "--output", "/proc/run.json"),
        ("eval", "--model", gone, "--data", data, "--retention", "--picture", "/proc/run.png"),
        ("eval-chat", "--model", gone, "--save", "/proc/memory"),
        ("bench", "editors", "--model", gone, "--data", data, "--output", "/proc/runs"),
        ("forget", lyon[0], "--id", "any", "--output", "/proc/memory"),
    ):
        refused(run(*command), f"{command[-1]}: ", "cannot be written to")
    assert not any(file.name != "edits.jsonl" for file in data.parent.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kinds", "known,privat"], "kinds='privat': expected some of known, private, nameless, several"),
        (["--data", "DATA", "--skip", "5"], "no fact is left to edit"),
        (["--skip", "20"], "--known and --skip"),
        (["--facts", "DATA", "--known"], "--known and --skip"),
        (["--facts", "DATA", "--data", "DATA"], "leave one out"),
        (["--facts", "DATA", "--half", "fit"], "--half and --kinds"),
        (["--data", "DATA", "--kinds", "known"], "--half and --kinds"),
        (["--editor", "none"], "--editor none makes no edits"),
        (["--editor", "rome", "--relations", "DATA"], "--encoder and --relations are of wise-hybrid"),
        (["--editor", "wise-merge", "--encoder", "DATA"], "--encoder and --relations are of wise-hybrid"),
    ],
)
def test_what_eval_chat_would_leave_unread_is_refused_before_a_model_is_loaded(
    data: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    given = [data if option == "DATA" else option for option in options]
    refused(run("eval-chat", "--model", tmp_path / "gone", *given), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--distractors", "9"], "--distractors 9: the file has 1 further records"),
        (["--known"], "--known: the base says the right answer of none of 3 records"),
    ],
)
def test_too_few_records_for_eval_chat_are_refused_before_an_edit_is_made(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr("wise.lab.eval.chat.measure.apply_edits", lambda *_, **__: pytest.fail("edits were made"))
    file = tmp_path / "edits.jsonl"
    rows = [{"prompt": text([i, i + 10]), "target": text([i + 40]), "test": {"answer": "Paris"}} for i in (20, 21, 22)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    limit = () if "--known" in options else ("--limit", "2")
    done = run("eval-chat", "--model", tiny, "--data", file, "--form", "completion", *limit, *options)
    assert done.exit_code == 2 and said in done.stderr, done.output


def test_a_model_without_a_chat_template_is_not_asked_in_chats(tiny: Path, tmp_path: Path) -> None:
    refused(run("eval-chat", "--model", tiny, "--limit", "1"), "no chat template", "--form completion")
    refused(run("chat-demo", "--model", tiny), "no chat template", "`wise demo`")


def test_a_demo_that_is_refused_writes_no_records(tmp_path: Path) -> None:
    for option, value in (("--mode", "merged"), ("--device", "nowhere")):
        refused(run("demo", "--edits", "1", option, value, "--records", tmp_path / "records.jsonl"), value)
        assert not (tmp_path / "records.jsonl").exists()


def test_a_token_is_appended_to_a_file_of_tokens_alone(data: Path, tmp_path: Path) -> None:
    """A file of edits was damaged, and the mode of a device changed."""
    before, mode = data.read_bytes(), data.stat().st_mode
    refused(run("token", "anna", "--file", data), "edits.jsonl:1: ", "`wise token` writes such lines")
    assert (data.read_bytes(), data.stat().st_mode) == (before, mode)
    os.mkfifo(tmp_path / "pipe", 0o644)
    refused(run("token", "anna", "--file", tmp_path / "pipe"), "is no file")
    assert (tmp_path / "pipe").stat().st_mode & 0o777 == 0o644


def test_figures_that_were_measured_outlive_an_interrupt(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures with distractors come one after the other, and a file was written at the end alone."""
    figures = iter([ChatFigures(measures={}, results=())] * 2)
    monkeypatch.setattr("wise.lab.eval.chat.measure.measure_chat", lambda *_, **__: next(figures))
    monkeypatch.setattr("wise.lab.eval.chat.distractors.with_distractors", lambda state, *_, **__: state)
    monkeypatch.setattr("wise.model.load_encoder", lambda *_, **__: WordReader())
    output = tmp_path / "figures.json"
    options = ("--form", "completion", "--limit", 1, "--output", output, "--set", "layer=1")
    done = run("eval-chat", "--model", tiny, "--data", data, *options, *("--distractors", 1, "--distractors", 2))
    assert isinstance(done.exception, StopIteration), done.output
    found = json.loads(output.read_text())
    assert found["edits"] == 1 and list(found["distractors"]) == ["1"]


def test_no_hypernetwork_is_trained_on_a_question_that_is_measured(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [text([i, i + 10]) for i in (20, 21, 22, 20)]
    rows = [{"prompt": prompt, "target": text([40 + i]), "id": f"r{i}"} for i, prompt in enumerate(asked)]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: list[str] = []

    def noted(*_: Any, learning: Any, **__: Any) -> None:
        given.extend(record.edit.id for record in learning.training)
        raise ConfigError("enough was seen")

    monkeypatch.setattr("wise.lab.eval.run.evaluate", noted)
    run("eval", "--model", tiny, "--data", file, "--edits", 1, "--editor", "mend")
    assert given == ["r1", "r2"]  # r3 asks what is measured


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_more_is_said_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, number: int
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "memory")

    monkeypatch.setattr("wise.cli.options.load_model", full)
    refused(run("info", "--model", tiny), os.strerror(number))


def test_what_is_unexpected_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("wise.cli.options.load_model", broken)
    result = run("info", "--model", tiny)
    assert result.exit_code == 1 and isinstance(result.exception, RuntimeError)


def test_an_encoding_that_lacks_characters_and_closed_streams_end_without_a_traceback(
    lyon: tuple[Path, Result], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "wise", "info", "--memory", str(lyon[0])]
    memory = shutil.copytree(lyon[0], tmp_path / "Où → 法国")
    named = subprocess.run(
        [*command[:-1], str(memory)], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, text=True
    )
    assert named.returncode == 0 and "\\u2192" in named.stdout
    for closed, shown in ((">&-", ""), ("<&-", "Lyon")):
        script = f'"$@" {closed}'
        done = subprocess.run(["bash", "-c", script, "bash", *command], capture_output=True, text=True)
        assert done.returncode == 0 and shown in done.stdout and "Traceback" not in done.stderr
    stream = [*command[:3], "stream", "-", "--store", str(tmp_path / "store")]
    done = subprocess.run(["bash", "-c", '"$@" <&-', "bash", *stream], capture_output=True, text=True)
    assert done.returncode == 0 and "edits taken in: 0" in done.stdout


def test_an_interrupt_while_it_is_imported_ends_it_without_a_traceback() -> None:
    interrupts = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'wise.cli.app':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from wise.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", interrupts, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
