"""The module that takes the place of a feed-forward layer's end: the base's own module and a side memory beside it.

    y = W(a) + g * delta(a)

`W` is the value projection of a dense feed-forward layer, or any module that gives a vector of the model's width for
each token (`wise.architectures`). `a` is the first tensor that it is called with.

The memory decides `g` per token from `a` alone. No mask, position or row reaches this layer, so a
token is routed the same way in a batch, in a beam, in a chunk or in a ragged pack of requests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wise.memory.modules import activation_of, execution_device, first_tensor, with_first
from wise.memory.side_memory import SideMemory


class SideMemoryLayer(nn.Module):
    """Wraps `base_layer`, which maps `[..., f] -> [..., d]`; without a memory it is that, bit for bit."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.memory: SideMemory | None = None
        self.train(base_layer.training)
        # A checkpoint written from a wrapped model must be readable without wise: left alone, its keys
        # would gain a `.base_layer` and a plain reload would fill this layer with random numbers.
        self.register_state_dict_post_hook(_hide_wrapper)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_expect_base_keys)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base layer gives; the memory adds to it, or to the first of a tuple."""
        output = self.base_layer(*args, **kwargs)
        if self.memory is None:
            return output
        return with_first(output, self.memory(activation_of(args, kwargs), first_tensor(output)))

    @property
    def weight(self) -> Any:
        """The base layer's weight, for code that looks at a projection's dtype or device."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        return self.base_layer.bias

    def device(self) -> torch.device:
        """Where this layer runs."""
        return execution_device(self.base_layer)


def _hide_wrapper(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    inner = f"{prefix}base_layer."
    for key in [k for k in state if k.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _expect_base_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = [k for k in state if k.startswith(prefix) and not k.startswith(f"{prefix}base_layer.")]
    for key in own:
        state[f"{prefix}base_layer.{key.removeprefix(prefix)}"] = state.pop(key)

