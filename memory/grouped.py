"""A linear map whose weight is chosen per token, as one operator that `torch.compile` does not look into.

Each token takes at most one of k weights, so the work is at most that of a single dense layer however
many slots there are. Which slots occur is data, hence a Python loop, hence an operator of its own: traced
inline it would break `fullgraph=True`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

NO_SLOT = -1
"""In place of a slot's number: this token asks no slot."""


def grouped_linear(x: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """`out[t] = weights[group[t]] @ x[t]`, and zero where the group is `NO_SLOT`.

    x: `[n, f]`; weights: `[k, d, f]`; group: `[n]` integers in [-1, k). Returns `[n, d]`.
    """
    if torch.compiler.is_compiling():
        out: Tensor = _operator(x, weights, group)
        return out
    return _by_group(x, weights, group)  # an operator's dispatch costs more than a decode step's product


def _by_group(x: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    if len(x) == 1:  # the decode step of one request: nothing to gather
        only = int(group)
        none = x.new_zeros(1, weights.shape[1])
        return (
            none if only == NO_SLOT else linear(x, weights[only]).to(x.dtype)
        )  # autocast may have changed it
    out = x.new_zeros(len(x), weights.shape[1])
    for k in group.unique().tolist():  # type: ignore[no-untyped-call]
        if k != NO_SLOT:
            rows = (group == k).nonzero().squeeze(1)
            out.index_copy_(0, rows, linear(x[rows], weights[k]).to(x.dtype))
    return out


@torch.library.custom_op("wise::grouped_linear", mutates_args=())
def _operator(x: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    return _by_group(x, weights, group)


@_operator.register_fake
def _(x: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weights.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    _, weights, group = inputs
    ctx.save_for_backward(weights, group)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """Only `x` gets a gradient: the memory of a wrapped model is frozen."""
    weights, group = ctx.saved_tensors
    return _operator(grad.contiguous(), weights.transpose(1, 2), group), None, None


_operator.register_autograd(_backward, setup_context=_save)
