"""Rows of prompts and targets as a training step reads them: ids, and what the base had cached of the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Cached rows. The context is the prompt without its last token; target positions predict the target."""

    mask: Tensor
    """`[batch, context + targets]` 1 for real tokens: contexts are left-padded, targets right-padded."""
    inputs: Tensor
    """`[batch, targets]` input ids: the prompt's last token, then the target without its last."""
    before: Tensor
    """`[batch, context]` input ids of the context."""
    labels: Tensor
    """`[batch, targets]` the target's ids, -100 where padded."""
    hidden: Tensor
    """`[batch, targets, d]` the input of the edited block."""
    hidden_before: Tensor | None
    """`[batch, context, d]` the same in the context (`UPPER`)."""
    activations: Tensor
    """`[batch, targets, f]` the input of the edited module."""
    outputs: Tensor
    """`[batch, targets, d]` what the edited module gave."""
    context: Tensor
    """`[batch, context, f]` its inputs in the context; meaningless at pads."""
    keys: tuple[Tensor | None, ...]
    """Attention keys of the context, from the edited block up; None without attention. Empty if nothing is cached."""
    values: tuple[Tensor | None, ...]
    states: tuple[tuple[Tensor, ...], ...]
    """Of the same blocks, the states of convolutions and recurrences behind the context."""

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, rows: Tensor) -> Rows:
        """The given rows, in the given order."""

        def chosen(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(chosen, value))
            return None if value is None else value[rows.to(value.device)]

        return Rows(**{name: chosen(value) for name, value in vars(self).items()})


PADDED_BEFORE = ("mask", "before", "hidden_before", "context", "keys", "values")
"""Fields of `Rows` with positions of the context."""
PADDED_BEHIND = ("mask", "inputs", "labels", "hidden", "activations", "outputs")
"""Those with positions of the target."""


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Rows of several runs, contexts padded on the left and targets on the right."""
    context = max(part.context.shape[1] for part in parts)
    targets = max(part.inputs.shape[1] for part in parts)

    def whole(name: str, values: Sequence[Any], axis: int = 1) -> Any:
        """One field, of these values in the parts. axis: of the positions."""
        if values[0] is None:
            return None
        if isinstance(values[0], tuple):  # by layer, and with heads before the positions
            return tuple(whole(name, layer, axis=2) for layer in zip(*values, strict=True))
        padded = []
        for part, tensor in zip(parts, values, strict=True):
            before = context - part.context.shape[1] if name in PADDED_BEFORE else 0
            behind = targets - part.inputs.shape[1] if name in PADDED_BEHIND else 0
            sides = [0, 0] * (tensor.ndim - 1 - axis) + [before, behind]
            padded.append(pad(tensor, sides, value=-100 if name == "labels" else 0) if before or behind else tensor)
        return torch.cat(padded)

    return Rows(**{name: whole(name, [getattr(part, name) for part in parts]) for name in vars(parts[0])})


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether the cache of a model holds states of convolutions or recurrences."""
    try:
        return any(hasattr(layer, "conv_states") for layer in DynamicCache(config=model.config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):  # a configuration that tells nothing of its layers
        return False


def cached_columns(layer: Any, name: str, length: int) -> Tensor | None:
    """The first `length` columns of the keys or values of a layer of a cache; None where it has none."""
    tensor = getattr(layer, name, None)
    return tensor[:, :, :length].clone() if isinstance(tensor, Tensor) else None


def states_of(layer: Any) -> tuple[Tensor, ...]:
    """Copies of the states of convolutions and recurrences in a layer of a cache."""
    states = (*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values())
    return tuple(state.clone() for state in states if state is not None)


def restore_states(layer: Any, states: tuple[Tensor, ...]) -> None:
    """Puts copied states into a fresh layer of a cache. What is computed from them is not kept: a training step runs
    once, and a state that was written over could not be differentiated."""
    count = layer.number_of_states
    convolved, recurrent = states[: min(count, len(states))], states[min(count, len(states)) :]
    for i, state in enumerate(convolved):
        layer.conv_states[i], layer.conv_kernel_size[i] = state, state.shape[-1]
        layer.is_conv_states_initialized[i] = layer.has_previous_state[i] = True
    for i, state in enumerate(recurrent):
        layer.recurrent_states[i], layer.is_recurrent_states_initialized[i] = state, True
    layer.dtype, layer.device = states[0].dtype, states[0].device
    layer.update_conv_state = lambda new, state_idx=0, **_: torch.cat([layer.conv_states[state_idx], new], dim=-1)
    layer.update_recurrent_state = lambda new, state_idx=0, **_: new
