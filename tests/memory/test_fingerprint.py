"""A fingerprint knows its base again: wrapped, offloaded or in another precision, and no other base."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from tiny import ARCHITECTURES, located, tiny_model, wrap_tiny
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wise.errors import ArtifactError
from wise.memory.fingerprint import Fingerprint, fingerprint


def taken(model: PreTrainedModel, **settings: Any) -> Fingerprint:
    return fingerprint(model, located(model, **settings))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_same_for_the_same_base_wrapped_or_not_and_refused_for_other_weights(model_type: str) -> None:
    base = taken(tiny_model(model_type))
    wrapped = wrap_tiny(model_type)
    assert wrapped.layer.memory is not None
    again = fingerprint(wrapped.model, wrapped.projection)
    assert again == base
    base.check(again)
    with pytest.raises(ArtifactError, match="weights: expected digest .* other weights"):
        base.check(taken(tiny_model(model_type, seed=1)))


@pytest.mark.parametrize("name", ["q_proj.weight", "down_proj.weight", "embed_tokens.weight", "norm.weight"])
def test_a_base_that_was_trained_on_is_another_base_whichever_part_moved(name: str) -> None:
    model = tiny_model("llama")
    base = taken(model)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith(name)).mul_(1.0001)
    with pytest.raises(ArtifactError, match="other weights"):
        base.check(taken(model))


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"layer": 0}, "path: expected 'model.layers.2.*', found 'model.layers.0"),
        ({"num_hidden_layers": 4}, {"layer": 2}, "depth: expected 3, found 4; parameters: expected"),
        ({"vocab_size": 97}, {}, "vocabulary: expected 96, found 97"),
        ({"intermediate_size": 60}, {}, "in_features: expected 64, found 60"),
        ({"hidden_size": 48}, {}, "out_features: expected 32, found 48"),
    ],
)
def test_every_field_that_differs_is_named(
    changes: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    base = taken(tiny_model("llama"))
    with pytest.raises(ArtifactError, match=message):
        base.check(taken(tiny_model("llama", **changes), **settings))


def test_another_architecture_is_named() -> None:
    with pytest.raises(ArtifactError, match="model_type: expected 'llama', found 'mistral'"):
        taken(tiny_model("llama")).check(taken(tiny_model("mistral")))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_base_in_another_precision_is_warned_about_and_another_base_is_refused(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    base, rounded = taken(tiny_model("llama")), taken(tiny_model("llama").to(dtype))
    for one, other in ((base, rounded), (rounded, base)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            one.check(other)
        assert f"in {one.dtype} and is put beside it in {other.dtype}" in caplog.text
    caplog.clear()
    base.check(base)
    assert not caplog.text
    with pytest.raises(ArtifactError, match="other weights"):
        base.check(taken(tiny_model("llama", seed=1).to(dtype)))


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_accelerate_keeps_elsewhere_are_read_there(tied: bool) -> None:
    base = taken(tiny_model("llama", tie_word_embeddings=tied))
    model = tiny_model("llama", tie_word_embeddings=tied)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.model.layers[0].mlp.down_proj.weight.is_meta
    assert taken(model) == base
    assert model.model.layers[0].mlp.down_proj.weight.is_meta


def test_comes_back_from_json_as_it_was() -> None:
    base = taken(tiny_model("llama"))
    assert Fingerprint.from_dict(json.loads(json.dumps(base.to_dict()))) == base


@pytest.mark.parametrize(
    "change",
    [{"depth": "three"}, {"digest": None}, {"sample": ["x"]}, {"sample": 1}, {"surprise": 1}, {"depth": ...}],
)
def test_a_malformed_one_is_refused(change: dict[str, Any]) -> None:
    data = taken(tiny_model("llama")).to_dict() | change
    data = {name: value for name, value in data.items() if value is not ...}
    with pytest.raises(ArtifactError, match="fingerprint of the base is malformed"):
        Fingerprint.from_dict(data)


def test_a_sample_of_another_length_is_another_base() -> None:
    base = taken(tiny_model("llama"))
    with pytest.raises(ArtifactError, match="other weights"):
        base.check(replace(base, dtype="bfloat16", sample=base.sample[:-1]))


def test_costs_far_less_than_half_a_second_at_the_size_of_a_real_layer() -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 64}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1))
    model.to_empty(device="cpu").to(torch.bfloat16)
    started = time.process_time()
    taken(model)
    assert time.process_time() - started < 0.5
