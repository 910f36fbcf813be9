"""The module that takes the place of a feed-forward layer's end: the base's own module and a side memory beside it.

    y = W(a) + g * delta(a)

`W` is the value projection of a dense feed-forward layer, or any module that gives a vector of the model's width for
each token (`wise.architectures`). `a` is the first tensor that it is called with.

The memory decides `g` per token from `a` alone. No mask, position or row reaches this layer, so a
token is routed the same way in a batch, in a beam, in a chunk or in a ragged pack of requests.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from wise.memory.base_watch import tuner_layers
from wise.memory.modules import Wrapper, activation_of, execution_device, first_tensor, with_first
from wise.memory.side_memory import SideMemory


class SideMemoryLayer(Wrapper):
    """Wraps `base_module`, which maps `[..., f] -> [..., d]`; without a memory it is that, bit for bit."""

    def __init__(self, base_module: nn.Module, block: nn.Module | None = None) -> None:
        """block: in which it stands, for a module without parameters, which does not tell where it runs."""
        super().__init__()
        self._block = (block or base_module,)  # in a tuple, so that it is no child
        self.base_module = base_module  # peft takes a module with a child `base_layer` for one of its own
        self.register_module("memory", None)  # so that a memory is swapped in with one assignment
        self.memory: SideMemory | None
        self.train(base_module.training)
        as_child(self, "base_module")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base's own module gives; the memory adds to it, or to the first of a tuple."""
        output = self.base_module(*args, **kwargs)
        memory = self.memory  # looked up once, since another thread may take it away
        if memory is None:
            return output
        return with_first(output, memory(activation_of(args, kwargs), first_tensor(output)))

    def extra_repr(self) -> str:
        """peft shows it where it refuses this layer."""
        return "# the side memory of wise: put adapters for this module on before wise.wrap"

    def device(self) -> torch.device:
        return execution_device(self._block[0])


def as_child(module: nn.Module, name: str) -> None:
    """Gives `module` the state dict of its child `name`, without the name in its keys.

    A checkpoint written from a wrapped model must be readable without wise: with other keys a plain reload would leave
    random numbers where it misses its own. Where peft has put adapters into the child, the keys stay as they are, since
    peft looks for its tensors where their modules stand.
    """
    module.register_state_dict_post_hook(partial(_hide, name))  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(partial(_expect, name))  # type: ignore[no-untyped-call]


def _hide(name: str, module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    inner = f"{prefix}{name}."
    if next(tuner_layers(module.get_submodule(name)), None) is None:
        for key in [k for k in state if k.startswith(inner)]:
            state[prefix + key.removeprefix(inner)] = state.pop(key)


def _expect(name: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if next(tuner_layers(module.get_submodule(name)), None) is None:
        for key in [k for k in state if k.startswith(prefix)]:
            state[f"{prefix}{name}.{key.removeprefix(prefix)}"] = state.pop(key)
