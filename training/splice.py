"""The spliced model: the base from the edited block up, run on cached states.

An edit changes nothing below the edited block, and nothing above it before the first position at which it is active.
The base is therefore run once per row. The hidden states that enter the edited block at the positions that predict the
target are cached, and from that block up the attention keys and values of the context. A training step then runs the
upper blocks over the few target positions alone.

A shallow copy of the model does the work; its blocks below the edited one pass the cached state on. Parameters are
shared and the user's model is not changed. Whatever an architecture does around its blocks (masks, rotary angles,
soft-capping, its head) stays its own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from wise.architectures import ValueProjection
from wise.memory.layer import SideMemoryLayer, execution_device
from wise.training.generation import left_pad

CACHED = 48
"""The most rows that are run at once."""
MUCH_LONGER = 1.3
"""A row longer than another by this factor does not share its run, since padding costs as much as tokens."""
WORTH_SHARING = 8
"""Length from which a common prefix of rows is run once for all."""

Delta = Callable[[Tensor], Tensor]
"""`[batch, targets, f] -> [batch, targets, d]`: what is added to the value projection."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Cached rows. The context is the prompt without its last token; target positions predict the target."""

    mask: Tensor
    """`[batch, context + targets]` 1 for real tokens: contexts are left-padded, targets right-padded."""
    inputs: Tensor
    """`[batch, targets]` input ids: the prompt's last token, then the target without its last."""
    labels: Tensor
    """`[batch, targets]` the target's ids, -100 where padded."""
    hidden: Tensor
    """`[batch, targets, d]` the input of the edited block."""
    activations: Tensor
    """`[batch, targets, f]` the input of the value projection."""
    context: Tensor
    """`[batch, context, f]` the same in the context; meaningless at pads."""
    keys: tuple[Tensor, ...]
    """Attention keys of the context, from the edited block up."""
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, rows: Tensor) -> Rows:
        """The given rows, in the given order."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device)]

        return Rows(
            mask=chosen(self.mask),
            inputs=chosen(self.inputs),
            labels=chosen(self.labels),
            hidden=chosen(self.hidden),
            activations=chosen(self.activations),
            context=chosen(self.context),
            keys=tuple(map(chosen, self.keys)),
            values=tuple(map(chosen, self.values)),
        )


class SplicedModel:
    """Two shallow copies of a base: one that fills `Rows`, one that runs the upper blocks on them."""

    def __init__(self, model: PreTrainedModel, projection: ValueProjection) -> None:
        self.projection = projection
        self.device = execution_device(model)
        """Where ids go in and logits come out."""
        self._full = _copy_along(model, f"{projection.blocks}.{projection.layer}")
        self._full_tap = _tap(self._full, projection)
        self.layer_device = execution_device(self._full_tap.base_layer)
        """Where the edited layer runs, in a model that is spread over several devices."""
        self.upper: Any = _copy_along(model, f"{projection.blocks}.{projection.layer}")
        """The copy whose blocks below the edited one pass the cached state on."""
        self._upper_tap = _tap(self.upper, projection)
        self._inner_name = model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
        taken = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in taken
        self._cache_name = "cache" if "cache" in taken else "past_key_values"  # before transformers 5.24
        self._returns_tuple = False
        self._spliced: Tensor | None = None
        self._wanted: Tensor | None = None
        self._spy = _Spy()
        self._install()

    @torch.no_grad()
    def cache(self, rows: Sequence[tuple[list[int], list[int]]]) -> Rows:
        """Runs the base once over `(prompt ids, target ids)` rows; neither part may be empty.

        Rows of similar length share a run, and their common prefix is run once.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
        parts: list[list[int]] = []
        for i in order:
            length = len(rows[i][0]) + len(rows[i][1])
            first = rows[parts[-1][0]] if parts else rows[i]
            if not parts or len(parts[-1]) == CACHED or length > MUCH_LONGER * (len(first[0]) + len(first[1])):
                parts.append([])
            parts[-1].append(i)
        found = [self._cache([rows[i] for i in part]) for part in parts]
        whole = found[0] if len(found) == 1 else _joined(found)
        return whole.select(torch.tensor([i for part in parts for i in part]).argsort())

    def _cache(self, rows: Sequence[tuple[list[int], list[int]]]) -> Rows:
        width = max(len(target) for _, target in rows)
        shared = len(commonprefix([prompt[:-1] for prompt, _ in rows])) if len(rows) > 1 else 0
        shared = shared if shared >= WORTH_SHARING else 0
        context, left = left_pad([prompt[shared:-1] for prompt, _ in rows], device=self.device)
        inputs = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        for i, (prompt, target) in enumerate(rows):
            inputs[i, : len(target)] = torch.tensor([prompt[-1], *target[:-1]])
            labels[i, : len(target)] = torch.tensor(target)
        inputs, labels = inputs.to(self.device), labels.to(self.device)
        cache = DynamicCache()
        inner = self._full.get_submodule(self._inner_name)
        begun = self._begin(inner, cache, rows[0][0][:shared], len(rows))
        mask = torch.cat([left.new_ones(len(rows), shared), left, (labels != -100).long()], dim=1)
        inner(
            input_ids=torch.cat([context, inputs], dim=1),
            attention_mask=mask,
            use_cache=True,
            **{self._cache_name: cache},
            **self._position_ids(mask, shared),
        )
        seen = shared + context.shape[1]
        above: list[Any] = [cache.layers[i] for i in range(self.projection.layer, self.projection.depth)]
        activation = self._take_activation(mask[:, shared:])
        hidden = self._spy.take()
        return Rows(
            mask=mask,
            inputs=inputs,
            labels=labels,
            hidden=hidden[:, context.shape[1] :].clone(),
            activations=activation[:, context.shape[1] :].clone(),
            context=torch.cat([*begun, activation[:, : context.shape[1]]], dim=1),
            keys=tuple(layer.keys[:, :, :seen].clone() for layer in above),
            values=tuple(layer.values[:, :, :seen].clone() for layer in above),
        )

    def _begin(self, inner: Any, cache: DynamicCache, ids: list[int], rows: int) -> list[Tensor]:
        """Runs the common prefix of all rows, if there is one; the activations there `[rows, shared, f]`."""
        if not ids:
            return []
        tokens = torch.tensor([ids], device=self.device)
        mask = torch.ones_like(tokens)
        inner(
            input_ids=tokens,
            attention_mask=mask,
            use_cache=True,
            **{self._cache_name: cache},
            **self._position_ids(mask, 0),
        )
        cache.batch_repeat_interleave(rows)
        return [self._take_activation(mask).expand(rows, -1, -1)]

    @torch.no_grad()
    def observe(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """The base alone on rows of ids, left-padded.

        Returns the input of the value projection at every token `[batch, longest, f]`, the mask `[batch, longest]`, and
        the greedy next token of each row `[batch]`.
        """
        ids, mask = left_pad(rows, device=self.device)
        positions = self._position_ids(mask, 0)
        out = self._full(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1, **positions)
        return self._take_activation(mask), mask, out.logits[:, -1].argmax(-1)

    @torch.no_grad()
    def value_projection(self, activation: Tensor) -> Tensor:
        """The base's own `W a`: `[n, f] -> [n, d]`."""
        output: Tensor = self._full_tap.base_layer(activation)
        return output

    def _take_activation(self, mask: Tensor) -> Tensor:
        """The activation of the last run of the full copy, in the shape of `mask` (OPT flattens its rows)."""
        activation = self._full_tap.seen
        if activation is None:
            raise RuntimeError("the value projection was not run: is it part of the model's forward?")
        self._full_tap.seen = None
        return activation.view(*mask.shape, -1)

    def logits(self, rows: Rows, delta: Delta | None = None) -> Tensor:
        """`[batch, targets, vocabulary]` of the base with `delta` added at the target positions."""
        self._upper_tap.delta = delta and partial(_by_row, delta, rows.activations.shape)
        self._spliced = rows.hidden
        past = _past(rows, self.projection.layer)
        seen = rows.mask.shape[1] - rows.inputs.shape[1]
        try:
            out = self.upper(
                input_ids=rows.inputs,
                attention_mask=rows.mask,
                use_cache=True,
                **{self._cache_name: past},
                **self._position_ids(rows.mask, seen),
            )
        finally:
            self._upper_tap.delta = self._spliced = None
        logits: Tensor = out.logits
        return logits

    def labelled_logits(self, rows: Rows, delta: Delta | None = None) -> Tensor:
        """The same at the positions with a label, row after row, `[labelled, vocabulary]`.

        The head is run nowhere else: in a small model it is most of the computation.
        """
        wanted = rows.labels != -100
        self._wanted = wanted
        try:
            logits = self.logits(rows, delta)
        finally:
            self._wanted = None
        return logits[0] if self._selects else logits[wanted]

    def _position_ids(self, mask: Tensor, start: int) -> dict[str, Tensor]:
        if not self._positions:
            return {}
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, start:]}

    def _install(self) -> None:
        """Records the input of the edited block in the full copy, and replaces the lower blocks of the upper copy."""
        layer = self.projection.layer
        blocks = self._full.get_submodule(self.projection.blocks)
        self._spy.forward = blocks[layer].forward
        blocks[layer].__dict__["forward"] = self._spy
        if layer:
            below = _copy(blocks[layer - 1])
            below.__dict__["forward"] = self._remember_type(below.forward)
            blocks._modules[str(layer - 1)] = below
        head = self.upper.get_output_embeddings()
        name = next((name for name, module in self.upper._modules.items() if module is head is not None), None)
        self._selects = name is not None
        """The head is a module of the model's top level, so its input can be cut to the labelled positions."""
        if name is not None:
            own = _copy(head)
            own.__dict__["forward"] = partial(self._head, own.forward)
            self.upper._modules[name] = own
        stubs = self.upper.get_submodule(self.projection.blocks)
        for i in range(layer):
            stub = _copy(stubs[i])  # a copy, since some models read attributes off a block before calling it
            stub.__dict__["forward"] = self._hand_on
            stubs._modules[str(i)] = stub

    def _head(self, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        return forward(hidden if self._wanted is None else hidden[self._wanted.to(hidden.device)][None])

    def _remember_type(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            self._returns_tuple = isinstance(out, tuple)
            return out

        return run

    def _hand_on(self, *_args: Any, **_kwargs: Any) -> Any:
        return (self._spliced, None) if self._returns_tuple else self._spliced


class _Spy:
    """Records the hidden state that enters a block, then runs the block."""

    hidden: Tensor
    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.hidden = args[0] if args else kwargs["hidden_states"]
        return self.forward(*args, **kwargs)

    def take(self) -> Tensor:
        hidden = self.hidden
        del self.hidden
        return hidden


class _Tap(nn.Module):
    """Takes the place of the value projection: records its input, and adds what is being trained."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.delta: Delta | None = None
        self.seen: Tensor | None = None

    def forward(self, activation: Tensor) -> Tensor:
        output: Tensor = self.base_layer(activation)
        if self.delta is None:
            self.seen = activation.detach()
            return output
        delta = self.delta(activation)
        return output + delta.to(output.dtype).view_as(output)


def _by_row(delta: Delta, shape: torch.Size, activation: Tensor) -> Tensor:
    return delta(activation.view(shape))  # OPT flattens its rows


def _joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several runs, contexts padded on the left and targets on the right."""
    context = max(part.context.shape[1] for part in parts)
    targets = max(part.inputs.shape[1] for part in parts)

    def put(tensor: Tensor, axis: int, left: int, right: int, value: float = 0) -> Tensor:
        return pad(tensor, [0, 0] * (tensor.ndim - 1 - axis) + [left, right], value=value)

    def column(name: str, value: float = 0) -> Tensor:
        own = [getattr(part, name) for part in parts]
        return torch.cat([put(t, 1, 0, targets - t.shape[1], value) for t in own])

    def states(name: str) -> tuple[Tensor, ...]:
        own = [[put(t, 2, context - t.shape[2], 0) for t in getattr(part, name)] for part in parts]
        return tuple(torch.cat(layer) for layer in zip(*own, strict=True))

    masks = []
    for part in parts:
        before, behind = context - part.context.shape[1], targets - part.inputs.shape[1]
        masks.append(put(part.mask, 1, before, behind))
    return Rows(
        mask=torch.cat(masks),
        inputs=column("inputs"),
        labels=column("labels", -100),
        hidden=column("hidden"),
        activations=column("activations"),
        context=torch.cat([put(part.context, 1, context - part.context.shape[1], 0) for part in parts]),
        keys=states("keys"),
        values=states("values"),
    )


def _past(rows: Rows, layer: int) -> DynamicCache:
    """A fresh cache that holds the context from the edited block up, and its length alone below."""
    cache = DynamicCache()
    length = rows.keys[0].shape[-2]
    empty = rows.keys[0].new_zeros(1).expand(len(rows), 1, length, 1)
    for i in range(layer):
        cache.update(empty, empty, i)
    for i, (keys, values) in enumerate(zip(rows.keys, rows.values, strict=True)):
        cache.update(keys, values, layer + i)
    return cache


def _tap(model: nn.Module, projection: ValueProjection) -> _Tap:
    parent_path, _, name = projection.path.rpartition(".")
    parent = _copy_along(model, parent_path, inside=f"{projection.blocks}.{projection.layer}")
    layer = parent._modules[name]
    tap = _Tap(layer.base_layer if isinstance(layer, SideMemoryLayer) else layer)
    parent._modules[name] = tap
    return tap


def _copy_along(model: Any, path: str, inside: str = "") -> Any:
    """Copies `model` and each module down to `path`; returns the new root (or the new end, below `inside`).

    With `inside`, the modules down to that path are already copies and are walked, not copied again.
    """
    root = model if inside else _copy(model)
    node = root
    walked: list[str] = []
    for name in path.split("."):
        walked.append(name)
        child = node._modules[name]
        if not (inside + ".").startswith(".".join(walked) + "."):
            child = _copy(child)
            node._modules[name] = child
        node = child
    return node if inside else root


def _copy(module: Any) -> Any:
    """A shallow copy: own table of children, shared parameters and buffers."""
    clone = copy.copy(module)
    clone.__dict__["_modules"] = dict(module._modules)
    bound = clone.__dict__.get("forward")
    compiled = getattr(bound, "_torchdynamo_orig_callable", None)
    if compiled is not None:  # it would run the original module: what is trained is not compiled
        clone.__dict__["forward"] = MethodType(compiled.__func__, clone)
    if isinstance(bound, partial):  # accelerate's hook, bound to the original module: bind it to the copy
        clone.__dict__["forward"] = partial(bound.func, clone)
        clone.__dict__["_old_forward"] = MethodType(type(clone).forward, clone)
    return clone
