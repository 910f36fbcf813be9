"""What a base must be like to be wrapped, beside its architecture: found out before anything is changed."""

from __future__ import annotations

from transformers import PreTrainedModel

from wise.errors import UnsupportedModelError


def make_differentiable(model: PreTrainedModel) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights when they are first used on a CPU with AVX512-BF16.

    The repacked form has other roundings and no gradient, so edits could not be fitted (bitsandbytes 0.50,
    `Linear4bit.forward`).

    Raises UnsupportedModelError where that has happened already.
    """
    packing = [m for m in model.modules() if getattr(m, "support_avx512bf16_for_cpu", False)]
    if any(getattr(getattr(m.weight, "quant_state", None), "packing_format_for_cpu", False) for m in packing):
        raise UnsupportedModelError(
            "this 4-bit base was used before it was wrapped, and bitsandbytes has repacked its weights for this CPU in a "
            "form without gradients: load it again, and wrap it first"
        )
    for module in packing:
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
