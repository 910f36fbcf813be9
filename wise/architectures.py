"""Where each architecture keeps the last projections of its feed-forward and attention layers: tables, not branches.

To add an architecture, add one row to each. A user with a model that is not here names the path in
`WiseConfig(value_projection="...{i}...")`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from wise.config import WiseConfig
from wise.errors import ConfigError, UnsupportedModelError

LLAMA_STYLE = "model.layers.{i}.mlp.down_proj"
BLOOM_STYLE = "transformer.h.{i}.mlp.dense_4h_to_h"

VALUE_PROJECTIONS: dict[str, str] = {
    "bloom": BLOOM_STYLE,
    "falcon": BLOOM_STYLE,
    "gemma2": LLAMA_STYLE,
    "gemma3": "model.language_model.layers.{i}.mlp.down_proj",
    "gemma3_text": LLAMA_STYLE,
    "gpt2": "transformer.h.{i}.mlp.c_proj",
    "gpt_neox": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
    "gptj": "transformer.h.{i}.mlp.fc_out",
    "llama": LLAMA_STYLE,
    "mistral": LLAMA_STYLE,
    "opt": "model.decoder.layers.{i}.fc2",
    "phi3": LLAMA_STYLE,
    "qwen2": LLAMA_STYLE,
    "qwen3": LLAMA_STYLE,
}
"""`model_type` -> path of the value projection, `{i}` being the block."""

LLAMA_ATTENTION = "model.layers.{i}.self_attn.o_proj"
BLOOM_ATTENTION = "transformer.h.{i}.self_attention.dense"

ATTENTION_OUTPUTS: dict[str, str] = {
    "bloom": BLOOM_ATTENTION,
    "falcon": BLOOM_ATTENTION,
    "gemma2": LLAMA_ATTENTION,
    "gemma3": "model.language_model.layers.{i}.self_attn.o_proj",
    "gemma3_text": LLAMA_ATTENTION,
    "gpt2": "transformer.h.{i}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{i}.attention.dense",
    "gptj": "transformer.h.{i}.attn.out_proj",
    "llama": LLAMA_ATTENTION,
    "mistral": LLAMA_ATTENTION,
    "opt": "model.decoder.layers.{i}.self_attn.out_proj",
    "phi3": LLAMA_ATTENTION,
    "qwen2": LLAMA_ATTENTION,
    "qwen3": LLAMA_ATTENTION,
}
"""`model_type` -> path of the attention's output projection, whose output is what attention adds to the block."""


@dataclass(frozen=True, kw_only=True)
class ValueProjection:
    """The module that is wrapped, and where it stands."""

    path: str
    """Dotted path from the model, e.g. `model.layers.4.mlp.down_proj`."""
    blocks: str
    """Dotted path of the list of blocks, e.g. `model.layers`."""
    layer: int
    """Index of the edited block."""
    depth: int
    """Number of blocks."""
    in_features: int
    """f: size of the activation."""
    out_features: int
    """d: size of the block's output."""


LAYER_FRACTION = {"merge": 0.85, "retrieve": 0.85, "hybrid": 0.7}
"""Depth of the edited block where no setting names it: the WISE paper edits block 27 of 32. `hybrid` edits lower, since
its answers are read through the blocks above."""


def locate(model: PreTrainedModel, config: WiseConfig) -> ValueProjection:
    """Finds the value projection that `config` asks for.

    Raises UnsupportedModelError where the architecture is unknown or has packed experts, and
    ConfigError where `layer` is not a block of this model.
    """
    model_type = str(model.config.model_type)
    template = config.value_projection or VALUE_PROJECTIONS.get(model_type)
    if template is None:
        raise UnsupportedModelError(_unknown(model, model_type))
    blocks_path, _, inner = template.partition(".{i}.")
    try:
        blocks = model.get_submodule(blocks_path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"value_projection {template!r}: this {model_type} model has no module {blocks_path!r}; "
            f"candidates: {_candidates(model)}"
        ) from error
    if not isinstance(blocks, nn.ModuleList) or not len(blocks) or not inner:
        raise UnsupportedModelError(
            f"value_projection {template!r}: {blocks_path!r} is not a list of blocks; "
            f"candidates: {_candidates(model)}"
        )
    layer = _choose_layer(config, len(blocks))
    path = f"{blocks_path}.{layer}.{inner}"
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(_missing(model, blocks[layer], path)) from error
    sizes = _sizes(module)
    if sizes is None:
        raise UnsupportedModelError(
            f"{path} is a {type(module).__name__}: expected a linear layer (Linear, Conv1D or a subclass); "
            f"candidates: {_candidates(model)}"
        )
    return ValueProjection(
        path=path,
        blocks=blocks_path,
        layer=layer,
        depth=len(blocks),
        in_features=sizes[0],
        out_features=sizes[1],
    )


def _choose_layer(config: WiseConfig, depth: int) -> int:
    if config.layer is None:
        return int(LAYER_FRACTION[config.mode] * depth)
    if config.layer >= depth:
        raise ConfigError(f"layer={config.layer}: this model has {depth} blocks, 0 to {depth - 1}")
    return config.layer


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """(f, d) of a linear module, whichever way round its weight lies; None for any other module.

    Of a module that stands around one, those of the one inside.
    """
    for inner in ("base_module", "base_layer"):  # of a wrapped layer; of one of peft's, or of another editor's
        module = getattr(module, inner, module)
    for names in (("in_features", "out_features"), ("nx", "nf")):  # nn.Linear and kin; transformers' Conv1D
        f, d = (getattr(module, name, None) for name in names)
        if isinstance(f, int) and isinstance(d, int):
            return f, d
    return None


def _missing(model: PreTrainedModel, block: nn.Module, path: str) -> str:
    return _packed(model, block) or (
        f"this {model.config.model_type} model has no module {path!r}; candidates: {_candidates(model)}"
    )


def _unknown(model: PreTrainedModel, model_type: str) -> str:
    return _packed(model, model) or (
        f"model_type {model_type!r} is not in the table ({', '.join(sorted(VALUE_PROJECTIONS))}); name the "
        f"value projection with WiseConfig(value_projection=...); candidates: {_candidates(model)}"
    )


def _packed(model: PreTrainedModel, part: nn.Module) -> str | None:
    """Why `part` of the model cannot be wrapped, where it keeps its experts in 3-D parameters."""
    packed = next((name for name, p in part.named_parameters() if p.ndim == 3 and "expert" in name), None)
    return packed and (
        f"{model.config.model_type} keeps its experts packed in 3-D parameters ({packed!r}), so there is no "
        "value projection to stand beside; wise edits dense feed-forward layers. Choose a dense model, or "
        "name a dense linear layer with value_projection='path.{i}.name'"
    )


def _candidates(model: PreTrainedModel) -> str:
    """Paths of linear layers inside blocks that lead back to the model's width, `{i}` for the block."""
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    found: dict[str, None] = {}
    adapted = tuple(f"{name}." for name, module in model.named_modules() if hasattr(module, "merged_adapters"))
    for name, module in model.named_modules():
        if name.startswith(adapted):
            continue  # a part of one of peft's layers
        f, d = _sizes(module) or (width, None)
        if d == width != f and re.search(r"\.\d+\.", name):
            found[re.sub(r"\.\d+\.", ".{i}.", name, count=1)] = None
    return ", ".join(found) or "none found"
