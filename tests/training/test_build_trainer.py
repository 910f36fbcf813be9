"""What a trainer is made of in each mode, and the space in which its keys are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import WordReader, reading, text, tiny_model, tiny_tokenizer, wrap_tiny

import wise
from wise.memory.key_space import KeySpace, RelationSpace
from wise.training import build_trainer as module
from wise.training.build_trainer import build_trainer
from wise.training.verification import PromptVerifier, WordingVerifier
from wise.training.writers.answer import AnswerWriter
from wise.training.writers.masked_dense import MaskedDenseWriter

modes = pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])


def unedited(mode: str, **settings: Any) -> wise.WiseModel:
    config = wise.WiseConfig(mode=mode, terminator="", bos=False, layer=1, **settings)
    return wise.wrap(tiny_model("llama"), tiny_tokenizer(), config, **reading(mode))


@modes
def test_each_mode_has_its_own_writer_verifier_and_space(mode: str) -> None:
    trainer = unedited(mode).trainer
    kinds = (AnswerWriter, WordingVerifier, RelationSpace)
    kinds = kinds if mode == "hybrid" else (MaskedDenseWriter, PromptVerifier, KeySpace)
    assert all(map(isinstance, (trainer.writer, trainer.verifier, trainer.key_space), kinds))


def test_the_space_of_relations_is_that_of_the_reader() -> None:
    model = unedited("hybrid")
    assert model.inputs is not None
    space = model.inputs.reader.key_space
    reader = WordReader()
    assert (space.reader, space.size) == (reader.name, reader.size)
    assert (space.threshold, space.unnamed_threshold) == (reader.threshold, reader.unnamed_threshold)
    assert space == model.trainer.key_space


def test_in_hybrid_nothing_of_the_base_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("there was nothing to be measured"))
    model = unedited("hybrid")
    assert model.edit(wise.Edit(prompt="w5 w6 w7", subject="w5", target="w60")).failed == ()
    with pytest.raises(pytest.fail.Exception, match="nothing to be measured"):
        unedited("retrieve").prepare()


@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_new_keys_are_compared_in_the_space_of_those_that_are_live(mode: str) -> None:
    model = unedited(mode)
    measured = model.trainer.key_space
    assert isinstance(measured, KeySpace)
    given = replace(measured, mean=measured.mean + 1)
    with model.evaluating(), model.disabled():
        parts = (model.model, model.target_module, model.encoder, model.wise_config)
        made = build_trainer(*parts, inputs=None, state=replace(model.state, key_space=given))
    assert made.key_space is given and isinstance(made.writer, MaskedDenseWriter)
    assert made.writer.statistics.key_space is given


@modes
def test_a_trainer_is_made_once_and_again_where_the_model_has_moved(mode: str) -> None:
    model = unedited(mode)
    first = model.trainer
    assert model.trainer is first
    model.model.to(torch.bfloat16)
    again = model.trainer
    assert again is not first and again.dtype == torch.bfloat16 and model.trainer is again


def test_a_memory_made_by_hand_is_edited_on() -> None:
    model = wrap_tiny("llama", "hybrid", layer=1)
    assert model.edit(wise.Edit(id="new", prompt=text([80, 81]), subject="w80", target="w60")).dropped == ()
    assert model.state.edit_ids == ("e0", "e1", "e2", "new")
