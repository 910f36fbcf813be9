"""Low precision, moves between precisions, accelerate's placements, and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from tiny import (
    ARCHITECTURES,
    BATCH,
    DEPTH,
    VOCABULARY,
    generated,
    padded,
    put,
    route_of,
    same_tensors,
    tiny_model,
    wrap_tiny,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from wise.memory.side_memory import SideMemory
from wise.training.splice import SplicedModel

LAYER = 1
modes = pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])
ROWS = [([5, 6, 7, 8], [9, 10, 2]), ([60, 61], [62])]


def served(wrapped: Any) -> SideMemory:
    memory = wrapped.layer.memory
    assert isinstance(memory, SideMemory)
    return memory


def routing_tensors(memory: SideMemory) -> dict[str, Tensor]:
    """Those of the router and of what it is made of."""
    parts = memory.router.named_modules()
    found = {f"{part}.{name}".lstrip("."): value for part, module in parts for name, value in vars(module).items()}
    return {name: value.clone() for name, value in found.items() if isinstance(value, Tensor)}


NO_FLOATS = {"key_slots": torch.long}


# -- precision --------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_base_has_its_memory_in_that_precision_and_routes_in_float32(
    mode: str, dtype: torch.dtype
) -> None:
    wrapped = wrap_tiny(tiny_model("llama").to(dtype), mode, layer=LAYER)
    assert served(wrapped).bank.weights.dtype == dtype
    for name, tensor in routing_tensors(served(wrapped)).items():
        assert tensor.dtype == NO_FLOATS.get(name, torch.float32), name
    assert bool(routing_tensors(served(wrapped))) == (mode != "hybrid"), "which goes by texts"
    route = route_of(wrapped, BATCH[0])
    assert route.score.dtype == route.threshold.dtype == torch.float32
    assert wrapped(**padded(BATCH)).logits.dtype == dtype
    said = generated(wrapped, BATCH)
    with wrapped.disabled() as base:
        assert generated(base, BATCH) != said


@modes
@pytest.mark.parametrize("move", ["bfloat16", "half", "double", "to"])
def test_moving_the_model_to_another_precision_rounds_no_threshold_and_no_key(mode: str, move: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    before, weights = routing_tensors(served(wrapped)), served(wrapped).bank.weights.clone()
    if move == "to":
        wrapped.model.to("cpu", torch.bfloat16)
    else:
        getattr(wrapped.model, move)()
    assert same_tensors(before, routing_tensors(served(wrapped)))
    assert torch.equal(served(wrapped).bank.weights, weights)
    assert wrapped(**padded(BATCH)).logits.dtype == wrapped.model.dtype != torch.float32
    if mode == "merge":  # a threshold rounded to bf16 would be another one
        threshold = before["threshold"]
        assert not torch.equal(threshold, threshold.bfloat16().float())


@modes
def test_a_closed_gate_is_the_base_bit_for_bit_in_bf16(mode: str) -> None:
    wrapped = wrap_tiny(tiny_model("llama").bfloat16(), mode, layer=DEPTH - 1)
    ids = torch.tensor([sum(BATCH, [])])
    route = wrapped.route(ids)
    assert route is not None and 0 < int(route.open.sum()) < ids.numel()
    edited = wrapped(ids).logits[0]
    with wrapped.disabled() as base:
        assert torch.equal((base(ids).logits[0] == edited).all(-1), ~route.open)


@modes
def test_under_autocast_it_runs_and_still_edits(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    single = (i for i in range(4, VOCABULARY) if route_of(wrapped, [i]).open.all())
    opens = BATCH[1] if mode == "hybrid" else [next(single)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for ids in (padded(BATCH), padded([opens])):
            edited = wrapped(**ids).logits
            with wrapped.disabled() as base:
                plain = base(**ids).logits
            assert edited.dtype == plain.dtype and edited.isfinite().all()
            assert not torch.equal(edited, plain)


def test_under_autocast_the_hybrid_router_computes_in_float32() -> None:
    plain, cast = (wrap_tiny("llama", "hybrid", layer=LAYER) for _ in range(2))  # each decides anew
    rows = [*BATCH, BATCH[0][:5], BATCH[2][:4], [BATCH[0][0], *BATCH[1]]]
    wanted = [route_of(plain, row) for row in rows]
    with torch.autocast("cpu", torch.bfloat16):
        found = [route_of(cast, row) for row in rows]
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16, "nothing is cast"
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.score, other.score) and torch.equal(one.slot, other.slot)
    assert any(bool(route.open.any()) for route in wanted)


# -- placement --------------------------------------------------------------------------------

DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
PLACEMENTS: dict[str, Callable[[PreTrainedModel, Path], PreTrainedModel]] = {
    "device map": lambda model, _: dispatch_model(model, {"": "cpu"}, force_hooks=True),
    "blocks on disk": lambda model, folder: dispatch_model(
        model, DISK, main_device="cpu", offload_dir=folder
    ),
    "all offloaded": lambda model, _: cpu_offload(model, torch.device("cpu")),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_wherever_accelerate_keeps_the_weights_the_wrapped_model_speaks_the_same(
    placement: str, tmp_path: Path
) -> None:
    here = wrap_tiny("llama", layer=LAYER)
    model = PLACEMENTS[placement](tiny_model("llama"), tmp_path)
    there = wrap_tiny(model, mode=None, layer=LAYER)
    with here.disabled() as base:
        said = generated(base, BATCH)
    assert generated(there, BATCH) == said
    put(there, here.state)
    assert there.layer.device() == torch.device("cpu")
    assert generated(there, BATCH) == generated(here, BATCH) != said
    offloaded = {parameter.device.type for parameter in model.parameters()} - {"cpu"}
    assert offloaded == (set() if placement == "device map" else {"meta"})
    assert there.unwrap() is model
    assert generated(model, BATCH) == said


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_wherever_accelerate_keeps_the_weights_the_splice_is_the_same(placement: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    here = SplicedModel(model, wrap_tiny(model, mode=None, layer=LAYER).target_module)
    moved = PLACEMENTS[placement](tiny_model("llama"), tmp_path)
    wrapped = wrap_tiny(moved, mode=None, layer=LAYER)
    there = SplicedModel(moved, wrapped.target_module)
    mine, theirs = here.cache(ROWS), there.cache(ROWS)
    torch.testing.assert_close(theirs.activations, mine.activations, rtol=0, atol=0)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def loss(spliced: SplicedModel, rows: Any) -> Tensor:
        return spliced.logits(rows, lambda a: a @ weight.T).square().sum()

    for rows, spliced in ((mine, here), (theirs, there)):
        assert torch.isfinite(loss(spliced, rows))
    grads = [
        torch.autograd.grad(loss(spliced, rows), weight)[0]
        for spliced, rows in ((here, mine), (there, theirs))
    ]
    torch.testing.assert_close(*grads)
    for seen, wanted in zip(there.observe([[5, 6], [7]]), here.observe([[5, 6], [7]]), strict=True):
        torch.testing.assert_close(seen, wanted, rtol=0, atol=0)


def test_a_model_loaded_with_a_device_map_is_wrapped_and_saved_clean(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", device_map={"": "cpu"})
    wrapped = wrap_tiny(model.eval(), layer=LAYER)
    assert generated(wrapped, BATCH) == generated(wrap_tiny("llama", layer=LAYER), BATCH)
    model.save_pretrained(tmp_path / "again")
    assert same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), tiny_model("llama"))


def test_the_memory_moves_with_the_model() -> None:
    wrapped = wrap_tiny("llama", layer=LAYER)
    memory = served(wrapped)
    wrapped.model.to("meta")
    moved = [*routing_tensors(memory).values(), memory.bank.weights]
    assert len(moved) == 6 and {tensor.device.type for tensor in moved} == {"meta"}
    assert memory.router.thresholds.dtype == torch.float32


# -- gradients --------------------------------------------------------------------------------


def gradients(wrapped: Any, **checkpointing: Any) -> list[Tensor]:
    """Of the loss by the input embeddings and by every learning parameter of the base, in training mode."""
    model = wrapped.model.train()
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=checkpointing)
    assert model.is_activation_checkpointing == bool(checkpointing)
    batch = padded(BATCH)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    embedding = model.get_input_embeddings()
    embeds = embedding(batch["input_ids"]).detach().requires_grad_()
    handle = embedding.register_forward_hook(lambda *_: embeds)  # the ids are given as well: hybrid goes by them
    torch.manual_seed(0)  # dropout
    model.zero_grad()
    model(**batch, labels=labels, use_cache=False).loss.backward()
    handle.remove()
    model.activation_checkpointing_disable()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.zeros(()) if t.grad is None else t.grad.clone() for t in (embeds, *learning)]


GRADIENTS = [*((name, "retrieve") for name in ARCHITECTURES), ("llama", "hybrid"), ("gpt2", "hybrid")]


@pytest.mark.parametrize(("model_type", "mode"), GRADIENTS)
def test_gradients_are_the_same_with_checkpointing(model_type: str, mode: str) -> None:
    wrapped = wrap_tiny(model_type, mode, layer=LAYER)
    plain = gradients(wrapped)
    assert plain[0].abs().max() > 0
    for reentrant in (True, False):
        again = gradients(wrapped, use_reentrant=reentrant)
        for mine, theirs in zip(again, plain, strict=True):
            torch.testing.assert_close(mine, theirs)
    with wrapped.disabled():
        base = gradients(wrapped)
    assert not torch.allclose(base[0], plain[0]), "the memory has no part in the gradient: nothing was tested"


@modes
def test_a_frozen_base_passes_the_gradient_on_to_its_input_alone(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    wrapped.model.requires_grad_(False)
    for checkpointing in ({}, {"use_reentrant": True}, {"use_reentrant": False}):
        found = gradients(wrapped, **checkpointing)
        assert len(found) == 1 and found[0].abs().max() > 0


def test_the_gradient_is_the_slope_of_the_edited_model() -> None:
    """Against finite differences in double precision; gpt2, since it takes no step in float32."""
    wrapped = wrap_tiny(tiny_model("gpt2").double(), layer=LAYER)
    embeds = wrapped.get_input_embeddings()(torch.tensor(BATCH[:1])).detach().requires_grad_()
    direction = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(inputs: Tensor) -> Tensor:
        return wrapped(inputs_embeds=inputs, use_cache=False).logits.sin().sum()  # type: ignore[no-any-return]

    (grad,) = torch.autograd.grad(value(embeds), embeds)
    step = 1e-6 * direction
    with torch.no_grad():
        slope = (value(embeds + step) - value(embeds - step)) / 2e-6
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-4, atol=0)
