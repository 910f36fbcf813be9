"""Matrices stored as sums of outer products, such as the gradients of linear layers.

The gradient of a linear layer's weight `[d, f]` is `sum_t delta_t u_t^T` over tokens: u goes in, delta is the loss's
gradient at what comes out (Mitchell et al. 2022, section 3.1). Kept as factors, every row of a batch can go through
weights of its own at the cost of two thin products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from wise.errors import UnsupportedModelError
from wise.lab.editors.context import EditingContext, TokenRow, mean_loss, padded_rows, row_means
from wise.memory.modules import hooked

Factors = dict[str, tuple[Tensor, Tensor]]
"""Path of a linear layer -> `[edits, n, f]` and `[edits, n, d]`; the matrix `[d, f]` of an edit is the sum over n of
the outer products of the second with the first."""


def edited_linears(context: EditingContext, blocks: int, whole_ffn: bool) -> dict[str, nn.Module]:
    """Path -> module of the value projections of the last blocks; with `whole_ffn`, of the linear layers beside them
    too, which read the feed-forward layer's input. Raises UnsupportedModelError for a weight that is no plain
    matrix."""
    results: dict[str, nn.Module] = {}
    for layer in range(max(0, context.depth - blocks), context.depth):
        path = context.projection(layer).path
        parent, _, attribute = path.rpartition(".")
        for name, module in context.model.get_submodule(parent).named_children():
            if name != attribute and not (whole_ffn and isinstance(module, nn.Linear | Conv1D)):
                continue
            if not isinstance(module, nn.Linear | Conv1D) or not module.weight.is_floating_point():
                raise UnsupportedModelError(
                    f"{parent}.{name} is a {type(module).__name__}: a linear layer whose weights are numbers as they "
                    "are was expected; load the model without quantisation"
                )
            results[f"{parent}.{name}"] = module
    return results


def sizes(module: nn.Module) -> tuple[int, int]:
    """(f, d) of a linear layer, whichever way round its weight lies."""
    first, second = module.get_parameter("weight").shape
    return (first, second) if isinstance(module, Conv1D) else (second, first)


def dense_matrix(u: Tensor, delta: Tensor) -> Tensor:
    """`[edits, n, f]` and `[edits, n, d]` -> `[d, f]`, summed over the edits."""
    return delta.flatten(0, 1).mT @ u.flatten(0, 1)


def weight_gradients(
    model: PreTrainedModel, linears: Mapping[str, nn.Module], rows: Sequence[TokenRow], device: torch.device
) -> tuple[Factors, Tensor]:
    """The gradients of each row's mean loss with respect to the layers' weights, float32, and `[rows, n]` 1 at tokens
    and 0 at pads. Nothing is written into any `grad`."""
    ids, mask, labels = padded_rows(rows, device)
    inputs: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}

    def probed(path: str, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        inputs[path] = args[0].detach()
        probes[path] = torch.zeros_like(out, requires_grad=True)
        return out + probes[path]

    with torch.enable_grad(), hooked((module, partial(probed, path)) for path, module in linears.items()):
        loss = mean_loss(logits(model, ids, mask), labels).sum()
    result = torch.autograd.grad(loss, list(probes.values()))
    deltas = dict(zip(probes, result, strict=True))

    def by_row(tensor: Tensor) -> Tensor:  # some bases flatten rows and places into one
        return tensor.reshape(len(rows), ids.shape[1], -1).float().to(device)

    return {path: (by_row(inputs[path]), by_row(deltas[path])) for path in linears}, mask


@contextmanager
def with_update(linears: Mapping[str, nn.Module], update: Factors) -> Iterator[None]:
    """For the length of a `with` block, row i of a forward goes through the weights plus matrix i of `update`."""

    def changed(path: str, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        u, delta = (factor.to(out.device) for factor in update[path])
        read = args[0].reshape(len(u), -1, u.shape[-1]).float()
        result: Tensor = out + (read @ u.mT @ delta).reshape(out.shape).to(out.dtype)
        return result

    with hooked((module, partial(changed, path)) for path, module in linears.items()):
        yield


def logits(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    result: Tensor = model(ids, attention_mask=mask, use_cache=False).logits
    return result


def divergence(base: Tensor, edited: Tensor, labels: Tensor) -> Tensor:
    """Mean KL, in nats, of the edited model from the base per row, over the places that predict: logits
    `[rows, places, vocabulary]` and labels `[rows, places]`, -100 where nothing is predicted, -> `[rows]`."""
    labelled = labels != -100
    right, result = base[labelled].float().log_softmax(-1), edited[labelled].float().log_softmax(-1)
    return row_means(kl_div(result, right, reduction="none", log_target=True).sum(-1), labelled)
