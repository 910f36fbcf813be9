"""The frozen side memory that a wrapped layer consults: the slots' weights and the router over them.

A `SideMemory` is an immutable snapshot. Editing makes a new one and swaps it in with one assignment,
so a forward pass never sees half an edit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from wise.memory.state import MemoryState

NO_SLOT = -1
"""Slot number of a token that no slot is asked for."""


class Resident(nn.Module):
    """Tensors that move with the model and are otherwise left alone.

    They are plain attributes. Buffers would be rounded with the model, and a threshold rounded to bf16 is
    another threshold. And a compiled graph takes the shape of a buffer for granted: each edit, having added
    a key, would compile the model anew, until torch gives up.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(fn(value.new_empty(0)).device))
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


class SlotBank(Resident):
    """The merged weights of all slots, stacked."""

    weights: Tensor
    """`[k, d, f]`: what each slot adds to the value projection."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, activation: Tensor, slot: Tensor | None = None) -> Tensor:
        """delta of the chosen slot per token: `[n, f]`, slot `[n]` (None: there is one slot) -> `[n, d]`."""
        if slot is None:
            return linear(activation, self.weights[0])
        return grouped_linear(activation, self.weights, slot)


class Route(NamedTuple):
    """Which memory answers, per token."""

    slot: Tensor
    """`[n]` the slot considered."""
    score: Tensor
    """`[n]` float32; the gate opens where it reaches the threshold."""
    threshold: Tensor
    """`[n]` float32."""
    delta: Tensor | None
    """`[n, d]` what the slot would add; None if no gate is open and the router skipped computing it."""

    @property
    def open(self) -> Tensor:
        """`[n]` bool: the side memory is added."""
        return self.score >= self.threshold


class Evidence(NamedTuple):
    """How near each token's gate is to opening, for measuring: one number with the same meaning in every router."""

    value: Tensor
    """`[n]` float32, finite; the gate opens exactly where it is at least 1."""
    slot: Tensor
    """`[n]` the slot that would speak, also where the gate stays shut."""
    key: Tensor
    """`[n]` the nearest key, by its place in the router's keys; -1 where the router has none."""

    @classmethod
    def of(cls, route: Route, value: Tensor, slot: Tensor, key: Tensor) -> Evidence:
        """`value` as evidence: kept on the side of 1 on which `route` is, whatever rounding made of it."""
        finite = torch.nan_to_num(value.float())
        under = torch.nextafter(finite.new_tensor(1.0), finite.new_tensor(0.0))
        kept = torch.where(route.open, finite.clamp(min=1), torch.minimum(finite, under))
        return cls(kept, slot, key)


class Router(Resident, ABC):
    """Decides, per token, from its activation or from the ids up to it, whether and which slot speaks.

    To add a router, subclass this; keep to tensor operations (no `.item()`, no branch on a value), so
    that the wrapped model still compiles into one graph.
    """

    @abstractmethod
    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        """activation: `[n, f]`."""

    def evidence(self, activation: Tensor, bank: SlotBank) -> Evidence:
        """activation: `[n, f]`. Not on the path of a token: it may cost more than `forward`.

        Here: the score as a multiple of its threshold, of the slot considered.
        """
        route: Route = self(activation, bank)
        return Evidence.of(route, route.score / route.threshold, route.slot, torch.full_like(route.slot, -1))


class SideMemory(nn.Module):
    """`y + delta` where the gate is open, `y` itself, bit for bit, where it is not."""

    state: MemoryState | None = None
    """What it was assembled from, so that both are swapped in at once; None of one that was put together by hand."""

    def __init__(self, bank: SlotBank, router: Router) -> None:
        super().__init__()
        self.bank = bank
        self.router = router

    def forward(self, activation: Tensor, output: Tensor) -> Tensor:
        """activation `[..., f]` and the base's output `[..., d]` -> `[..., d]`."""
        route = self.route(activation)
        if route.delta is None:
            return output
        delta = route.delta.to(output.dtype).view(output.shape)
        return torch.where(route.open.view(*output.shape[:-1], 1), output + delta, output)

    def route(self, activation: Tensor) -> Route:
        """The route of each token of `[..., f]`, rows flattened to `[n]`."""
        route: Route = self.router(activation.reshape(-1, activation.shape[-1]), self.bank)
        return route

    def evidence(self, activation: Tensor) -> Evidence:
        """The evidence of each token of `[..., f]`, rows flattened to `[n]`."""
        return self.router.evidence(activation.reshape(-1, activation.shape[-1]), self.bank)


def grouped_linear(x: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """A linear map whose weight is chosen per token: `out[t] = weights[group[t]] @ x[t]`, zero where it is `NO_SLOT`.

    One operator that `torch.compile` does not look into. Each token takes at most one of k weights, so the work is at
    most that of one dense layer. Which slots occur is data, hence a Python loop, and traced inline it would break
    `fullgraph=True`.

    x: `[n, f]`; weights: `[k, d, f]`; group: `[n]` integers in [-1, k). Returns `[n, d]`.
    """
    if torch.compiler.is_compiling():
        out: Tensor = _operator(x, weights, group)
        return out
    return _by_group(x, weights, group)  # an operator's dispatch costs more than a decode step's product


def _by_group(x: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    if len(x) == 1:  # the decode step of one request: nothing to gather
        only = int(group)
        # Autocast may have changed the dtype.
        return x.new_zeros(1, weights.shape[1]) if only == NO_SLOT else linear(x, weights[only]).to(x.dtype)
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
