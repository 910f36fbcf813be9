"""A linear map whose weight is chosen per token, as one operator that `torch.compile` does not look into.

Each token takes exactly one of k weights, so the work is that of a single dense layer however many
slots there are. Which slots occur is data, hence a Python loop, hence an operator of its own: traced
inline it would break `fullgraph=True`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


@torch.library.custom_op("wise::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """`out[t] = weights[group[t]] @ x[t]`.

    x: `[n, f]`; weights: `[k, d, f]`; group: `[n]` integers in [0, k). Returns `[n, d]`.
    """
    if len(x) == 1:  # the decode step of one request: no gather
        return linear(x, weights[int(group)])
    out = x.new_empty(len(x), weights.shape[1])
    for k in group.unique().tolist():
        rows = (group == k).nonzero().squeeze(1)
        out[rows] = linear(x[rows], weights[k])
    return out


@grouped_linear.register_fake
def _(x: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weights.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    _, weights, group = inputs
    ctx.save_for_backward(weights, group)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """Only `x` gets a gradient: the memory of a wrapped model is frozen."""
    weights, group = ctx.saved_tensors
    return grouped_linear(grad.contiguous(), weights.transpose(1, 2), group), None, None


grouped_linear.register_autograd(_backward, setup_context=_save)
