"""Invariant 1, for every architecture: the base is untouched, whole again after `unwrap`, and saved clean."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    BATCH,
    DEPTH,
    WordReader,
    generated,
    padded,
    put,
    same_tensors,
    tiny_model,
    tiny_tokenizer,
    wrap_tiny,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, pipeline

import wise
from wise.memory.layer import SideMemoryLayer
from wise.memory.state import MemoryState

architectures = pytest.mark.parametrize("model_type", ARCHITECTURES)
modes = pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])


@torch.no_grad()
def outputs(model: Any) -> list[Tensor]:
    """Logits and every hidden state of a left-padded batch."""
    out = model(**padded(BATCH), output_hidden_states=True, use_cache=False)
    return [out.logits, *out.hidden_states]


def snapshot(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@architectures
def test_without_edits_every_output_is_the_bases_bit_for_bit(model_type: str) -> None:
    model = tiny_model(model_type)
    before, said = outputs(model), generated(model, BATCH)
    wrapped = wrap_tiny(model, mode=None)
    assert all(map(torch.equal, before, outputs(wrapped)))
    assert generated(wrapped, BATCH) == said
    put(wrapped, edited := wrap_tiny(model_type).state)
    assert not all(map(torch.equal, before, outputs(wrapped))), (
        "the memory changes nothing: nothing was tested"
    )
    put(wrapped, MemoryState())
    assert all(map(torch.equal, before, outputs(wrapped)))
    assert edited.edits


@architectures
@modes
def test_a_closed_gate_is_the_base_bit_for_bit_and_an_open_one_is_not(model_type: str, mode: str) -> None:
    wrapped = wrap_tiny(model_type, mode, layer=DEPTH - 1)  # nothing above it mixes tokens
    ids = torch.tensor([sum(BATCH, [])])
    with torch.no_grad():
        edited = wrapped(ids, use_cache=False).logits[0]
        with wrapped.disabled() as base:
            plain = base(ids, use_cache=False).logits[0]
    route = wrapped.route(ids)
    assert route is not None and 0 < int(route.open.sum()) < ids.numel()
    assert torch.equal((edited == plain).all(-1), ~route.open)


@architectures
def test_unwrap_gives_the_same_objects_back(model_type: str) -> None:
    model = tiny_model(model_type)
    modules, tensors, before = list(model.named_modules()), snapshot(model), outputs(model)
    wrapped = wrap_tiny(model)
    assert any(isinstance(module, SideMemoryLayer) for module in model.modules())
    assert wrapped.unwrap() is model
    assert [(name, id(module)) for name, module in modules] == [(n, id(m)) for n, m in model.named_modules()]
    assert same_tensors(tensors, model)
    assert all(map(torch.equal, before, outputs(model)))
    assert wrapped.unwrap() is model, "a second time does no harm"


@architectures
@modes
def test_generating_with_a_memory_changes_no_parameter(model_type: str, mode: str) -> None:
    model = tiny_model(model_type)
    names, tensors = [name for name, _ in model.named_parameters()], snapshot(model)
    learns = [parameter.requires_grad for parameter in model.parameters()]
    wrapped = wrap_tiny(model, mode)
    generated(wrapped, BATCH)
    assert same_tensors(tensors, model)
    wrapped.unwrap()
    assert names == [name for name, _ in model.named_parameters()]
    assert learns == [parameter.requires_grad for parameter in model.parameters()]


@architectures
def test_a_wrapped_model_is_saved_as_its_base(model_type: str, tmp_path: Path) -> None:
    wrapped = wrap_tiny(model_type)
    wrapped.model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with wrapped.disabled() as base:
        assert all(map(torch.equal, outputs(base), outputs(loaded.eval())))
    assert not all(map(torch.equal, outputs(wrapped), outputs(loaded)))


@architectures
def test_a_state_dict_can_be_loaded_into_a_wrapped_model(model_type: str) -> None:
    other = tiny_model(model_type, seed=1)
    wrapped = wrap_tiny(model_type, mode=None)
    assert not all(map(torch.equal, outputs(wrapped), outputs(other)))
    wrapped.model.load_state_dict(other.state_dict())
    assert all(map(torch.equal, outputs(wrapped), outputs(other)))
    assert same_tensors(wrapped.model, other)


def test_a_missing_weight_is_still_reported_when_loading_into_a_wrapped_model() -> None:
    wrapped = wrap_tiny("llama")
    state = snapshot(wrapped.model)
    del state[f"{wrapped.target_module.path}.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        wrapped.model.load_state_dict(state)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_the_wrapped_layer_shows_the_base_layers_weight_and_bias(model_type: str) -> None:
    wrapped = wrap_tiny(model_type)
    assert wrapped.layer.weight is wrapped.layer.base_module.weight
    assert wrapped.layer.bias is wrapped.layer.base_module.bias


def test_wrapping_keeps_training_mode_and_asking_restores_it() -> None:
    model = tiny_model("llama").train()
    wrapped = wrap_tiny(model)
    assert all(module.training for module in model.modules())
    wrapped.ask("w5 w6", max_new_tokens=1)
    assert all(module.training for module in model.modules())


def test_the_rest_of_the_model_is_reached_through_the_wrapper() -> None:
    wrapped = wrap_tiny("llama")
    for name in ("config", "generation_config", "device", "dtype"):
        assert getattr(wrapped, name) == getattr(wrapped.model, name)
    assert wrapped.can_generate()
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapped.no_such_thing


def test_wrapping_twice_is_refused_and_changes_nothing() -> None:
    wrapped = wrap_tiny("llama")
    before = outputs(wrapped)
    with pytest.raises(wise.UnsupportedModelError, match="unwrap"):
        wise.wrap(wrapped.model, tiny_tokenizer())
    assert all(map(torch.equal, before, outputs(wrapped)))
    again = wise.wrap(wrapped.unwrap(), tiny_tokenizer(), reader=WordReader())
    assert sum(isinstance(module, SideMemoryLayer) for module in again.model.modules()) == 1


def test_a_refused_configuration_leaves_the_model_alone() -> None:
    model = tiny_model("llama")
    modules = list(model.named_modules())
    for settings in (
        {"layer": DEPTH},
        {"target_module": "model.layers.{i}.nothing"},
        {"encoder": "./no/such/encoder"},
    ):
        with pytest.raises(wise.WiseError):
            wise.wrap(model, tiny_tokenizer(), wise.WiseConfig(**settings))
    with pytest.raises(wise.ConfigError, match="reader='words': mode='merge' has no reader"):
        wise.wrap(model, tiny_tokenizer(), wise.WiseConfig(mode="merge"), reader=WordReader())
    assert modules == list(model.named_modules()) and hooks(model) == 0


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_in_hybrid_the_ids_are_noted_until_it_is_unwrapped(model_type: str) -> None:
    model = tiny_model(model_type)
    before, own = outputs(model), hooks(model)  # transformers' own, by which it collects hidden states
    wrapped = wise.wrap(model, tiny_tokenizer(), wise.WiseConfig(mode="hybrid"), reader=WordReader())
    assert all(map(torch.equal, before, outputs(wrapped))) and hooks(model) == own + 3  # the third is of our layer
    assert wrapped.inputs is not None
    assert [ids.tolist() for ids in wrapped.inputs.sequences.rows.ids] == BATCH
    assert all(map(torch.equal, before, outputs(wrapped.unwrap()))) and hooks(model) == own


@modes
def test_a_deep_copy_is_a_wrapped_model_of_its_own(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode)
    twin = copy.deepcopy(wrapped)
    assert all(map(torch.equal, outputs(wrapped), outputs(twin)))
    put(twin, MemoryState())
    assert not all(map(torch.equal, outputs(wrapped), outputs(twin)))
    twin.unwrap()
    assert wrapped.layer in list(wrapped.model.modules())


@pytest.mark.parametrize("inner", [True, False])
def test_a_pipeline_takes_the_wrapped_model(inner: bool) -> None:
    wrapped = wrap_tiny("llama", layer=1)
    speak = pipeline("text-generation", model=wrapped.model if inner else wrapped, tokenizer=tiny_tokenizer())
    said = speak("w5 w6 w7", max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
    tokenizer = tiny_tokenizer()
    assert said == tokenizer.decode(generated(wrapped, [[5, 6, 7]])[0], skip_special_tokens=True)
    with wrapped.disabled() as base:
        assert said != tokenizer.decode(generated(base, [[5, 6, 7]])[0], skip_special_tokens=True)
