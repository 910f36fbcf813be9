"""A second device, without hardware: its tensors are kept apart from the CPU's as those of a GPU are.

Within `two_devices()` a tensor on `FAR` holds real numbers. An operation that is given tensors of both devices raises,
as it does with a GPU, except for what torch allows there: numbers (0-d tensors) and indices of the CPU. torch itself
knows `meta` devices, whose tensors hold nothing; here they are given data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = "meta"
aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
TAKE_INDICES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class _FarTensor(Tensor):
    """Stands for `data`, which is on the CPU."""

    data_here: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> _FarTensor:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype, device=FAR
        )

    def __init__(self, data: Tensor) -> None:
        self.data_here = data

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _here(value: Any) -> Any:
    return value.data_here if isinstance(value, _FarTensor) else value


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    far = [value for value in tensors if isinstance(value, _FarTensor)]
    near = [value for value in tensors if not isinstance(value, _FarTensor) and value.ndim]
    if func in TAKE_INDICES:
        near = [value for value in near if all(value is not index for index in args[1])]
    if far and near and func not in MOVES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {FAR} and cpu")
    device = kwargs.get("device")
    result_is_far = bool(far) if device is None else torch.device(device).type == FAR
    if func is aten.copy_.default:
        result_is_far = isinstance(args[0], _FarTensor)
    own = {**kwargs, "device": torch.device("cpu")} if device is not None else kwargs
    out = func(*tree_map(_here, args), **tree_map(_here, own))

    def placed(value: Any) -> Any:
        given = next((each for each in tensors if _here(each) is value), None)  # changed in place
        if given is not None:
            return given
        return _FarTensor(value) if isinstance(value, Tensor) and result_is_far else value

    return tree_map(placed, out)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor([...], device=FAR)` is made on the CPU and moved: torch itself would lose the numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.tolist:
            return func(_here(args[0]))
        if func is Tensor.new_tensor and args[0].device.type == FAR:
            own = {"dtype": args[0].dtype} | kwargs
            return torch.tensor(*args[1:], **own).to(FAR)
        return func(*args, **kwargs)


@contextmanager
def two_devices() -> Iterator[None]:
    with _Literals(), _Operations():
        yield
