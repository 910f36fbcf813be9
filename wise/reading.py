"""Texts read once by a wrapped model, for what its side memory sees of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.errors import ConfigError
from wise.memory.layer import SideMemoryLayer, execution_device


@torch.no_grad()
def read_rows(model: PreTrainedModel, layer: SideMemoryLayer, rows: Sequence[Sequence[int]]) -> Tensor:
    """What enters `layer`, which stands in `model`, at every token of rows of ids: `[rows, longest, f]`.

    Pads stand on the right, so no row sees another's length; what enters there is meaningless. The memory in place
    speaks as it would in generation, and what the reader of `hybrid` saw is of this forward afterwards.

    Raises ConfigError where a model gives NaN.
    """
    ids, mask = right_padded(rows)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    device = execution_device(model)
    try:
        # The body alone: logits of all tokens of a long text take more memory than everything else.
        model.base_model(ids.to(device), attention_mask=mask.to(device), use_cache=False)
    finally:
        handle.remove()
    activation = seen[0].view(*ids.shape, -1)  # some architectures flatten their rows
    if bool(activation.isnan().any(-1).cpu()[mask.bool()].any()):
        raise ConfigError(
            "the model gives NaN where the side memory stands, so no route means anything: load it in float32 or "
            "bfloat16, and look at its weights"
        )
    return activation


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[rows, longest]`; pads are 0 and masked, and no token of a causal model sees them."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
