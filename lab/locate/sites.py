"""The modules of a model whose outputs a trace reads and replaces.

Three kinds of place in every block: the hidden state that leaves it; what its feed-forward layer puts out; what
its attention puts out. The latter two are taken at the last projection of either (the one that `wise` edits, and the
attention's output projection): plain linear layers in every architecture, whether they run one after the other or
side by side, and whatever norm stands behind them, since norms work token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from wise.architectures import locate
from wise.config import WiseConfig
from wise.errors import ConfigError, UnsupportedModelError

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

STATE, FFN, ATTENTION = KINDS = ("state", "ffn", "attention")
TITLES = {STATE: "hidden state after a layer", FFN: "feed-forward output", ATTENTION: "attention output"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sites:
    """The modules of a model whose outputs are taken and put back."""

    embedding: nn.Module
    """Token ids in, their vectors out: where noise is added."""
    blocks: tuple[nn.Module, ...]
    ffn: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def module(self, kind: str, layer: int) -> nn.Module:
        return {STATE: self.blocks, FFN: self.ffn, ATTENTION: self.attention}[kind][layer]


def find_sites(model: PreTrainedModel) -> Sites:
    """The places of a model of the table `ATTENTION_OUTPUTS`.

    Raises UnsupportedModelError where the architecture is not in it, or this model is built otherwise.
    """
    model_type = str(model.config.model_type)
    template = ATTENTION_OUTPUTS.get(model_type)
    if template is None:
        raise UnsupportedModelError(
            f"model_type {model_type!r}: tracing needs to know where attention ends; it knows "
            f"{', '.join(sorted(ATTENTION_OUTPUTS))}; add a row to wise.lab.locate.sites.ATTENTION_OUTPUTS"
        )
    projection = locate(model, WiseConfig(layer=0), linear=True)
    inner = projection.path.removeprefix(f"{projection.blocks}.0.")
    layers = range(projection.depth)
    return Sites(
        embedding=model.get_input_embeddings(),
        blocks=tuple(_module(model, f"{projection.blocks}.{i}") for i in layers),
        ffn=tuple(_module(model, f"{projection.blocks}.{i}.{inner}") for i in layers),
        attention=tuple(_module(model, template.format(i=i)) for i in layers),
    )


def check_layers(layers: Sequence[int] | None, depth: int) -> list[int]:
    """The layers to edit, each once, in order; None takes all. Raises ConfigError for one that there is not."""
    if layers is None:
        return list(range(depth))
    unknown = sorted({layer for layer in layers if not 0 <= layer < depth})
    if unknown or not layers:
        raise ConfigError(
            f"layers {', '.join(map(str, unknown)) or '(none)'}: this model has {depth} layers, 0 to {depth - 1}"
        )
    return sorted(set(layers))


def _module(model: PreTrainedModel, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"this {model.config.model_type} model has no module {path!r}, which tracing must see; "
            "choose a model whose blocks are all dense"
        ) from error
