"""Running a model and looking at its modules: hooks, evaluation mode, and the device of a module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Wrapper(nn.Module):
    """A module around another one, in whose place it stands. Modules and tensors of the inner one are found on it."""

    base_module: nn.Module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self._modules.get("base_module")
            if inner is None or name == "base_layer":  # by which peft knows layers of its own
                raise
            for members in (inner._modules, inner._parameters, inner._buffers):
                if name in members:
                    return members[name]
            raise


def execution_device(module: nn.Module) -> torch.device:
    """Where `module` runs, also while accelerate keeps its weights elsewhere (and `meta` parameters here)."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # accelerate chains them
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(module.parameters()).device


def release_weights(model: nn.Module) -> None:
    """Frees the parameters of a model that is not run any more. It keeps its modules, their devices and its dtype."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))


def first_tensor(value: Any) -> Tensor | None:
    """What a module computes: its output, or the first of several outputs. None where that is no tensor."""
    value = value[0] if isinstance(value, tuple | list) and value else value
    return value if isinstance(value, Tensor) else None


def with_first(value: Any, tensor: Tensor) -> Any:
    """`value` with `tensor` in the place of what `first_tensor` gives."""
    return type(value)((tensor, *value[1:])) if isinstance(value, tuple | list) else tensor


def activation_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first tensor that a module is called with: the hidden states that it maps."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


@contextmanager
def hooked(
    hooks: Iterable[tuple[nn.Module, Callable[..., Any]]], *, before: bool = False, named: bool = False
) -> Iterator[None]:
    """For the length of a `with` block each module has its forward hook; with `before`, its forward pre-hook; with
    `named`, one that takes named arguments too."""
    handles: list[RemovableHandle] = []

    def remove() -> None:
        for handle in handles:
            handle.remove()

    with restoring(remove):
        for module, hook in hooks:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.append(register(hook, with_kwargs=named))
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


@contextmanager
def recorded_inputs(modules: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Tensor]]:
    """The first tensor given to each module in this thread's last forward pass of a `with` block, by the keys of
    `modules`."""
    inputs: dict[Any, Tensor] = {}
    this_thread = threading.get_ident()

    def recorder(key: Any) -> Callable[..., None]:
        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == this_thread:
                inputs[key] = activation_of(args, kwargs)  # type: ignore[assignment]

        return record

    with hooked([(module, recorder(key)) for key, module in modules.items()], before=True, named=True):
        yield inputs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within a `with` block, and gradients, whatever the work around it has set; then as before.

    Several threads may be in such a block of one model: it is as before when the last of them leaves it.
    """
    block = object()

    def restore() -> None:
        with _lock:
            blocks, modes = _evaluated.get(model, ({block}, []))
            blocks.discard(block)
            if not blocks:
                for module, training in modes:
                    module.training = training
                _evaluated.pop(model, None)

    with restoring(restore), torch.inference_mode(False), torch.enable_grad():
        with _lock:
            modes = [(module, module.training) for module in model.modules()]
            _evaluated.setdefault(model, (set(), modes))[0].add(block)
        model.eval()
        yield


_lock = threading.Lock()
_evaluated: WeakKeyDictionary[nn.Module, tuple[set[object], list[tuple[nn.Module, bool]]]] = WeakKeyDictionary()
"""The models that are in blocks of `evaluating`: those blocks, and the mode of each module before them."""


def inside_adapters(model: nn.Module, path: str) -> str:
    """The place of the base's own module. Where peft has put adapters on it, that is inside of peft's layer, which
    stays where peft looks for it."""
    while hasattr(model.get_submodule(path), "base_layer"):
        path += ".base_layer"
    return path


def put_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
