"""A fingerprint knows its base again: wrapped, offloaded or in another precision, and no other base."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from tiny import ARCHITECTURES, located, tiny_model, wrap_tiny
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wise.architectures import TargetModule
from wise.errors import ArtifactError
from wise.loading import QUANTIZATIONS, Placement
from wise.memory.fingerprint import Fingerprint, fingerprint


def taken(model: PreTrainedModel, **settings: Any) -> Fingerprint:
    return fingerprint(model, located(model, **settings))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_same_for_the_same_base_wrapped_or_not_and_refused_for_other_weights(model_type: str) -> None:
    base = taken(tiny_model(model_type))
    wrapped = wrap_tiny(model_type)
    assert wrapped.layer.memory is not None
    again = fingerprint(wrapped.model, wrapped.target_module)
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
def test_the_same_base_in_another_precision_must_be_allowed_and_another_base_never_is(dtype: torch.dtype) -> None:
    base, rounded = taken(tiny_model("llama")), taken(tiny_model("llama").to(dtype))
    for one, other in ((base, rounded), (rounded, base)):
        with pytest.raises(ArtifactError, match=f"in {one.dtype} and this copy is in {other.dtype}.*allow_precision"):
            one.check(other)
        assert not one.check(other, allow_precision=True)
    assert base.check(base)
    with pytest.raises(ArtifactError, match="other weights"):
        base.check(taken(tiny_model("llama", seed=1).to(dtype)), allow_precision=True)


def test_two_roundings_of_one_base_are_the_same_base() -> None:
    half, brain = (taken(tiny_model("llama").to(dtype)) for dtype in (torch.float16, torch.bfloat16))
    assert not half.check(brain, allow_precision=True) and not brain.check(half, allow_precision=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_that_was_trained_on_by_more_than_the_rounding_is_another_base(dtype: torch.dtype) -> None:
    base, model = taken(tiny_model("llama")), tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1.02)
    with pytest.raises(ArtifactError, match="other weights"):
        base.check(taken(model.to(dtype)), allow_precision=True)


def quantized(seed: int = 0, **kind: Any) -> PreTrainedModel:
    """A tiny model quantized as it is loaded."""
    with TemporaryDirectory() as folder:
        tiny_model("llama", seed=seed, hidden_size=64, intermediate_size=128).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, **Placement(**kind).arguments())
    return model.eval()  # type: ignore[no-any-return]


KINDS = ["bnb-8bit", "bnb-4bit", "torchao-int8"]


@pytest.mark.parametrize("quantization", KINDS)
def test_a_quantized_copy_is_known_as_its_base_and_a_quantized_other_base_is_not(quantization: str) -> None:
    pytest.importorskip(QUANTIZATIONS[quantization])
    base = taken(quantized())
    copied = taken(quantized(quantization=quantization))
    assert copied.quantized and copied.quantization and not base.quantized
    with pytest.raises(ArtifactError, match="this copy is in float32, .*allow_precision"):
        base.check(copied)
    for one, other in ((base, copied), (copied, base)):
        assert not one.check(other, allow_precision=True)
    assert copied.check(taken(quantized(quantization=quantization)))
    other_base = taken(quantized(seed=1, quantization=quantization))
    with pytest.raises(ArtifactError, match="other weights"):
        base.check(other_base, allow_precision=True)
    with pytest.raises(ArtifactError, match="other weights"):
        copied.check(other_base, allow_precision=True)


@pytest.mark.parametrize("quantization", KINDS)
def test_the_fingerprint_of_a_quantized_copy_stays_while_it_is_used(quantization: str) -> None:
    pytest.importorskip(QUANTIZATIONS[quantization])
    model = quantized(quantization=quantization)
    before = taken(model)
    model(torch.tensor([[5, 6, 7]]))
    assert taken(model) == before


@pytest.mark.parametrize("quantization", KINDS)
def test_norms_that_were_trained_on_tell_a_quantized_base_apart(quantization: str) -> None:
    pytest.importorskip(QUANTIZATIONS[quantization])
    base, model = taken(quantized()), quantized(quantization=quantization)
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.weight.mul_(1.001)
    with pytest.raises(ArtifactError, match="other weights"):
        base.check(taken(model), allow_precision=True)


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
    [
        {"quantized": [256]},
        {"quantized": ["x"]},
        {"depth": "three"},
        {"digest": None},
        {"sample": ["x"]},
        {"sample": 1},
        {"surprise": 1},
        {"depth": ...},
    ],
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
    model.to(torch.bfloat16).to_empty(device="cpu")
    place = {"path": "model.layers.0.mlp.down_proj", "blocks": "model.layers", "layer": 0, "depth": 1}
    target_module = TargetModule(**place, in_features=11008, out_features=4096)  # numbers at random tell no place
    started = time.process_time()
    fingerprint(model, target_module)
    assert time.process_time() - started < 0.5
