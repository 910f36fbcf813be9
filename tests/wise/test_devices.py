"""A base on several devices or ranks, offloaded, compiled, with other attention: edited as on the CPU, or refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from chats import EDITS, TEMPLATE, chat_model
from repository import HELPERS, ROOT
from shards import STREAM, edit_stream
from tiny import BATCH, DEPTH, generated, put, reading, text, tiny_model, tiny_tokenizer, wrap_tiny
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from two_devices import FAR, two_devices

import wise
from wise.errors import UnsupportedModelError
from wise.loading import QUANTIZATIONS, Placement, load_model
from wise.memory.store.store import Store

LAYER = 1
LIMIT = 300
"""Seconds after which processes that wait for each other are given up."""
modes = pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])


def wrapped(model: PreTrainedModel, mode: str = "hybrid", **settings: Any) -> wise.WiseModel:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE if mode == "hybrid" else None
    config = wise.WiseConfig(mode=mode, layer=LAYER, terminator="w9", **settings)
    return wise.wrap(model, tokenizer, config, **reading(mode))


@pytest.fixture(scope="module")
def here() -> wise.WiseModel:
    """What one device makes of the edits."""
    model = chat_model()
    assert not model.edit(EDITS).failed
    return model


def is_edited_alike(model: wise.WiseModel, here: wise.WiseModel, folder: Path, *, exactly: bool = True) -> None:
    """Edits, asks, saves and loads: the edits hold, also on another base; `exactly`: they are those of one device."""
    assert not model.edit(EDITS).failed
    questions = [*(edit.prompt for edit in EDITS), *([text([33, 34])] if exactly else [])]
    assert [answer.text for answer in model.ask(questions)] == [answer.text for answer in here.ask(questions)]
    for own, other in zip(model.state.slots, here.state.slots, strict=True):
        assert own.tensors()["values"].any()
        if exactly:
            torch.testing.assert_close(own.tensors(), other.tensors(), rtol=1e-3, atol=1e-3)  # sums in another order
    model.save_pretrained(folder)
    base = tiny_model("llama").to(model.model.dtype)
    again = wise.WiseModel.from_pretrained(folder, base, model.tokenizer, **reading("hybrid"))
    assert [answer.text for answer in again.ask(questions[:2])] == [edit.target for edit in EDITS]


# -- two devices ------------------------------------------------------------------------------


@pytest.fixture
def apart() -> Iterator[None]:
    with two_devices():
        yield


def spread(first: int) -> PreTrainedModel:
    """A model whose blocks from `first` on, norm and head are on the other device."""
    blocks = {f"model.layers.{i}": "cpu" if i < first else FAR for i in range(DEPTH)}
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", **blocks, "model.norm": FAR, "lm_head": FAR}
    return dispatch_model(tiny_model("llama"), places, main_device="cpu")  # type: ignore[no-any-return]


def test_the_devices_are_kept_apart(apart: None) -> None:
    there = torch.ones(3).to(FAR)
    assert there.device.type == FAR and (there * 2).cpu().tolist() == [2.0] * 3
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        there + torch.ones(3)


@modes
@pytest.mark.parametrize("first", [LAYER, LAYER + 1])
def test_a_model_on_two_devices_says_what_one_on_one_says(apart: None, mode: str, first: int) -> None:
    plain = wrap_tiny("llama", mode, layer=LAYER)
    there = wrap_tiny(spread(first), None, layer=LAYER).unwrap()
    model = wise.wrap(there, tiny_tokenizer(), plain.wise_config, **reading(mode))
    put(model, plain.state)
    assert model.layer.device().type == (FAR if first == LAYER else "cpu")
    said = generated(plain, BATCH)
    assert generated(model, BATCH) == said
    with model.disabled() as base:
        assert generated(base, BATCH) != said
    assert model.fingerprint() == plain.fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("first", [LAYER, LAYER + 1])
def test_a_model_on_two_devices_is_edited_as_one_on_one(
    apart: None, first: int, here: wise.WiseModel, tmp_path: Path
) -> None:
    is_edited_alike(wrapped(spread(first)), here, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_shared_weights_are_fitted_on_two_devices_as_on_one(apart: None, mode: str) -> None:
    reports = [wrapped(model, mode, max_steps=3).edit(EDITS) for model in (tiny_model("llama"), spread(LAYER))]
    one, two = ([(done.steps, done.loss, done.answer) for done in report.outcomes] for report in reports)
    assert [done[0] for done in one] == [done[0] for done in two]
    assert [done[1] for done in one] == pytest.approx([done[1] for done in two], rel=1e-4)
    assert [done[2] for done in one] == [done[2] for done in two]


# -- offload, precision -----------------------------------------------------------------------


def test_an_offloaded_model_is_edited(here: wise.WiseModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    cpu_offload(model, torch.device("cpu"))
    assert model.model.layers[LAYER].mlp.down_proj.weight.is_meta
    is_edited_alike(wrapped(model), here, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_edited(dtype: torch.dtype, here: wise.WiseModel, tmp_path: Path) -> None:
    is_edited_alike(wrapped(tiny_model("llama").to(dtype)), here, tmp_path, exactly=False)


def test_four_bits_keep_their_gradient(tmp_path: Path) -> None:
    """Where the CPU has AVX512-BF16 bitsandbytes would repack the weights in the first forward."""
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    arguments = Placement(quantization="bnb-4bit").arguments()
    def loaded() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(tmp_path, **arguments).eval()  # type: ignore[no-any-return]

    used, model = loaded(), wrapped(loaded())
    layer = model.model.model.layers[0].mlp.gate_proj
    with torch.no_grad():
        used(torch.tensor([BATCH[0]]))
        model(torch.tensor([BATCH[0]]))
    hidden = torch.randn(1, 64, requires_grad=True)
    layer(hidden).sum().backward()
    assert hidden.grad is not None and bool(hidden.grad.any())
    if used.model.layers[0].mlp.gate_proj.support_avx512bf16_for_cpu:
        with pytest.raises(UnsupportedModelError, match="repacked its weights.*load it again"):
            wrapped(used)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries themselves
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_quantized_model_is_edited_saved_and_loaded(quantization: str, tmp_path: Path) -> None:
    pytest.importorskip(QUANTIZATIONS[quantization])
    folder, memory = tmp_path / "base", tmp_path / "memory"
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    placement = Placement(quantization=quantization)
    model = wrapped(load_model(str(folder), placement=placement)[0])
    questions = [edit.prompt for edit in EDITS]
    before = [answer.text for answer in model.ask(questions)]
    assert not model.edit(EDITS).failed
    assert before != [answer.text for answer in model.ask(questions)] == [edit.target for edit in EDITS]
    model.save_pretrained(memory)
    base = load_model(str(folder), placement=placement)[0]
    again = wise.WiseModel.from_pretrained(memory, base, model.tokenizer, **reading("hybrid"))
    assert [answer.text for answer in again.ask(questions)] == [edit.target for edit in EDITS]
    with pytest.raises(wise.ArtifactError, match="allow_precision"):
        wise.WiseModel.from_pretrained(memory, load_model(str(folder))[0], model.tokenizer, **reading("hybrid"))


# -- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_edits_are_made_whatever_the_work_around_them_has_set(around: Any, mode: str, here: wise.WiseModel) -> None:
    base = tiny_model("llama")
    with around():
        model = wrapped(base, mode)
        assert not model.edit(EDITS[:1] if mode == "retrieve" else EDITS).failed and not torch.is_grad_enabled()
        assert model.ask(EDITS[0].prompt)[0].text == EDITS[0].target
        if mode == "hybrid":
            for own, other in zip(model.state.slots, here.state.slots, strict=True):
                torch.testing.assert_close(own.tensors(), other.tensors(), rtol=1e-3, atol=1e-3)
    model.delete(EDITS[0].id)
    assert not model.edit(EDITS[0]).failed


@torch.inference_mode()
def test_a_base_without_values_or_gradients_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="loaded under torch.inference_mode.*load it outside"):
        wrapped(tiny_model("llama"))
    with pytest.raises(UnsupportedModelError, match="on the device meta.*load its weights"):
        wrapped(tiny_model("llama").to("meta"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself, as transformers imports it
def test_a_model_with_an_encoder_and_one_that_cannot_be_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 128, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    with pytest.raises(UnsupportedModelError, match="this t5 model reads the prompt with an encoder.*give a causal LM"):
        wrapped(T5ForConditionalGeneration(T5Config(**sizes)))
    broken = tiny_model("llama")
    monkeypatch.setattr(broken, "prepare_inputs_for_generation", lambda *_args, **_named: {})
    modules = list(broken.modules())
    with pytest.raises(UnsupportedModelError, match="this llama model generates no text: ."):
        wrapped(broken)
    assert modules == list(broken.modules())
    broken.model.norm = torch.nn.LayerNorm(7)
    with pytest.raises(UnsupportedModelError, match="this llama model does not run on text alone: .*shape"):
        wrapped(broken)


def test_a_model_inside_another_one_is_asked_for() -> None:
    with pytest.raises(UnsupportedModelError, match="given a DataParallel: .*; give .* its field 'module'"):
        wise.wrap(torch.nn.DataParallel(tiny_model("llama")), tiny_tokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
def test_a_model_in_training_with_dropout_and_checkpoints_is_edited_as_another_one(
    mode: str, here: wise.WiseModel
) -> None:
    base = tiny_model("llama", attention_dropout=0.5)
    getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()
    base.train()
    model = wrapped(base, mode)
    assert not model.edit(EDITS[:1] if mode == "retrieve" else EDITS).failed and base.training
    if mode == "hybrid":
        for own, other in zip(model.state.slots, here.state.slots, strict=True):
            torch.testing.assert_close(own.tensors(), other.tensors(), rtol=1e-3, atol=1e-3)


# -- attention and compilation ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch and transformers themselves
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
@modes
def test_flex_attention_with_padding_says_what_sdpa_says(mode: str, options: dict[str, str]) -> None:
    plain = wrap_tiny("llama", mode, layer=LAYER)
    with torch.compiler.set_stance("force_eager"):  # it compiles a kernel for each shape
        flex = wrap_tiny(tiny_model("llama", attention="flex_attention"), mode, layer=LAYER)
        said = generated(flex, BATCH, **options)
        with flex.disabled() as base:
            assert generated(base, BATCH, **options) != said
    assert said == generated(plain, BATCH)


def attention_by_padding(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Takes what flash attention takes: which tokens are padding `[batch, keys]`, or None, and no mask of pairs."""
    assert attention_mask is None or attention_mask.ndim == 2
    size, length = query.shape[2], key.shape[2]
    seen = torch.ones(size, length, dtype=torch.bool).tril(length - size)
    mask = seen[None, None] if attention_mask is None else seen & attention_mask[:, None, None, -length:].bool()
    heads = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(heads, 1) for part in (key, value))
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    said = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias, scale=given.get("scaling"))
    return said.transpose(1, 2), None


BY_PADDING = "by_padding"
AttentionInterface.register(BY_PADDING, attention_by_padding)
AttentionMaskInterface.register(BY_PADDING, flash_attention_mask)


@modes
def test_attention_that_is_given_padding_alone_says_what_sdpa_says(mode: str) -> None:
    """As flash attention is."""
    plain = wrap_tiny("llama", mode, layer=LAYER)
    other = wrap_tiny(tiny_model("llama", attention=BY_PADDING), mode, layer=LAYER)
    said = generated(other, BATCH)
    with other.disabled() as base:
        assert generated(base, BATCH) != said
    assert said == generated(plain, BATCH)


def test_a_model_with_attention_that_is_given_padding_alone_is_edited(here: wise.WiseModel, tmp_path: Path) -> None:
    is_edited_alike(wrapped(tiny_model("llama", attention=BY_PADDING)), here, tmp_path)


def compiled_forward(model: PreTrainedModel) -> PreTrainedModel:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_inside(model: PreTrainedModel) -> PreTrainedModel:
    model.model.layers[LAYER].mlp.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [compiled_forward, compiled_inside])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_was_compiled_is_edited(
    compiled: Callable[[PreTrainedModel], PreTrainedModel], here: wise.WiseModel, tmp_path: Path
) -> None:
    with torch.compiler.set_stance("force_eager"):
        is_edited_alike(wrapped(compiled(tiny_model("llama"))), here, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself
def test_a_compiled_wrapper_is_refused_with_the_way_out() -> None:
    model = tiny_model("llama")
    with pytest.raises(UnsupportedModelError, match="wrap the model that was compiled, and compile the wrapped one"):
        wrapped(torch.compile(model))  # type: ignore[arg-type]
    assert wrapped(model).is_wrapped


# -- ranks ------------------------------------------------------------------------------------


def on_two_ranks(kind: str, folder: Path) -> list[dict[str, Any]]:
    tiny_model("llama").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    said = started(str(HELPERS / "ranks.py"), kind, str(folder))
    return json.loads(said[-1])  # type: ignore[no-any-return]


def started(*arguments: str) -> list[str]:
    """What Python says with these arguments, line by line."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(HELPERS), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_tensor_parallel_ranks_edit_alike_and_as_one_process_does(here: wise.WiseModel, tmp_path: Path) -> None:
    first, second = on_two_ranks("hybrid", tmp_path)
    assert first == second and first["width"] == 32, "half of the activation's 64"
    assert [status for status, _ in first["outcomes"]] == ["verified", "verified"]
    assert first["said"] == [answer.text for answer in here.ask([EDITS[0].prompt, EDITS[1].prompt, text([33, 34])])]
    assert any(slot is not None for slot, _ in first["routes"][0])
    assert first["digest"] == here.fingerprint().digest
    loaded = wise.WiseModel.from_pretrained(
        tmp_path / "memory0", tiny_model("llama"), here.tokenizer, **reading("hybrid")
    )
    for own, other in zip(loaded.state.slots, here.state.slots, strict=True):
        torch.testing.assert_close(own.tensors()["values"], other.tensors()["values"], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"), [("retrieve", "part of each activation.*mode='hybrid'"), ("fsdp", "fully_shard.*device_map")]
)
def test_what_is_split_otherwise_is_refused_on_each_rank(kind: str, reason: str, tmp_path: Path) -> None:
    for found in on_two_ranks(kind, tmp_path):
        assert re.search(reason, found["refused"]) and found.get("unchanged", True)


@pytest.mark.slow
def test_two_processes_that_edit_shards_of_a_stream_make_what_one_makes(tmp_path: Path) -> None:
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --main_process_port 0".split()
    said = started("-m", "accelerate.commands.launch", *options, str(HELPERS / "shards.py"), str(tmp_path))
    told = re.findall(r"\d: gloo, \d edits", " ".join(said))  # both write to one stream, at any moment
    assert sorted(told) == ["0: gloo, 2 edits", "1: gloo, 1 edits"]
    edit_stream(STREAM, tmp_path / "whole")
    with Store.open(tmp_path / "one") as one, Store.open(tmp_path / "both") as both:
        one.import_pack(tmp_path / "whole")
        both.import_pack(tmp_path / "memory0")
        assert both.read().state.edit_ids != one.read().state.edit_ids
        both.import_pack(tmp_path / "memory1")
        left, right = one.read().state, both.read().state
    assert left.edits == right.edits == tuple(STREAM)
    for own, other in zip(left.slots, right.slots, strict=True):
        assert own.edit_ids == other.edit_ids and own.scores == other.scores
        assert all(torch.equal(value, other.tensors()[name]) for name, value in own.tensors().items())
    assert all(torch.equal(keys, right.keys[edit_id]) for edit_id, keys in left.keys.items())
