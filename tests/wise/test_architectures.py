"""Where the value projection is found, in every architecture of the table and beyond, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, BATCH, DEPTH, generated, located, tiny_model, tiny_tokenizer, wrap_tiny
from transformers import AutoConfig, AutoModelForImageTextToText

import wise
from wise.architectures import ATTENTION_OUTPUTS, VALUE_PROJECTIONS
from wise.errors import ConfigError, UnsupportedModelError
from wise.lab.locate.running import Runner
from wise.lab.locate.sites import find_sites

EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def test_the_matrix_of_the_tests_is_the_table() -> None:
    assert set(ARCHITECTURES) == set(VALUE_PROJECTIONS) - {"gemma3"}  # text and images: see below
    assert set(ATTENTION_OUTPUTS) == set(VALUE_PROJECTIONS)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_is_found_is_the_second_matrix_of_the_feed_forward(model_type: str) -> None:
    """The last thing that a feed-forward block computes, from its inner width back to the model's."""
    model = tiny_model(model_type)
    found = located(model, layer=1)
    assert (found.layer, found.depth, found.out_features) == (1, DEPTH, model.config.hidden_size)
    assert found.in_features in (64, 128)
    module = model.get_submodule(found.path)
    assert module in list(model.get_submodule(f"{found.blocks}.1").modules())
    shapes: list[tuple[int, int]] = []
    module.register_forward_hook(lambda _, args, out: shapes.append((args[0].shape[-1], out.shape[-1])))
    model(torch.tensor(BATCH[:1]))
    assert shapes == [(found.in_features, found.out_features)]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_is_found_of_attention_is_all_that_tokens_learn_of_each_other(model_type: str) -> None:
    """Silenced in every layer, a token's logits no longer depend on the tokens before it; in all but one, they do."""
    model = tiny_model(model_type)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 8]])
    paths = [ATTENTION_OUTPUTS[model_type].format(i=i) for i in range(DEPTH)]
    alike = []
    for silent in (paths[1:], paths):
        handles = [
            model.get_submodule(path).register_forward_hook(lambda _m, _a, out: torch.zeros_like(out))
            for path in silent
        ]
        one, other = model(ids).logits[:, -1]
        alike.append(torch.allclose(one, other, atol=1e-4))
        for handle in handles:
            handle.remove()
    assert alike == [False, True]


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - {"gemma2", "gemma3_text"}))
def test_what_a_block_adds_is_what_its_attention_and_its_feed_forward_give(model_type: str) -> None:
    """Gemma's, which norms both before it adds them, aside."""
    model = tiny_model(model_type)
    seen: dict[str, torch.Tensor] = {}

    def take(path: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            seen[path] = (output[0] if isinstance(output, tuple) else output).reshape(1, 4, -1).clone()

        return model.get_submodule(path).register_forward_hook(hook)

    found = located(model, layer=2)
    attention = ATTENTION_OUTPUTS[model_type].format(i=2)
    paths = [f"{found.blocks}.1", f"{found.blocks}.2", found.path, attention]
    handles = [take(path) for path in paths]
    model(torch.tensor([[5, 6, 7, 8]]))
    for handle in handles:
        handle.remove()
    before, after, feed_forward, attended = (seen[path] for path in paths)
    assert torch.allclose(after, before + feed_forward + attended, atol=1e-4)


@pytest.mark.parametrize(("mode", "layer"), [("merge", 27), ("retrieve", 27), ("hybrid", 22)])
def test_the_layer_is_a_fraction_of_the_depth(mode: str, layer: int) -> None:
    model = tiny_model("llama", num_hidden_layers=32)
    assert located(model, mode=mode).layer == layer


def test_the_layer_can_be_named_and_must_be_there() -> None:
    model = tiny_model("gpt2")
    assert [located(model, layer=i).path for i in range(DEPTH)] == [
        f"transformer.h.{i}.mlp.c_proj" for i in range(DEPTH)
    ]
    with pytest.raises(ConfigError, match=r"layer=3: this model has 3 blocks, 0 to 2"):
        located(model, layer=DEPTH)


UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("model.layers.{i}.mlp.down_proj", {}),
    "stablelm": ("model.layers.{i}.mlp.down_proj", {}),
    "openai-gpt": ("transformer.h.{i}.mlp.c_proj", {"n_embd": 32, "n_layer": DEPTH, "n_head": 4}),
}


@pytest.mark.parametrize("model_type", UNKNOWN)
def test_an_unknown_architecture_is_refused_with_the_path_that_would_do(model_type: str) -> None:
    path, changes = UNKNOWN[model_type]
    model = tiny_model(model_type, **changes)
    with pytest.raises(UnsupportedModelError, match=f"'{model_type}' is not in the table") as refused:
        located(model)
    candidates = str(refused.value).rpartition("candidates: ")[2].split(", ")
    assert path in candidates
    assert "value_projection" in str(refused.value)
    wrapped = wise.wrap(model, tiny_tokenizer(), wise.WiseConfig(value_projection=path))
    assert wrapped.projection.path == path.format(i=2)
    wrapped.unwrap()


def test_a_model_wrapped_by_path_is_edited_like_any_other() -> None:
    path, _ = UNKNOWN["olmo2"]
    model = tiny_model("olmo2")
    base = generated(model, BATCH)
    wrapped = wise.wrap(model, tiny_tokenizer(), wise.WiseConfig(value_projection=path, layer=1))
    assert generated(wrapped, BATCH) == base
    edited = wrap_tiny(wrapped.unwrap(), value_projection=path, layer=1)
    said = generated(edited, BATCH)
    assert said != base
    assert [generated(edited, [row])[0] for row in BATCH] == said


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_packed_experts_are_refused_and_the_error_says_why(model_type: str) -> None:
    model = tiny_model(model_type, **EXPERTS)
    for path in (None, "model.layers.{i}.mlp.experts.0.down_proj"):
        with pytest.raises(
            UnsupportedModelError, match=f"{model_type} keeps its experts packed in 3-D"
        ) as refused:
            located(model, value_projection=path)
        assert "mlp.experts" in str(refused.value) and "Choose a dense model" in str(refused.value)


def test_a_dense_block_between_packed_experts_can_be_edited() -> None:
    model = tiny_model("qwen3_moe", **EXPERTS, mlp_only_layers=[1])
    path = "model.layers.{i}.mlp.down_proj"
    assert located(model, value_projection=path, layer=1).path == path.format(i=1)
    with pytest.raises(UnsupportedModelError, match="packed"):
        located(model, value_projection=path, layer=2)
    with pytest.raises(UnsupportedModelError, match="packed"):
        located(model)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("model.blocks.{i}.mlp.down_proj", "has no module 'model.blocks'"),
        ("model.layers.{i}.mlp.up", "has no module 'model.layers.2.mlp.up'"),
        ("model.embed_tokens.{i}.mlp", "is not a list of blocks"),
        ("model.layers.{i}", "model.layers.{i}"),
        ("model.layers.{i}.mlp", "expected a linear layer"),
        ("model.layers.{i}.mlp.act_fn", "expected a linear layer"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_those_that_lead_somewhere(path: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        located(tiny_model("llama"), value_projection=path)
    assert reason in str(refused.value)
    assert "model.layers.{i}.mlp.down_proj" in str(refused.value)


def test_the_language_model_of_a_model_that_also_sees_is_found() -> None:
    text = ARCHITECTURES["gemma3_text"] | {"vocab_size": 96}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = AutoModelForImageTextToText.from_config(config).eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    plain = model(ids).logits
    sites = find_sites(model)
    assert sites.attention[1] is model.get_submodule("model.language_model.layers.1.self_attn.o_proj")
    recorded = Runner(model, sites).record([4, 5, 6, 7])
    assert torch.allclose(recorded.logits, plain[:, -1], atol=1e-5)
    wrapped = wrap_tiny(model, mode=None, layer=1)
    assert torch.equal(wrapped(ids).logits, plain)
    assert wrapped.projection.path == "model.language_model.layers.1.mlp.down_proj"
