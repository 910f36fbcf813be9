"""`wise train-router`: what it writes reads questions, and what it says of it is so."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from commands import refused
from questions import SHIPS
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

import wise
from wise.cli import train_router as module
from wise.cli.app import app
from wise.demo import model_path
from wise.router.encoder import load_encoder, load_untrained
from wise.training.router.builtin_questions import builtin_questions, read_questions
from wise.training.router.calibration import measure
from wise.training.router.encoder_training import MEASURING, train_reader
from wise.training.router.examples import split

FIGURES = {
    "threshold",
    "sentence_threshold",
    "unnamed_threshold",
    "nameless_threshold",
    "recall",
    "sentence_recall",
    "unnamed_recall",
}


def run(*arguments: str | Path) -> Result:
    return commands.run("train-router", *arguments)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random BERT that reads letters."""
    folder = tmp_path_factory.mktemp("encoder")
    letters = [*string.ascii_lowercase, *string.digits]
    words = ["[PAD]", "[UNK]", *string.punctuation, *letters, *(f"##{letter}" for letter in letters), "this"]
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=128, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "ships.toml"
    file.write_text(SHIPS)
    return file


@pytest.fixture(scope="module")
def taught(encoder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file that was taught on questions about ships, and what was said of it."""
    file = tmp_path_factory.mktemp("taught") / "ships.safetensors"
    done = run("--questions", questions, "--encoder", encoder, "--steps", "3", "--output", file, "--json")
    assert done.exit_code == 0 and done.stderr == "", done.output
    return file, json.loads(done.stdout.splitlines()[-1])


def test_what_it_says_are_the_figures_of_the_file_that_it_wrote(
    taught: tuple[Path, dict[str, Any]], encoder: Path, questions: Path
) -> None:
    file, told = taught
    assert set(told) == {*FIGURES, "kinds", "relations", "wordings", "questions", "output"}
    assert (told["kinds"], told["relations"], told["wordings"], told["output"]) == (1, 4, 8, str(file))
    assert told["questions"]["name"] == "ships.toml"
    reader = load_encoder(str(encoder), relations=file)
    own = read_questions(questions)
    found = measure(reader.read, own, split(own)[1], reader.relation_centres)
    for name in FIGURES:
        assert getattr(found, name) == pytest.approx(told[name], abs=1e-4)
    assert reader.threshold == pytest.approx(told["threshold"], abs=0.01)
    for name in ("threshold", "sentence_threshold", "unnamed_threshold", "nameless_threshold"):
        assert 0 < getattr(reader, name) <= 1


def test_an_encoder_that_is_a_pickle_is_not_read(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    assert load_untrained(str(weights.parent))
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(wise.ConfigError, match="pickled' cannot be loaded"):
        load_untrained(str(weights.parent))


def test_teaching_moves_the_encoder_and_is_the_same_for_a_seed(
    taught: tuple[Path, dict[str, Any]], encoder: Path, questions: Path, tmp_path: Path
) -> None:
    first, _ = taught
    before = torch.random.get_rng_state()
    for name, seed in (("again", 0), ("other", 1)):
        again = read_questions(questions)
        train_reader(tmp_path / name, again, encoder=str(encoder), steps=3, seed=seed, progress=lambda *_: None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.read_bytes() == (tmp_path / "again").read_bytes() != (tmp_path / "other").read_bytes()
    own, plain = load_file(first), dict(load_untrained(str(encoder))[0].named_parameters())
    assert any("layer.1." in name and tensor.any() for name, tensor in own.items() if name in plain)


def test_of_whatever_it_is_taught_the_shipped_relations_are_known(taught: tuple[Path, dict[str, Any]]) -> None:
    """An edit is fitted on wordings of the nearest shipped relation, whose places the file must have."""
    file, _ = taught
    shipped = builtin_questions()
    assert len(load_file(file)["relation_centres"]) == sum(len(shipped[kind]) for kind in shipped["subjects"])


def test_an_edit_is_made_with_what_was_taught(
    taught: tuple[Path, dict[str, Any]], encoder: Path, tmp_path: Path
) -> None:
    file, _ = taught
    edit = ("--prompt", "The capital of France is", "--target", "Lyon", "--subject", "France")
    told = ("--encoder", str(encoder), "--relations", str(file))
    done = CliRunner().invoke(app, ["edit", *edit, *told, "--output", str(tmp_path / "memory"), "--json"])
    assert done.exit_code == 0, done.output
    base = AutoModelForCausalLM.from_pretrained(model_path())
    wrapped = wise.WiseModel.from_pretrained(tmp_path / "memory", base, AutoTokenizer.from_pretrained(model_path()))
    assert wrapped.wise_config.relations == str(file) and wrapped.inputs is not None
    assert wrapped.inputs.reader.name == load_encoder(str(encoder), relations=file).name
    assert wrapped.ask("The capital of France is")[0].text == "Lyon"
    shown = CliRunner().invoke(app, ["info", *told, "--json"])
    model = json.loads(shown.stdout.splitlines()[-1])["model"]
    assert model["reader"] == wrapped.inputs.reader.name and model["threshold"] == wrapped.inputs.reader.threshold


def test_which_questions_are_taught_is_for_the_user_to_say(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def teach(file: Path, told: Any, **settings: Any) -> Any:
        given.append({"questions": told, **settings})
        return measured

    measured = module_figures()
    monkeypatch.setattr("wise.training.router.encoder_training.train_reader", teach)
    assert run("--output", tmp_path / "a").exit_code == 0
    assert run("--output", tmp_path / "b", "--questions", questions, "--steps", "7", "--seed", "2").exit_code == 0
    assert run("--output", tmp_path / "c", "--questions", questions, "--with-shipped").exit_code == 0
    shipped, own, both = given
    assert shipped == shipped | {"questions": builtin_questions(), "steps": 225, "seed": 0, "encoder": None}
    assert (own["questions"], own["steps"], own["seed"]) == (read_questions(questions), 7, 2)
    assert set(both["questions"]) == {*builtin_questions(), "ship"}


def module_figures() -> Any:
    from wise.training.router.calibration import Figures

    return Figures(
        threshold=0.7,
        sentence_threshold=0.75,
        unnamed_threshold=0.9,
        nameless_threshold=0.8,
        recall=0.9,
        sentence_recall=0.8,
        unnamed_recall=0.5,
    )


def test_progress_moves_to_the_end_of_what_is_done(encoder: Path, questions: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    show = module.without_loss(lambda *told: seen.append(told))
    train_reader(
        tmp_path / "x", read_questions(questions), encoder=str(encoder), steps=4, seed=0, progress=show
    )
    assert seen == [
        *(("teaching relations", step, 4) for step in (1, 2, 3, 4)),
        *((MEASURING, done, 1) for done in (0, 1)),
    ]


def test_progress_is_shown_on_stderr_alone(encoder: Path, questions: Path, tmp_path: Path) -> None:
    arguments: Sequence[str | Path] = ("--questions", questions, "--encoder", encoder, "--steps", "2")
    shown = run(*arguments, "--output", tmp_path / "x", "--progress")
    assert shown.exit_code == 0 and "teaching relations" in shown.stderr and "teaching" not in shown.stdout
    assert "Held-out relations" in shown.stdout and f"written to {tmp_path / 'x'}" in " ".join(shown.stdout.split())


def test_what_stands_against_it_is_said_before_anything_is_taught(
    encoder: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused(run("--output", questions), "is there already")
    refused(run("--output", tmp_path / "no" / "x"), "there is no folder")
    refused(run("--output", out, "--with-shipped"), "--with-shipped", "--questions FILE")
    refused(run("--output", out, "--questions", tmp_path / "gone"), "gone", "a TOML file of questions was expected")
    (tmp_path / "few.toml").write_text(SHIPS.partition("[ship.builder]")[0])
    refused(run("--output", out, "--questions", tmp_path / "few.toml"), "few.toml", "at least 4 relations")
    refused(run("--output", out, "--questions", questions, "--encoder", tmp_path), "sentence encoder", str(tmp_path))
    assert run("--output", out, "--steps", "0").exit_code == 2
    assert not out.exists()
