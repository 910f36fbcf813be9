"""The module that takes the place of the value projection: the base's own layer and a side memory beside it.

    y = W a + g * delta(a)

The memory decides `g` per token from `a` alone. No mask, position or row reaches this layer, so a
token is routed the same way in a batch, in a beam, in a chunk or in a ragged pack of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from wise.memory.base_watch import tuner_layers
from wise.memory.side_memory import SideMemory


class SideMemoryLayer(nn.Module):
    """Wraps `base_module`, a linear map `[..., f] -> [..., d]`; without a memory it is that, bit for bit."""

    def __init__(self, base_module: nn.Module) -> None:
        super().__init__()
        self.base_module = base_module  # peft takes a module with a child `base_layer` for one of its own
        self.register_module("memory", None)  # so that a memory is swapped in with one assignment
        self.memory: SideMemory | None
        self.train(base_module.training)
        as_child(self, "base_module")

    def forward(self, activation: Tensor) -> Tensor:
        """`[..., f] -> [..., d]`."""
        output: Tensor = self.base_module(activation)
        if self.memory is None:
            return output
        return self.memory(activation, output)  # type: ignore[no-any-return]

    @property
    def weight(self) -> Any:
        """The base layer's weight, for code that looks at a projection's dtype or device."""
        return self.base_module.weight

    @property
    def bias(self) -> Any:
        return self.base_module.bias

    def extra_repr(self) -> str:
        """peft shows it where it refuses this layer."""
        return "# the side memory of wise: put adapters for this module on before wise.wrap"

    def device(self) -> torch.device:
        """Where this layer runs."""
        return execution_device(self.base_module)


def execution_device(module: nn.Module) -> torch.device:
    """Where `module` runs, also while accelerate keeps its weights elsewhere (and `meta` parameters here)."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # accelerate chains them
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(module.parameters()).device


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


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]], *, before: bool = False) -> Iterator[None]:
    """For the length of a `with` block each module has its forward hook; with `before`, its forward pre-hook."""
    handles: list[RemovableHandle] = []

    def remove() -> None:
        for handle in handles:
            handle.remove()

    with restoring(remove):
        for module, hook in hooks:
            handles.append(module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook))
        yield


@contextmanager
def restoring(restore: Callable[[], None]) -> Iterator[None]:
    """Calls `restore` when the block ends, and once more if an interrupt arrives in it, which is raised afterwards."""
    try:
        try:
            yield
        finally:
            restore()
    except BaseException:
        restore()
        raise


def completed(step: Callable[[], None]) -> None:
    """Runs `step`, from its beginning once more if an interrupt arrives within it, which is raised afterwards."""
    try:
        step()
    except BaseException:
        step()
        raise
