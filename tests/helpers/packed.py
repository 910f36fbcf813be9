"""Linear layers that keep their weights as GPTQ and AWQ do: packed into integers, without a tensor `weight`."""

from __future__ import annotations

import torch
from tiny import tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

BITS, GROUP = 4, 8
PLACES = BITS * torch.arange(32 // BITS)


class PackedLinear(nn.Module):
    """Eight entries of four bits in each integer, with a scale and a zero for each group of inputs."""

    qweight: Tensor
    scales: Tensor
    qzeros: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        groups = linear.weight.detach().unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1), groups.amax(-1)
        scales = (high - low).clamp(min=1e-6) / (2**BITS - 1)
        zeros = (-low / scales).round()
        entries = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 2**BITS - 1).long().flatten(1)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = (entries.unflatten(1, (-1, len(PLACES))) << PLACES).sum(-1)
        self.register_buffer("qweight", packed.t().to(torch.int32).contiguous())
        self.register_buffer("scales", scales.t().contiguous())
        self.register_buffer("qzeros", zeros.t().contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        entries = (self.qweight.t()[..., None] >> PLACES & 2**BITS - 1).flatten(1).unflatten(1, (-1, GROUP))
        weight = (entries - self.qzeros.t()[..., None]) * self.scales.t()[..., None]
        return nn.functional.linear(x, weight.flatten(1).to(x.dtype), self.bias)


def packed_model(seed: int = 0) -> PreTrainedModel:
    """A tiny Llama with packed blocks, which says of itself what transformers says of a GPTQ model."""
    model = tiny_model("llama", seed=seed)
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, layer in [*part.named_children()]:
                if isinstance(layer, nn.Linear):
                    setattr(part, name, PackedLinear(layer))
    model.config.quantization_config = {"quant_method": "gptq", "bits": BITS}
    model.is_quantized = True
    return model
