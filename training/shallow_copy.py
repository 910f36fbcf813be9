"""Copies of a model that share its parameters: only the modules down to one place are copied, and can be replaced."""

from __future__ import annotations

import copy
from functools import partial
from types import MethodType
from typing import Any


def copied_along(model: Any, path: str) -> Any:
    """Copies `model` and each module down to `path`; returns the new root."""
    root = node = shallow_copy(model)
    for name in path.split("."):
        node._modules[name] = shallow_copy(node._modules[name])
        node = node._modules[name]
    return root


def shallow_copy(module: Any) -> Any:
    """A shallow copy: own table of children, shared parameters and buffers. A forward of its own is bound to it."""
    clone = copy.copy(module)
    clone.__dict__["_modules"] = dict(module._modules)
    bound = clone.__dict__.get("forward")
    bound = getattr(bound, "_torchdynamo_orig_callable", bound)  # what is trained is not compiled
    if isinstance(bound, MethodType):
        clone.__dict__["forward"] = MethodType(bound.__func__, clone)
    if isinstance(bound, partial):  # accelerate's hook
        clone.__dict__["forward"] = partial(bound.func, clone)
        clone.__dict__["_old_forward"] = MethodType(type(clone).forward, clone)
    return clone
