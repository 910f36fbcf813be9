"""What a base must be like to be wrapped, beside its architecture: found out before anything is changed."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedModel

from wise.errors import UnsupportedModelError
from wise.memory.modules import execution_device
from wise.memory.sequences import CACHE_NAMES
from wise.training.generation import without_settings

NOT_RUN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What models raise that are given something else than they need."""


def check_supported(model: PreTrainedModel, mode: str) -> None:
    """Raises UnsupportedModelError for a base without weights or gradients, compiled as a whole, or split over ranks in
    a way that cannot be edited, with the nearest way that works."""
    refused = {
        f"this {model.config.model_type} model reads the prompt with an encoder, and wise edits a decoder that "
        "reads it itself: give a causal LM, such as AutoModelForCausalLM loads": model.config.is_encoder_decoder,
        "this model is on the device meta, where tensors hold no values: load its weights, or dispatch it with "
        "accelerate, before it is wrapped": execution_device(model).type == "meta",
        "this model was loaded under torch.inference_mode, and no gradient passes through such weights: load it "
        "outside (torch.no_grad does no harm)": any(parameter.is_inference() for parameter in model.parameters()),
        "this is a compiled model (torch.compile), whose modules cannot be replaced: wrap the model that was "
        "compiled, and compile the wrapped one": hasattr(model, "_orig_mod"),
        "fully_shard keeps a part of each weight on each rank, and editing runs single blocks: spread the model with "
        "device_map or, in mode='hybrid', with tp_plan='auto'": any(isinstance(m, FSDPModule) for m in model.modules()),
        f"mode={mode!r}: tp_plan keeps a part of each activation on each rank, and this mode routes by whole ones: use "
        "mode='hybrid', or spread the model with device_map": (
            mode != "hybrid" and (getattr(model, "_tp_size", None) or 1) > 1
        ),
    }
    for reason in [reason for reason, is_refused in refused.items() if is_refused]:
        raise UnsupportedModelError(reason)


@torch.no_grad()
def check_cache(model: PreTrainedModel) -> None:
    """Raises UnsupportedModelError for a base that keeps what it has read in something else than layers, of which
    mode='hybrid' adds one for the token ids. The base generates one token to show it."""
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=1, pad_token_id=0, return_dict_in_generate=True
    )
    ids = torch.tensor([[1, 2]], device=execution_device(model))
    try:
        out = without_settings(model).generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
    except NOT_RUN as error:
        raise UnsupportedModelError(f"this {model.config.model_type} model generates no text: {error}") from error
    cache = next((out[name] for name in CACHE_NAMES if out.get(name) is not None), None)
    if cache is not None and not hasattr(cache, "layers"):
        raise UnsupportedModelError(
            f"this {model.config.model_type} model keeps what it has read in a {type(cache).__name__} that has no "
            "layers, so mode='hybrid', which goes by token ids, has no place for them: use mode='retrieve'"
        )


def make_differentiable(model: PreTrainedModel) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights when they are first used on a CPU with AVX512-BF16.

    The repacked form has other roundings and no gradient, so edits could not be fitted (bitsandbytes 0.50,
    `Linear4bit.forward`).

    Raises UnsupportedModelError where that has happened already.
    """
    packing: list[Any] = [m for m in model.modules() if getattr(m, "support_avx512bf16_for_cpu", False)]
    if any(getattr(getattr(m.weight, "quant_state", None), "packing_format_for_cpu", False) for m in packing):
        raise UnsupportedModelError(
            "this 4-bit base was used before it was wrapped, and bitsandbytes has repacked its weights for this CPU in "
            "a form without gradients: load it again, and wrap it first"
        )
    for module in packing:
        module.support_avx512bf16_for_cpu = False
