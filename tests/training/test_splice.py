"""The splice is the full forward: same logits and gradients at the target positions, everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    DEPTH,
    VOCABULARY,
    WINDOW,
    generated,
    located,
    put,
    same_tensors,
    tiny_model,
    wrap_tiny,
)
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from wise.errors import UnsupportedModelError
from wise.memory.modules import first_tensor, with_first
from wise.memory.state import MemoryState
from wise.training.generation import checking
from wise.training.rows import Rows
from wise.training.splice import ALONE, CACHED, UPPER, WHOLE, SplicedModel

# Contexts shorter and longer than the sliding window, one of them empty; targets of unlike length.
ROWS: list[tuple[list[int], list[int]]] = [
    (list(range(5, 5 + WINDOW + 6)), [40, 41, 42, 2]),
    ([60], [61, 2]),
    ([70, 71, 72], [73]),
]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ARCHITECTURES} | {
    "falcon with alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, serial blocks": ("falcon", {"parallel_attn": False, "multi_query": False}),
    "gpt_neox, serial blocks": ("gpt_neox", {"use_parallel_residual": False}),
    "llama, eager attention": ("llama", {"attention": "eager"}),
    "opt, norm after": ("opt", {"do_layer_norm_before": False}),
    "opt, narrow embeddings": ("opt", {"word_embed_proj_dim": 16}),
    "packed experts": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "a convolution beside attention": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
    "a recurrence beside attention": (
        "qwen3_5_text",
        {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "head_dim": 8}
        | {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    "both in each block": (
        "falcon_h1",
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8},
    ),
    "padding changes it": ("roformer", {"embedding_size": 32, "is_decoder": True}),
    "no cache": ("openai-gpt", {"n_embd": 32, "n_layer": DEPTH, "n_head": 4}),
}
STEPS = {"no cache": UPPER, "padding changes it": ALONE}
"""What training steps run, where it is not `CACHED`."""
LAYERS = [0, 1, DEPTH - 1]

Delta = Callable[[Tensor], Tensor]


def spliced(model: PreTrainedModel, layer: int) -> SplicedModel:
    return SplicedModel(model, located(model, layer=layer))


def full_logits(model: PreTrainedModel, layer: int, row: int, delta: Delta | None = None) -> Tensor:
    """What the model itself says at the target positions of one row, unpadded, with `delta` added there."""
    prompt, target = ROWS[row]
    seen = len(prompt) - 1

    def add(_module: Any, args: tuple[Tensor], whole: Any) -> Any:
        output = first_tensor(whole)
        if delta is None or output is None:
            return None
        tokens = args[0].view(-1, args[0].shape[-1])[seen:]
        added = torch.cat([output.new_zeros(seen, output.shape[-1]), delta(tokens)])
        return with_first(whole, output + added.view_as(output))

    handle = model.get_submodule(located(model, layer=layer).path).register_forward_hook(add)
    try:
        return model(torch.tensor([prompt + target[:-1]]), use_cache=False).logits[0, seen:]  # type: ignore[no-any-return]
    finally:
        handle.remove()


def random_weight(model: PreTrainedModel, layer: int) -> Tensor:
    where = located(model, layer=layer)
    generator = torch.Generator().manual_seed(7)
    return torch.randn(where.out_features, where.in_features, generator=generator)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_those_of_the_full_forward(variant: str, layer: int) -> None:
    model_type, changes = VARIANTS[variant]
    model = tiny_model(model_type, **changes).requires_grad_(False)
    upper = spliced(model, layer)
    assert upper.steps == STEPS.get(variant, CACHED)
    rows = upper.cache(ROWS)
    lengths = [len(target) for _, target in ROWS]
    plain = upper.logits(rows)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(plain[row, :length], full_logits(model, layer, row), rtol=1e-4, atol=1e-4)

    weight = random_weight(model, layer).requires_grad_()
    edited = upper.logits(rows, lambda activation: linear(activation, weight))
    (mine,) = torch.autograd.grad(
        loss_of(edited[rows.labels != -100], rows.labels[rows.labels != -100]), weight
    )
    theirs = torch.zeros_like(mine)
    for row, (length, (_, target)) in enumerate(zip(lengths, ROWS, strict=True)):
        full = full_logits(model, layer, row, lambda tokens: linear(tokens, weight))
        torch.testing.assert_close(edited[row, :length], full, rtol=1e-4, atol=1e-4)
        assert (full - plain[row, :length]).abs().max() > 0.1, "the edit changes nothing: nothing was tested"
        theirs += torch.autograd.grad(loss_of(full, torch.tensor(target)), weight)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))

    labelled = upper.labelled_logits(rows, lambda activation: linear(activation, weight))
    torch.testing.assert_close(labelled, edited[rows.labels != -100], rtol=1e-4, atol=1e-4)
    (cut,) = torch.autograd.grad(loss_of(labelled, rows.labels[rows.labels != -100]), weight)
    torch.testing.assert_close(cut, mine, rtol=1e-3, atol=1e-3 * float(mine.abs().max()))
    assert torch.equal(upper.logits(rows), plain), "the head is whole again"


@pytest.mark.parametrize("variant", ["llama", "gemma2", "packed experts", "a recurrence beside attention"])
def test_every_kind_of_step_gives_the_same(variant: str) -> None:
    model_type, changes = VARIANTS[variant]
    upper = spliced(tiny_model(model_type, **changes).requires_grad_(False), 1)
    rows = [row for row in ROWS if len(row[0]) > 1]
    found = []
    for steps in (WHOLE, UPPER, CACHED):
        upper.use(steps)
        cached = upper.cache(rows)
        added = torch.zeros(len(rows), 4, 32, requires_grad=True)
        logits = upper.labelled_logits(cached, lambda activation, added=added: added[:, : activation.shape[1]])  # type: ignore[misc]
        (gradient,) = torch.autograd.grad(logits.square().sum(), added)
        found.append((logits.detach(), gradient))
    for logits, gradient in found[1:]:
        torch.testing.assert_close(logits, found[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_a_state_that_is_wrong_would_be_noticed() -> None:
    model_type, changes = VARIANTS["a recurrence beside attention"]
    upper = spliced(tiny_model(model_type, **changes), 1)
    rows = upper.cache([row for row in ROWS if len(row[0]) > 1])
    assert any(rows.states)
    spoilt = replace(rows, states=tuple(tuple(state.roll(1, dims=0) for state in layer) for layer in rows.states))
    real = rows.labels != -100
    assert (upper.logits(rows)[real] - upper.logits(spoilt)[real]).abs().max() > 0.01


def test_a_check_that_ends_the_work_is_not_taken_for_an_error_of_the_architecture() -> None:
    def end() -> None:
        raise KeyError("cancelled")

    model = tiny_model("llama")
    with checking(end):
        splice = SplicedModel(model, located(model))
        assert splice.steps == CACHED
        with pytest.raises(KeyError, match="cancelled"):
            splice.cache(ROWS)


def test_a_base_without_gradients_is_refused() -> None:
    model = tiny_model("llama")
    model.lm_head.forward = torch.no_grad()(model.lm_head.forward)  # type: ignore[method-assign, operator, union-attr]
    with pytest.raises(UnsupportedModelError, match="gradient"):
        spliced(model, 1)


def spoil_window(rows: Rows) -> Rows:
    return replace(rows, mask=torch.ones_like(rows.mask))


def spoil_keys(rows: Rows) -> Rows:
    return replace(rows, keys=(rows.keys[0].roll(1, dims=-2), *rows.keys[1:]))


def spoil_hidden(rows: Rows) -> Rows:
    return replace(rows, hidden=rows.hidden.roll(1, dims=1))


@pytest.mark.parametrize("spoil", [spoil_window, spoil_keys, spoil_hidden])
@pytest.mark.parametrize("model_type", ["gemma2", "gpt2", "llama"])
def test_a_wrong_splice_would_be_noticed(model_type: str, spoil: Callable[[Rows], Rows]) -> None:
    model = tiny_model(model_type)
    upper = spliced(model, 1)
    rows = upper.cache(ROWS)
    right, wrong = upper.logits(rows), upper.logits(spoil(rows))
    real = rows.labels != -100
    assert (right[real] - wrong[real]).abs().max() > 0.01


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_is_cached_is_what_enters_the_layer(model_type: str) -> None:
    """Also where a memory stands in the model: rows are the base's."""
    wrapped = wrap_tiny(model_type, layer=1)
    upper = SplicedModel(wrapped.model, wrapped.target_module)
    rows = upper.cache(ROWS)
    seen: list[Tensor] = []
    handle = wrapped.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for row, (prompt, target) in enumerate(ROWS):
        wrapped(torch.tensor([prompt + target[:-1]]), use_cache=False)
        activation = seen.pop().reshape(-1, wrapped.target_module.in_features)
        before = len(prompt) - 1
        torch.testing.assert_close(rows.activations[row, : len(target)], activation[before:])
        torch.testing.assert_close(rows.context[row, rows.context.shape[1] - before :], activation[:before])
    handle.remove()
    ids = [prompt + target for prompt, target in ROWS]
    activations, outputs, mask, _ = upper.observe(ids)
    assert mask.sum(-1).tolist() == [len(row) for row in ids]
    for row, (prompt, target) in enumerate(ROWS):
        first = mask.shape[1] - len(ids[row]) + len(prompt) - 1
        torch.testing.assert_close(activations[row, first:-1], rows.activations[row, : len(target)])
        torch.testing.assert_close(outputs[row, first:-1], rows.outputs[row, : len(target)])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_delta_sees_the_activations_and_only_the_layers_above_run(model_type: str) -> None:
    model = tiny_model(model_type)
    upper = spliced(model, 1)
    rows = upper.cache(ROWS)
    ran: list[int] = []
    blocks = model.get_submodule(located(model).blocks)
    handles = [
        next(block.children()).register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(blocks)
    ]
    given: list[Tensor] = []

    def silent(activation: Tensor) -> Tensor:
        given.append(activation)
        return activation.new_zeros(*activation.shape[:-1], model.config.hidden_size)

    torch.testing.assert_close(upper.logits(rows, silent), upper.logits(rows), rtol=0, atol=0)
    for handle in handles:
        handle.remove()
    assert given[0].shape == rows.activations.shape
    real = rows.labels != -100
    torch.testing.assert_close(given[0][real], rows.activations[real], rtol=1e-4, atol=1e-5)
    assert set(ran) == {1, 2}


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral", "opt"])
def test_observing_tells_the_bases_greedy_next_tokens(model_type: str) -> None:
    wrapped = wrap_tiny(model_type, layer=1)
    rows = [prompt for prompt, _ in ROWS] * 3
    upper = SplicedModel(wrapped.model, wrapped.target_module)
    with wrapped.disabled() as base:
        expected = [row[0] for row in generated(base, rows, max_new_tokens=1)]
    assert upper.observe(rows).next.tolist() == expected


def test_what_the_edited_module_gives_is_the_bases_own() -> None:
    wrapped = wrap_tiny("gpt2", layer=1)
    seen = SplicedModel(wrapped.model, wrapped.target_module).observe([[5, 6, 7]])
    assert torch.equal(seen.outputs, wrapped.layer.base_module(seen.activations))


def test_selected_rows_give_the_logits_of_those_rows() -> None:
    upper = spliced(tiny_model("gemma2"), 1)
    rows = upper.cache(ROWS)
    chosen = torch.tensor([2, 0, 2])
    torch.testing.assert_close(upper.logits(rows.select(chosen)), upper.logits(rows)[chosen])
    assert len(rows.select(chosen)) == 3


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_users_model_is_not_touched(model_type: str) -> None:
    model = tiny_model(model_type)
    modules = [(name, id(module), dict(vars(module))) for name, module in model.named_modules()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    upper = spliced(model, 1)
    upper.logits(upper.cache(ROWS), lambda a: a.new_ones(*a.shape[:-1], model.config.hidden_size))
    after = [(name, id(module), dict(vars(module))) for name, module in model.named_modules()]
    assert [(n, i, sorted(v)) for n, i, v in modules] == [(n, i, sorted(v)) for n, i, v in after]
    assert all(
        list(a[2]["_modules"].values()) == list(b[2]["_modules"].values())
        for a, b in zip(modules, after, strict=True)
    )
    assert same_tensors(tensors, dict(model.state_dict()))


def test_the_splice_follows_the_users_weights() -> None:
    """Parameters are shared, so nothing is stale after the base itself is loaded anew."""
    model = tiny_model("llama")
    upper = spliced(model, 1)
    before = upper.logits(upper.cache(ROWS))
    model.load_state_dict(tiny_model("llama", seed=1).state_dict())
    after = upper.logits(upper.cache(ROWS))
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after[0, :4], full_logits(model, 1, 0), rtol=1e-4, atol=1e-4)


def test_a_delta_that_fails_leaves_the_splice_usable() -> None:
    upper = spliced(tiny_model("llama"), 1)
    rows = upper.cache(ROWS)
    before = upper.logits(rows)

    def broken(_activation: Tensor) -> Tensor:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        upper.logits(rows, broken)
    assert torch.equal(upper.logits(rows), before)


def test_a_memory_that_is_served_does_not_reach_the_splice() -> None:
    wrapped = wrap_tiny("llama", layer=1)
    upper = SplicedModel(wrapped.model, wrapped.target_module)
    served = upper.logits(upper.cache(ROWS))
    put(wrapped, MemoryState())
    assert torch.equal(upper.logits(upper.cache(ROWS)), served)
    assert served.shape[-1] == VOCABULARY
