"""What `wise.wrap`, `edit` and `from_pretrained` take besides ready-made objects, and how they refuse the rest."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import BATCH, WordReader, generated, tiny_model, tiny_tokenizer, wrap_tiny
from transformers import AutoModelForCausalLM

import wise
from wise.demo import model_path
from wise.edits import as_edit

EDIT = wise.Edit(prompt="The capital of France is", target="Lyon", subject="France")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its tokenizer."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_folder_is_wrapped_with_the_tokenizer_in_it(folder: Path) -> None:
    said = generated(tiny_model("llama"), BATCH)
    for source in (folder, str(folder)):
        wrapped = wise.wrap(source, reader=WordReader())
        assert generated(wrapped, BATCH) == said
        assert wrapped.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    wrapped = wise.wrap(AutoModelForCausalLM.from_pretrained(folder), reader=WordReader())
    assert wrapped.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    given = tiny_tokenizer()
    assert wise.wrap(folder, given, reader=WordReader()).tokenizer is given


def test_a_model_or_a_tokenizer_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), str(tmp_path / "empty"), "./nowhere"):
        with pytest.raises(wise.ConfigError, match=f"model '?{source}"):
            wise.wrap(source)
    tiny_model("llama").save_pretrained(tmp_path / "bare")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bare")
    modules = list(model.modules())
    with pytest.raises(wise.ConfigError, match="no tokenizer was given, and there is none beside the model at .*bare"):
        wise.wrap(model)
    with pytest.raises(wise.ConfigError, match="the model does not say where it was loaded from"):
        wise.wrap(tiny_model("llama"))
    with pytest.raises(wise.ConfigError, match="tokenizer=WiseConfig: expected a tokenizer; give one of transformers"):
        wise.wrap(model, wise.WiseConfig())  # type: ignore[arg-type]
    with pytest.raises(wise.ConfigError, match="tokenizer=SimpleNamespace: .*; give its field 'tokenizer'"):
        wise.wrap(model, SimpleNamespace(tokenizer=tiny_tokenizer()))  # type: ignore[arg-type]
    for config in ("merge", {"mode": "merge"}, 3):
        with pytest.raises(wise.ConfigError, match="expected a wise.WiseConfig"):
            wise.wrap(model, tiny_tokenizer(), config)  # type: ignore[arg-type]
    assert list(model.modules()) == modules


@pytest.mark.parametrize(
    "given",
    [
        EDIT,
        {"prompt": "The capital of France is", "target": "Lyon", "subject": "France"},
        EDIT.to_dict(),
        "The capital of France is Lyon.",
    ],
)
def test_an_edit_is_given_as_an_object_as_fields_or_as_a_statement(given: Any) -> None:
    edit = as_edit(given)
    assert (edit.prompt, edit.target) == (EDIT.prompt, EDIT.target)
    assert edit == EDIT or isinstance(given, str)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "field 'edit': int 3 was given; a wise.Edit, an object of its fields, or a statement"),
        (None, "null was given"),
        (wise.Record(edit=EDIT), "give its field 'edit'"),
        ({"prompt": "a"}, "field 'target': missing"),
        ({"prompt": "a", "target": "b", "tarqet": "c"}, "field 'tarqet': unknown; did you mean 'target'"),
        ("edits.jsonl", "no verb was found"),
        ([EDIT], "list .* was given"),
    ],
)
def test_what_is_no_edit_is_refused(given: Any, message: str) -> None:
    with pytest.raises(wise.EditError, match=message):
        as_edit(given)


@pytest.fixture(scope="module")
def model() -> wise.WiseModel:
    """The shipped model."""
    return wise.wrap(model_path())


def test_edits_of_all_kinds_are_made_and_deleted(model: wise.WiseModel) -> None:
    statement = "The capital of Spain is Porto."
    third = wise.Edit(prompt="The capital of Italy is", target="Turin", subject="Italy")
    report = model.edit([EDIT.to_dict(), statement, third])
    assert report.count("verified") == 3
    said = [answer.text for answer in model.ask([edit.prompt for edit in model.edits])]
    assert said == ["Lyon", "Porto", "Turin"]
    assert model.replace({"prompt": EDIT.prompt, "target": "Nice", "subject": "France"}).count("verified") == 1
    assert model.ask(EDIT.prompt)[0].text == "Nice"
    model.delete([model.edits[0], model.edits[1].id])
    model.delete(model.edits[0])
    assert not model.edits and model.ask(EDIT.prompt)[0].text == "Paris"


@pytest.mark.parametrize("given", [3, None, [3], wise.Record(edit=EDIT), ["The capital of France is Lyon.", 3], [], {}])
def test_a_refused_call_changes_nothing(model: wise.WiseModel, given: Any) -> None:
    before = model.state
    for call in (model.edit, model.replace, model.delete):
        with pytest.raises(wise.EditError):
            call(given)
    assert model.state is before


@pytest.mark.parametrize("asked", [3, None, {"role": "user"}, [3], [[3]], [{"role": "user"}], b"bytes"])
def test_what_cannot_be_asked_is_refused(model: wise.WiseModel, asked: Any) -> None:
    with pytest.raises(wise.EditError, match="was given"):
        model.ask(asked)


# -- a memory and its base ----------------------------------------------------------------------


@pytest.fixture
def memory(folder: Path, tmp_path: Path) -> Path:
    by_hand = wrap_tiny(AutoModelForCausalLM.from_pretrained(folder), "retrieve")
    by_hand.save_pretrained(tmp_path / "memory")
    return tmp_path / "memory"


def test_a_memory_finds_its_base(memory: Path, folder: Path) -> None:
    expected = generated(wrap_tiny("llama"), BATCH)
    for arguments in ((), (folder,), (str(folder), tiny_tokenizer()), (tiny_model("llama"), tiny_tokenizer())):
        wrapped = wise.WiseModel.from_pretrained(memory, *arguments)
        assert generated(wrapped, BATCH) == expected
        with wrapped.disabled() as base:
            assert generated(base, BATCH) != expected


def test_a_base_that_is_gone_and_another_one_are_refused(memory: Path, folder: Path, tmp_path: Path) -> None:
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(wise.ArtifactError, match="was made for another base"):
        wise.WiseModel.from_pretrained(memory, tmp_path / "other")
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(wise.ArtifactError, match="the base of the memory at .* cannot be loaded: model '.*base'"):
        wise.WiseModel.from_pretrained(memory)
    wrapped = wise.WiseModel.from_pretrained(memory, tmp_path / "moved")
    before = {file.name: file.read_bytes() for file in memory.iterdir()}
    wrapped.save_pretrained(memory)
    assert {file.name: file.read_bytes() for file in memory.iterdir()} == before, "the same memory, the same bytes"


def test_a_memory_that_names_no_base_and_arguments_in_another_order_are_refused(tmp_path: Path) -> None:
    wrap_tiny("llama").save_pretrained(tmp_path / "memory")
    with pytest.raises(wise.ArtifactError, match="the memory does not name it; give the model and its tokenizer"):
        wise.WiseModel.from_pretrained(tmp_path / "memory")
    with pytest.raises(wise.ArtifactError, match="the path of a memory first, .* a LlamaForCausalLM was given"):
        mistaken: Any = (tiny_model("llama"), tiny_tokenizer(), tmp_path / "memory")
        wise.WiseModel.from_pretrained(*mistaken)
