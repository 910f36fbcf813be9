"""Edits as neurons: what a slot adds goes through a few inner products with the activation.

One neuron is a key and a value, as in any feed-forward layer (Geva et al. 2021, arXiv 2012.14913); a slot has a few at
each place at which it speaks. Only tokens at which a slot speaks are looked at, so the work does not grow with the
tokens of a prompt nor with the edits. Which tokens those are is data, hence an operator that `torch.compile` does not
look into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu

from wise.memory.grouped import NO_SLOT
from wise.memory.side_memory import KeyedBank


class NeuronBank(KeyedBank):
    """The neurons of all slots, one after the other."""

    keys: Tensor
    """`[neurons, f]`"""
    neurons: Tensor
    """`[keys, most]` the neurons with which each edit key speaks; NO_SLOT behind the last."""

    def __init__(self, keys: Tensor, weights: Tensor, neurons: Tensor, places: Tensor, *, rectified: bool) -> None:
        """weights `[neurons, d]`: what each adds. rectified: only as far as its inner product is positive."""
        super().__init__(weights, places)
        self.keys = keys
        self.neurons = neurons
        self.rectified = rectified

    def of_keys(self, key: Tensor, activation: Tensor) -> Tensor:
        how = _operator if torch.compiler.is_compiling() else spoken
        x = activation.to(self.weights.dtype)
        out: Tensor = how(x, key, self.neurons, self.keys, self.weights, self.rectified)
        return out


def spoken(x: Tensor, key: Tensor, neurons: Tensor, keys: Tensor, values: Tensor, rectified: bool) -> Tensor:
    """`out[t] = sum over the neurons of key[t] of (k . x[t]) v`, zero where the key is `NO_SLOT`.

    x `[n, f]`, key `[n]`, neurons `[keys, most]`, keys `[neurons, f]`, values `[neurons, d]` -> `[n, d]`.
    """
    tokens = (key != NO_SLOT).nonzero()[:, 0]
    chosen = neurons[key[tokens]]
    active = _products(x[tokens], keys, chosen)
    active = relu(active) if rectified else active
    added = torch.bmm(active[:, None].to(values.dtype), values[chosen.clamp(min=0)])[:, 0].to(values.dtype)
    return values.new_zeros(len(x), values.shape[1]).index_copy(0, tokens, added)


def _products(x: Tensor, vectors: Tensor, chosen: Tensor) -> Tensor:
    """`[m, most]` inner products of each token with its neurons' vectors, zero behind the last neuron."""
    found = torch.bmm(vectors[chosen.clamp(min=0)], x[:, :, None])[:, :, 0]
    return found.masked_fill(chosen == NO_SLOT, 0.0)


@torch.library.custom_op("wise::spoken", mutates_args=())
def _operator(x: Tensor, key: Tensor, neurons: Tensor, keys: Tensor, values: Tensor, rectified: bool) -> Tensor:
    return spoken(x, key, neurons, keys, values, rectified)


@_operator.register_fake
def _(x: Tensor, key: Tensor, neurons: Tensor, keys: Tensor, values: Tensor, rectified: bool) -> Tensor:
    return values.new_empty(len(x), values.shape[1])


@torch.library.custom_op("wise::spoken_backward", mutates_args=())
def _slope(
    grad: Tensor, x: Tensor, key: Tensor, neurons: Tensor, keys: Tensor, values: Tensor, rectified: bool
) -> Tensor:
    """The gradient by `x`, written out: autograd does not look into an operator."""
    tokens = (key != NO_SLOT).nonzero()[:, 0]
    chosen = neurons[key[tokens]]
    slopes = _products(grad[tokens], values, chosen)
    if rectified:
        slopes = slopes * (_products(x[tokens], keys, chosen) > 0)
    found = torch.bmm(slopes[:, None].to(keys.dtype), keys[chosen.clamp(min=0)])[:, 0].to(x.dtype)
    return torch.zeros_like(x).index_copy(0, tokens, found)


@_slope.register_fake
def _(grad: Tensor, x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, key, neurons, keys, values, ctx.rectified = inputs
    ctx.save_for_backward(x, key, neurons, keys, values)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    """Only `x` gets a gradient: the memory of a wrapped model is frozen."""
    return _slope(grad, *ctx.saved_tensors, ctx.rectified), None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_save)
