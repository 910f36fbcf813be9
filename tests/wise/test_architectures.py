"""Where the value projection is found, in any architecture, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, BATCH, DEPTH, generated, located, tiny_model, wrap_tiny
from transformers import AutoConfig, AutoModelForImageTextToText

import wise
from wise.architectures import locate
from wise.errors import ConfigError, UnsupportedModelError
from wise.lab.locate.running import Runner
from wise.lab.locate.sites import ATTENTION_OUTPUTS, find_sites

POST_NORM = {"gemma2", "gemma3_text"}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def test_the_matrix_of_the_tests_is_the_table_of_the_places_of_attention() -> None:
    assert set(ARCHITECTURES) == set(ATTENTION_OUTPUTS) - {"gemma3"}  # text and images: see below


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - POST_NORM))
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


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - POST_NORM))
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


UNTOLD: dict[str, tuple[str, dict[str, Any]]] = {
    "stablelm": ("model.layers.2.mlp.down_proj", {}),
    "openai-gpt": ("transformer.h.2.ln_2", {"n_embd": 32, "n_layer": DEPTH, "n_head": 4}),
    "olmo2": ("model.layers.2.post_feedforward_layernorm", {}),
    "glm4": ("model.layers.2.post_mlp_layernorm", {}),
    "mixtral": ("model.layers.2.mlp", EXPERTS),
    "qwen3_moe": ("model.layers.2.mlp", EXPERTS),
    "gpt_oss": ("model.layers.2.mlp", EXPERTS),
}
"""Where the side memory stands in models of which no line of the code knows."""


@pytest.mark.parametrize("model_type", UNTOLD)
def test_any_architecture_is_asked_where_its_feed_forward_ends(model_type: str) -> None:
    path, changes = UNTOLD[model_type]
    model = tiny_model(model_type, **changes)
    assert located(model).path == path
    assert located(model).out_features == 32


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2"])
def test_what_is_added_before_a_norm_does_not_come_out(model_type: str) -> None:
    """The negative control: the value projection of a post-norm block is no place, though it ends the feed-forward."""
    model = tiny_model(model_type)
    added = torch.randn(32, generator=torch.Generator().manual_seed(1)) * 10

    def change(path: str) -> torch.Tensor:
        out: list[torch.Tensor] = []
        block = model.get_submodule("model.layers.2")
        model.get_submodule("model.norm").register_forward_pre_hook(lambda _, args: out.append(args[0]))
        model(torch.tensor(BATCH[:1]))
        handle = block.get_submodule(path).register_forward_hook(lambda _m, _a, output: output + added)
        model(torch.tensor(BATCH[:1]))
        handle.remove()
        return out[-1] - out[0]

    assert torch.allclose(change("post_feedforward_layernorm"), added.expand(1, len(BATCH[0]), -1), atol=1e-4)
    assert not torch.allclose(change("mlp.down_proj"), added.expand(1, len(BATCH[0]), -1), atol=1)


def test_the_last_projection_can_be_asked_for_whatever_norm_stands_behind_it() -> None:
    config = wise.WiseConfig(layer=1)
    assert locate(tiny_model("gemma2"), config, linear=True).path == "model.layers.1.mlp.down_proj"
    with pytest.raises(UnsupportedModelError, match="linear layer"):
        locate(tiny_model("mixtral", **EXPERTS), config, linear=True)


def test_a_projection_behind_a_gate_is_not_taken_for_the_end_of_a_feed_forward() -> None:
    """Qwen's shared expert is weighed by a gate, token by token: it may be almost shut."""
    changes = EXPERTS | {"shared_expert_intermediate_size": 16}
    assert located(tiny_model("qwen2_moe", **changes)).path == "model.layers.2.mlp"


def test_a_dense_block_between_packed_experts_is_edited_at_its_projection() -> None:
    model = tiny_model("qwen3_moe", **EXPERTS, mlp_only_layers=[1])
    assert located(model, layer=1).path == "model.layers.1.mlp.down_proj"
    assert located(model, layer=2).path == "model.layers.2.mlp"


def test_a_model_without_a_feed_forward_is_refused_and_the_error_says_why() -> None:
    model = tiny_model("mamba", hidden_size=32, state_size=4, num_hidden_layers=DEPTH)
    for layer, reason in ((None, "no block of backbone.layers"), (1, "block 1 (backbone.layers.1)")):
        with pytest.raises(UnsupportedModelError) as refused:
            located(model, layer=layer)
        assert reason in str(refused.value) and "target_module" in str(refused.value)


@pytest.mark.parametrize("model_type", ["mixtral", "gemma2"])
@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_any_place_is_edited_like_any_other(model_type: str, mode: str) -> None:
    model = tiny_model(model_type, **(EXPERTS if model_type == "mixtral" else {}))
    base = generated(model, BATCH)
    edited = wrap_tiny(model, mode, layer=1)
    said = generated(edited, BATCH)
    assert said != base
    assert [generated(edited, [row])[0] for row in BATCH] == said
    assert generated(edited.unwrap(), BATCH) == base


def test_asking_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt_neox", hidden_dropout=0.5).train()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    first, second = (located(model).path for _ in range(2))
    assert first == second and all(module.training for module in model.modules())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("model.blocks.{i}.mlp.down_proj", "has no module 'model.blocks'"),
        ("model.layers.{i}.mlp.up", "model.layers.2.mlp.up of this llama model is not there"),
        ("model.embed_tokens.{i}.mlp", "is not a list of blocks"),
        ("model.layers.{i}", "model.layers.{i}"),
        ("model.layers.{i}.mlp.act_fn", "does not map every token to 32 features"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_those_that_lead_somewhere(path: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        located(tiny_model("llama"), target_module=path)
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
    assert wrapped.target_module.path == "model.language_model.layers.1.post_feedforward_layernorm"
