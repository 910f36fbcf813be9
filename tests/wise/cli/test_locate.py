"""`wise locate`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from commands import refused, tiny_folder
from tiny import text, tiny_model, tiny_tokenizer
from typer.testing import Result

import wise
from wise.cli.common import check_picture
from wise.cli.locate import show_location
from wise.errors import ConfigError
from wise.lab.locate.picture import draw
from wise.lab.locate.roles import ROLES
from wise.training.encoding import learn_encoder


def run(*arguments: str | Path) -> Result:
    return commands.run("locate", *arguments)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory)


def rows(edits: bool) -> list[dict[str, Any]]:
    """What the tiny model says, as known facts or as edits that replace it."""
    model = tiny_model("llama")
    encoder = learn_encoder(model, tiny_tokenizer(), wise.WiseConfig(terminator=""))
    found: list[dict[str, Any]] = []
    for i in range(20, 27):
        prompt, subject = text([i, i + 10, i + 20]), text([i])
        with torch.no_grad():
            answer = text([int(model(torch.tensor([encoder.prompt(prompt)])).logits[0, -1].argmax())])
        if edits:
            edit = wise.Edit(id=f"r{i}", prompt=prompt, target=text([i + 40]), subject=subject)
            found.append(wise.Record(edit=edit, answer=answer, neighbours=(text([80, i]),)).to_dict())
        else:
            found.append({"prompt": prompt, "subject": subject, "attribute": answer})
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(edits=True)))
    return file


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("known") / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(edits=False)))
    return file


@pytest.fixture(scope="module")
def swept(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("out")
    options = ("--facts", "4", "--samples", "2", "--sweep-edits", "2", "--layers", "0,2", "--seed", "1")
    files = ("--output", folder / "locate.json", "--picture", folder / "heat.png")
    return folder, run("--model", tiny, "--data", data, *options, *files, "--json")


def test_figures_are_printed_written_and_drawn(swept: tuple[Path, Result], data: Path) -> None:
    folder, result = swept
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.splitlines()[-1])
    assert json.loads((folder / "locate.json").read_text()) == printed
    assert (printed["facts"], printed["seed"], printed["samples"]) == (4, 1, 2)
    assert printed["data"]["name"] == data.name and len(printed["data"]["sha256"]) == 64
    assert [row["layer"] for row in printed["sweep"]] == [0, 2]
    assert printed["sweep_records"] == {"first": 4, "count": 2, "ids": ["r24", "r25"]}
    assert printed["recommendation"]["layer"] in (0, 2)
    for part in (*ROLES, "layer 2", "records 4 to 5", "recommended: layer", "standard deviation"):
        assert part in result.stdout, part
    assert (folder / "heat.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["heat.png", "locate.json"]


def test_known_facts_are_traced_without_edits(tiny: Path, known: Path) -> None:
    few = ("--facts", "3", "--samples", "1", "--sweep-edits", "0")
    result = run("--model", tiny, "--data", known, *few, "--window", "2")
    assert result.exit_code == 0, result.output
    assert "3 facts traced, left out: none" in result.stdout
    assert "feed-forward output, 2 layers at a time" in result.stdout
    assert "no layer is recommended" in result.stdout


def test_figures_are_kept_where_they_cannot_be_drawn(
    tiny: Path, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ConfigError("no picture today")

    monkeypatch.setattr("wise.lab.locate.picture.draw", fail)
    few = ("--facts", "3", "--samples", "1", "--sweep-edits", "0")
    files = ("--output", tmp_path / "locate.json", "--picture", tmp_path / "heat.png")
    result = run("--model", tiny, "--data", known, *few, *files)
    assert result.exit_code == 2 and "no picture today" in result.stderr
    assert json.loads((tmp_path / "locate.json").read_text())["facts"] == 3


def test_facts_are_read_from_columns_of_other_names(tiny: Path, tmp_path: Path) -> None:
    few = ("--facts", "3", "--samples", "1", "--sweep-edits", "0")
    own = {True: "prompt=q,target=new,subject=s,test.answer=old", False: "prompt=q,subject=s,attribute=old"}
    for edits, names in own.items():
        file = tmp_path / f"{edits}.csv"
        told = [(row["prompt"], row["subject"], row.get("target"), row.get("attribute") or row["test"]["answer"])
                for row in rows(edits)]  # fmt: skip
        file.write_text("q,s,new,old\n" + "".join(f"{q},{s},{new or ''},{old}\n" for q, s, new, old in told))
        result = run("--model", tiny, "--data", file, *few, "--columns", names)
        assert result.exit_code == 0 and "3 facts traced, left out: none" in result.stdout, result.output
        refused(run("--model", tiny, "--data", file, *few), "--columns")
        refused(run("--model", tiny, "--data", file, *few, "--columns", f"{names},relation_id=r"), "columns")


def test_bad_input_is_refused_before_the_work(tiny: Path, data: Path, known: Path, tmp_path: Path) -> None:
    base = ("--model", tiny, "--data", data)
    refused(run(*base, "--sweep-edits", "50", "--facts", "4"), "50 records", "3 stand behind the 4 facts")
    refused(run("--model", tiny, "--data", known), "--sweep-edits 0")
    refused(run(*base, "--facts", "4", "--sweep-edits", "2", "--layers", "0,3"), "layers 3", "0 to 2")
    refused(run(*base, "--layers", "one"), "--layers one", "0,2,4")
    refused(run(*base, "--layers", "0", "--sweep-edits", "0"), "leave one of them out")
    refused(run(*base, "--sweep-edits", "0", "--window", "4"), "window=4", "1 to 3, the layers")
    refused(run("--model", tiny, "--data", tmp_path / "none.jsonl", "--sweep-edits", "0"), "none.jsonl")
    refused(run(*base, "--sweep-edits", "0", "--output", tmp_path / "no" / "x.json"), "--output", "make it first")
    refused(run(*base, "--sweep-edits", "0", "--output", data), "is there already")
    refused(run(*base, "--sweep-edits", "0", "--picture", tmp_path / "heat.xyz"), "--picture", "no format")
    empty = tmp_path / "bare.jsonl"
    empty.write_text(json.dumps({"prompt": text([5, 6]), "target": "w7"}) + "\n")
    refused(run("--model", tiny, "--data", empty, "--sweep-edits", "0"), "no fact", warnings=1)


# -- pictures and tables ----------------------------------------------------------------------


def deep(layers: int) -> dict[str, Any]:
    """A result of a deep model, by hand."""
    mean = [[None] * layers, *([0.01 * i for i in range(layers)] for _ in ROLES[1:])]
    ci = [[None] * layers, *([[0.01 * i, 0.02 * i] for i in range(layers)] for _ in ROLES[1:])]
    effects = {"mean": mean, "ci": ci, "n": [0, *[5] * (len(ROLES) - 1)]}
    return {
        "model": {"name": "deep", "type": "llama"},
        "facts": 5,
        "skipped": {"not answered right by the base": 2},
        "noise": 0.1,
        "samples": 2,
        "window": 7,
        "roles": list(ROLES),
        "layers": layers,
        "effects": dict.fromkeys(("state", "ffn", "attention"), effects),
        "low_score": 0.1,
        "high_score": 0.9,
        "sweep": [],
        "sweep_records": None,
        "recommendation": None,
    }


def test_a_deep_model_fits_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_location(deep(32))
    shown = capsys.readouterr().out
    assert "layer 30" in shown and "layer 29" not in shown
    assert " 31: 0.310 [0.310, 0.620]" in shown
    assert "5 facts traced, left out: 2 not answered right by the base" in shown
    draw(deep(32), tmp_path / "deep.svg")
    assert "<svg" in (tmp_path / "deep.svg").read_text()


def test_a_measure_that_no_prompt_takes_is_not_drawn(tmp_path: Path) -> None:
    row = {"reliability": 1.0, "locality": 0.5, "success": 0.75, "trace_effect": 0.1}
    advice = {"layer": 0, "correlations": {"trace_effect": None}}
    for generalization in (None, 0.5):
        rows = [row | {"layer": layer, "generalization": generalization} for layer in range(3)]
        swept = {"sweep": rows, "sweep_records": {"count": 2}, "recommendation": advice}
        draw(deep(3) | swept, tmp_path / "swept.svg")
        drawn = (tmp_path / "swept.svg").read_text()
        assert "reliability, generated" in drawn and "mean of these" in drawn
        assert ("generalization, generated" in drawn) == (generalization is not None)


def test_a_picture_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="its ending says no format"):
        check_picture(tmp_path / "heat")
    with pytest.raises(ConfigError, match="--picture"):
        draw(deep(3), tmp_path / "none" / "heat.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="pip install"):
        check_picture(tmp_path / "heat.png")


def test_a_trace_outlives_what_ends_the_edits(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "figures.json"

    def ended(*_: Any, **__: Any) -> None:
        raise RuntimeError("the edits ended")

    monkeypatch.setattr("wise.lab.locate.sweep.sweep", ended)
    options = ("--facts", "3", "--samples", "1", "--sweep-edits", "2", "--output", output)
    assert str(run("--model", tiny, "--data", data, *options).exception) == "the edits ended"
    found = json.loads(output.read_text())
    assert found["facts"] == 3 and found["sweep"] == [] and found["data"]["name"] == data.name
