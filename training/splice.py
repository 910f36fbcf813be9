"""The spliced model: the base from the edited block up, run on cached states.

An edit changes nothing below the edited block, and nothing above it before the first position at which it is active.
The base is therefore run once per row, and a training step runs no more of it than it must:

* `CACHED`: the upper blocks over the target positions alone, on what their caches hold of the context: attention keys
  and values, and the states of convolutions and recurrences.
* `UPPER`: the upper blocks over the whole row, where their caches hold more than that.
* `WHOLE`: the whole model over the whole row, where blocks also share states with blocks below.
* `ALONE`: the same, and only rows of one length together, where a row that is left-padded has other logits.

Which of them a base allows is tried on two short rows: the first that gives the base's own logits is taken.

Shallow copies of the model do the work; in those for `CACHED` and `UPPER` the blocks below the edited one pass the
cached state on. Parameters are shared and the user's model is not changed. Whatever an architecture does around its
blocks (masks, rotary angles, soft-capping, its head) stays its own.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from os.path import commonprefix
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from wise.architectures import TargetModule
from wise.errors import UnsupportedModelError
from wise.memory.layer import SideMemoryLayer
from wise.memory.modules import Wrapper, activation_of, execution_device, first_tensor, with_first
from wise.training.generation import UNPADDED, between_steps, checking, left_pad
from wise.training.rows import Rows, cached_columns, is_recurrent, join_rows, restore_states, states_of
from wise.training.shallow_copy import copied_along, shallow_copy

logger = logging.getLogger(__name__)

CACHED, UPPER, WHOLE, ALONE = STEPS = ("cached", "upper", "whole", "alone")
"""What a training step runs, from little to all."""
AT_ONCE = 48
"""The most rows that are run at once."""
MUCH_LONGER = 1.3
"""A row longer than another by this factor does not share its run, since padding costs as much as tokens."""
WORTH_SHARING = 8
"""Length from which a common prefix of rows is run once for all."""
TOLERANCE = 1e-3
"""How far float32 logits may be from the base's own, of the largest: what another order of sums makes of them."""
LOW_PRECISION = 0.1
"""The same in half precision, and of a quantized base, whose rounding depends on what else is in a batch."""

Delta = Callable[[Tensor], Tensor]
"""`[batch, targets, f] -> [batch, targets, d]`: what is added to the edited module's output."""


class Observation(NamedTuple):
    """What is seen of the base at rows of ids."""

    activations: Tensor
    """`[batch, longest, f]` the input of the edited module."""
    outputs: Tensor
    """`[batch, longest, d]` its output."""
    mask: Tensor
    """`[batch, longest]` 1 for real tokens."""
    next: Tensor
    """`[batch]` the greedy next token of each row."""


class SplicedModel:
    """Two shallow copies of a base: one that fills `Rows`, one that takes training steps on them."""

    def __init__(self, model: PreTrainedModel, target_module: TargetModule) -> None:
        """Raises UnsupportedModelError where the logits of left-padded rows are not those of each row alone."""
        self.target_module = target_module
        self._model = model
        self.device = execution_device(model)
        """Where ids go in and logits come out."""
        self._full, self._full_tap = _tapped(model, target_module)
        self.layer_device = execution_device(model.get_submodule(f"{target_module.blocks}.{target_module.layer}"))
        """Where the edited layer runs, in a model that is spread over several devices."""
        self.upper, self._upper_tap = _tapped(model, target_module)
        """The copy whose blocks below the edited one pass the cached state on."""
        self._inner_name = model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
        parameters = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # before transformers 5.24
        self._returns_tuple = False
        self._spliced: Tensor | None = None
        self._labelled: Tensor | None = None
        self._entered: Tensor | None = None
        """What entered the edited block in the last run of the full copy."""
        self._keeps_logits = "logits_to_keep" in parameters
        self._selects = False
        """The head is a module of the model's top level, so its input can be cut to the labelled positions."""
        self.steps = CACHED
        """What a training step runs: one of `STEPS`."""
        self.no_gradient = ""
        """Why the base cannot be differentiated on this device, though it can be served."""
        self._recurrent = is_recurrent(model)
        blocks = self._full.get_submodule(target_module.blocks)
        edited = blocks[target_module.layer]
        edited.__dict__["forward"] = partial(self._enter, edited.forward)
        if target_module.layer:
            below = shallow_copy(blocks[target_module.layer - 1])
            below.__dict__["forward"] = partial(self._remember_type, below.forward)
            blocks._modules[str(target_module.layer - 1)] = below
        self._install_head()
        self._lower = dict(self.upper.get_submodule(target_module.blocks)._modules)
        with checking(None):  # what a check raises would be taken for an error of the architecture
            self._choose_steps()

    @torch.no_grad()
    def _choose_steps(self) -> None:
        samples = [([11, 7, 5, 8, 6], [9, 4, 10]), ([12, 5, 9], [6, 7])]
        size = int(self._full.config.get_text_config().vocab_size)
        samples = [([i % size for i in prompt], [i % size for i in target]) for prompt, target in samples]
        wanted = [self._plain(prompt, target) for prompt, target in samples]
        exact = not getattr(self._model, "is_quantized", False)
        tolerance = TOLERANCE if exact and wanted[0].dtype == torch.float32 else LOW_PRECISION
        for steps in STEPS:
            self.use(steps)
            try:
                rows = self.cache(samples)
                logits = self.logits(rows)
            except Exception as error:  # whatever an architecture raises where its cache is another
                logger.debug("training steps on %r states: %s: %s", steps, type(error).__name__, error)
                continue
            pairs = [(got[: len(right)].float(), right.float()) for got, right in zip(logits, wanted, strict=True)]
            apart = max(float((got - right).abs().max() / right.abs().max()) for got, right in pairs)
            if apart <= tolerance:
                self._check_gradient(rows)
                if steps == ALONE:
                    UNPADDED[id(self._model.config)] = self._model.config
                return
            logger.debug("training steps on %r states: logits differ by %.2g", steps, apart)
        raise UnsupportedModelError(
            f"this {self._full.config.model_type} model gives other logits where a prompt and its answer are "
            "run in steps than in one run, so edits cannot be fitted on it"
        )

    @torch.enable_grad()
    def _check_gradient(self, rows: Rows) -> None:
        """Raises UnsupportedModelError where none reaches what is added."""
        added = torch.zeros(self.target_module.out_features, device=rows.activations.device, requires_grad=True)
        try:
            loss = self.logits(rows, lambda a: added.expand(*a.shape[:2], -1)).float().square().mean()
        except NotImplementedError as error:
            self.no_gradient = str(error)
            return
        gradient = torch.autograd.grad(loss, added, allow_unused=True)[0] if loss.requires_grad else None
        if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
            raise UnsupportedModelError(
                f"no gradient reaches {self.target_module.path} of this {self._full.config.model_type} model, so edits "
                "cannot be fitted on it"
            )

    def _plain(self, prompt: list[int], target: list[int]) -> Tensor:
        """`[targets, vocabulary]` of the base alone."""
        ids = torch.tensor([[*prompt, *target[:-1]]], device=self.device)
        positions = self._position_ids(torch.ones_like(ids), 0)
        logits: Tensor = self._full(input_ids=ids, use_cache=False, **positions).logits[0, len(prompt) - 1 :]
        self._full_tap.observation = self._entered = None
        return logits

    def use(self, steps: str) -> None:
        """Has training steps run more or less of the model: one of `STEPS`."""
        self.steps = steps
        blocks = self.upper.get_submodule(self.target_module.blocks)
        for i in range(self.target_module.layer):
            stub = self._lower[str(i)]
            if steps in (CACHED, UPPER):
                stub = shallow_copy(stub)  # a copy, since some models read attributes off a block before calling it
                stub.__dict__["forward"] = self._hand_on
            blocks._modules[str(i)] = stub

    @torch.no_grad()
    def cache(self, rows: Sequence[tuple[list[int], list[int]]]) -> Rows:
        """Runs the base once over `(prompt ids, target ids)` rows; neither part may be empty.

        Rows of similar length share a run, and their common prefix is run once.
        """
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]) + len(rows[i][1]), len(rows[i][0])))
        parts: list[list[int]] = []
        for i in order:
            length = len(rows[i][0]) + len(rows[i][1])
            first = rows[parts[-1][0]] if parts else rows[i]
            longer = length > MUCH_LONGER * (len(first[0]) + len(first[1]))
            padded = self.steps == ALONE and len(rows[i][0]) != len(first[0])
            if not parts or len(parts[-1]) == AT_ONCE or longer or padded:
                parts.append([])
            parts[-1].append(i)
        # A state is begun by a context; where a prompt has one token alone there is none.
        cached = self.steps == CACHED and not (self._recurrent and any(len(prompt) == 1 for prompt, _ in rows))
        caches = []
        for part in parts:
            between_steps()
            caches.append(self._cache([rows[i] for i in part], cached=cached))
        whole = caches[0] if len(caches) == 1 else join_rows(caches)
        return whole.select(torch.tensor([i for part in parts for i in part]).argsort())

    def _cache(self, rows: Sequence[tuple[list[int], list[int]]], *, cached: bool) -> Rows:
        width = max(len(target) for _, target in rows)
        cache = self._empty_cache() if cached else None
        shared = 0 if cache is None or self._recurrent else len(commonprefix([prompt[:-1] for prompt, _ in rows]))
        shared = shared if len(rows) > 1 and shared >= WORTH_SHARING else 0
        context, padding = left_pad([prompt[shared:-1] for prompt, _ in rows], device=self.device)
        inputs = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        for i, (prompt, target) in enumerate(rows):
            inputs[i, : len(target)] = torch.tensor([prompt[-1], *target[:-1]])
            labels[i, : len(target)] = torch.tensor(target)
        inputs, labels = inputs.to(self.device), labels.to(self.device)
        mask = torch.cat([padding.new_ones(len(rows), shared), padding, (labels != -100).long()], dim=1)
        prefix = torch.tensor([rows[0][0][:shared]], dtype=torch.long, device=self.device).expand(len(rows), -1)
        row_tensors = {"mask": mask, "inputs": inputs, "labels": labels, "before": torch.cat([prefix, context], dim=1)}
        if cache is None:
            return self._run_whole(row_tensors)
        shared_cache = self._begin(cache, rows[0][0][:shared], len(rows))
        seen, upper = shared + context.shape[1], range(self.target_module.layer, self.target_module.depth)
        states: list[tuple[Tensor, ...]] = [() for _ in upper]
        if self._recurrent:  # a state cannot be cut, so the context is run by itself
            self._run_inner(cache, context, mask[:, :seen], 0)
            states = [states_of(cache.layers[i]) for i in upper]
            activation, *_ = self._take_seen(context)
            self._run_inner(cache, inputs, mask, seen)
            last, output, hidden = self._take_seen(inputs)
            activation = torch.cat([activation, last], dim=1)
        else:
            self._run_inner(cache, torch.cat([context, inputs], dim=1), mask, shared)
            activation, output, hidden = self._take_seen(mask[:, shared:])
        return Rows(
            **row_tensors,
            hidden=hidden[:, -width:].clone(),
            hidden_before=None,
            activations=activation[:, context.shape[1] :].clone(),
            outputs=output[:, -width:].clone(),
            context=torch.cat([*shared_cache, activation[:, : context.shape[1]]], dim=1),
            keys=tuple(cached_columns(cache.layers[i], "keys", seen) for i in upper),
            values=tuple(cached_columns(cache.layers[i], "values", seen) for i in upper),
            states=tuple(states),
        )

    def _empty_cache(self) -> DynamicCache:
        """The base's own kind of cache, in which sliding attention keeps all that it has seen."""
        cache = DynamicCache(config=self._full.config) if self._recurrent else DynamicCache()
        for i, layer in enumerate(cache.layers):
            if not hasattr(layer, "conv_states"):
                cache.layers[i] = DynamicLayer()  # type: ignore[no-untyped-call]
        return cache

    def _run_inner(self, cache: DynamicCache | None, ids: Tensor, mask: Tensor, start: int) -> None:
        """The full copy, without its head, on `ids` behind `start` cached columns."""
        past = {} if cache is None else {self._cache_name: cache}
        inner, positions = self._full.get_submodule(self._inner_name), self._position_ids(mask, start)
        inner(input_ids=ids, attention_mask=mask, use_cache=cache is not None, **past, **positions)

    def _run_whole(self, own: dict[str, Tensor]) -> Rows:
        """Rows without a cache. own: their ids, labels and mask."""
        mask, context = own["mask"], own["before"].shape[1]
        self._run_inner(None, torch.cat([own["before"], own["inputs"]], dim=1), mask, 0)
        activation, output, hidden = self._take_seen(mask)
        if self.steps in (WHOLE, ALONE):  # where nothing is passed on, whatever its shape
            hidden = activation[..., :0]
        return Rows(
            **own,
            hidden=hidden[:, context:].clone(),
            hidden_before=hidden[:, :context].clone(),
            activations=activation[:, context:].clone(),
            outputs=output[:, context:].clone(),
            context=activation[:, :context].clone(),
            keys=(),
            values=(),
            states=(),
        )

    def _begin(self, cache: DynamicCache, ids: list[int], rows: int) -> list[Tensor]:
        """Runs the common prefix of all rows, if there is one; the activations there `[rows, shared, f]`."""
        if not ids:
            return []
        tokens = torch.tensor([ids], device=self.device)
        mask = torch.ones_like(tokens)
        self._run_inner(cache, tokens, mask, 0)
        cache.batch_repeat_interleave(rows)
        return [self._take_seen(mask)[0].expand(rows, -1, -1)]

    @torch.no_grad()
    def observe(self, rows: Sequence[Sequence[int]]) -> Observation:
        """The base alone on rows of ids, left-padded."""
        if self.steps == ALONE and len({len(row) for row in rows}) > 1:
            return _side_by_side([self.observe([row]) for row in rows])
        ids, mask = left_pad(rows, device=self.device)
        positions = self._position_ids(mask, 0)
        kept = {"logits_to_keep": 1} if self._keeps_logits else {}
        out = self._full(input_ids=ids, attention_mask=mask, use_cache=False, **kept, **positions)
        activations, outputs, _ = self._take_seen(mask)
        return Observation(activations, outputs, mask, out.logits[:, -1].argmax(-1))

    def _take_seen(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the edited module was given and gave in the last full run, as in `mask`; what entered its block."""
        seen, hidden = self._full_tap.observation, self._entered
        if seen is None or hidden is None:
            raise RuntimeError("the edited module was not run: is it part of the model's forward?")
        self._full_tap.observation = self._entered = None
        activation, output = (tensor.reshape(*mask.shape, -1) for tensor in seen)  # some models flatten rows
        return activation, output, hidden

    def logits(self, rows: Rows, delta: Delta | None = None) -> Tensor:
        """`[batch, targets, vocabulary]` of the base with `delta` added at the target positions."""
        if self.steps == ALONE:
            return self._by_length(rows, None if delta is None else delta(rows.activations))
        return self._logits(rows, delta)

    def _by_length(self, rows: Rows, added: Tensor | None) -> Tensor:
        """The same without padding before a row; `added`: what is added at the target positions of all."""
        contexts, logits_by_length = rows.mask[:, : rows.before.shape[1]].sum(1), list[Tensor]()
        lengths = contexts.unique().tolist()  # type: ignore[no-untyped-call]
        places = [(contexts == length).nonzero()[:, 0] for length in lengths]
        labelled = self._labelled
        try:
            for length, chosen in zip(lengths, places, strict=True):
                self._labelled = None
                same_length = rows.select(chosen)
                same_length = replace(
                    same_length,
                    before=same_length.before[:, -length:] if length else same_length.before[:, :0],
                    mask=same_length.mask[:, rows.before.shape[1] - length :],
                )
                delta = None if added is None else partial(_constant, added[chosen])
                logits_by_length.append(self._logits(same_length, delta))
        finally:
            self._labelled = labelled
        logits = torch.cat(logits_by_length)[torch.cat(places).argsort()]
        return logits if labelled is None or not self._selects else logits[labelled][None]

    def _logits(self, rows: Rows, delta: Delta | None) -> Tensor:
        targets = rows.inputs.shape[1]
        self._upper_tap.delta = delta and partial(_at_targets, delta, rows.inputs.shape)
        self._spliced = rows.hidden
        if rows.hidden_before is not None:
            self._spliced = torch.cat([rows.hidden_before, rows.hidden], dim=1)
        seen = rows.before.shape[1]
        if rows.keys:
            given = {"input_ids": rows.inputs, "use_cache": True, **self._position_ids(rows.mask, seen)}
            given[self._cache_name] = self._past(rows)
        else:
            ids = torch.cat([rows.before, rows.inputs], dim=1)
            given = {"input_ids": ids, "use_cache": False, **self._position_ids(rows.mask, 0)}
            if self._keeps_logits:
                given["logits_to_keep"] = targets
        try:
            out = self.upper(attention_mask=rows.mask, **given)
        finally:
            self._upper_tap.delta = self._spliced = None
        logits: Tensor = out.logits
        return logits if self._selects and self._labelled is not None else logits[:, -targets:]

    def _past(self, rows: Rows) -> DynamicCache:
        """A fresh cache that holds the context from the edited block up, and its length alone below."""
        cache = self._empty_cache()
        length = rows.before.shape[1]
        empty = rows.hidden.new_zeros(1).expand(len(rows), 1, length, 1)
        for i in range(self.target_module.layer):
            if i >= len(cache.layers) or hasattr(cache.layers[i], "update"):
                cache.update(empty, empty, i)
            layer: Any = cache.layers[i] if i < len(cache.layers) else None
            if hasattr(layer, "conv_states"):
                layer.has_previous_state = dict.fromkeys(layer.conv_states, True)
        for i, (keys, values, states) in enumerate(zip(rows.keys, rows.values, rows.states, strict=True)):
            if keys is not None and values is not None:
                cache.update(keys, values, self.target_module.layer + i)
            if states:
                restore_states(cache.layers[self.target_module.layer + i], states)
        return cache

    def labelled_logits(self, rows: Rows, delta: Delta | None = None) -> Tensor:
        """The same at the positions with a label, row after row, `[labelled, vocabulary]`.

        The head is run nowhere else: in a small model it is most of the computation.
        """
        labelled = rows.labels != -100
        self._labelled = labelled
        try:
            logits = self.logits(rows, delta)
        finally:
            self._labelled = None
        return logits[0] if self._selects else logits[labelled]

    def _position_ids(self, mask: Tensor, start: int) -> dict[str, Any]:
        if not self._positions:
            return {}
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, start:]}

    def _install_head(self) -> None:
        """Gives the upper copy a head of its own, where it is a module of the model's top level."""
        head = self.upper.get_output_embeddings()
        name = next((name for name, module in self.upper._modules.items() if module is head is not None), None)
        self._selects = name is not None
        if name is not None:
            own = shallow_copy(head)
            own.__dict__["forward"] = partial(self._head, own.forward)
            self.upper._modules[name] = own

    def _head(self, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        if self._labelled is None:
            return forward(hidden)
        return forward(hidden[:, -self._labelled.shape[1] :][self._labelled.to(hidden.device)][None])

    def _remember_type(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        self._returns_tuple = isinstance(out, tuple | list)
        return out

    def _enter(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._entered = args[0] if args else kwargs["hidden_states"]
        return forward(*args, **kwargs)

    def _hand_on(self, *_args: Any, **_kwargs: Any) -> Any:
        return (self._spliced, None) if self._returns_tuple else self._spliced


class _Tap(Wrapper):
    """Takes the place of the edited module: records its input, and adds what is being trained."""

    def __init__(self, base_module: nn.Module) -> None:
        super().__init__()
        self.base_module = base_module
        self.delta: Delta | None = None
        self.observation: tuple[Tensor, Tensor] | None = None
        """What the module was given and gave."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self.base_module(*args, **kwargs)
        activation, output = activation_of(args, kwargs), first_tensor(given)
        if activation is None or output is None:
            raise RuntimeError("the edited module was called without a tensor, or returned none")
        if self.delta is None:
            self.observation = activation.detach(), output.detach()
            return given
        return with_first(given, output + self.delta(activation).to(output.dtype).view_as(output))


def _at_targets(delta: Delta, shape: torch.Size, activation: Tensor) -> Tensor:
    """`delta` at the target positions and zero before them. shape: `[batch, targets]`; some models flatten rows."""
    batch, targets = shape
    rows = activation.reshape(batch, -1, activation.shape[-1])
    return pad(delta(rows[:, -targets:]), (0, 0, rows.shape[1] - targets, 0))


def _constant(added: Tensor, _activation: Tensor) -> Tensor:
    return added


def _side_by_side(seen: Sequence[Observation]) -> Observation:
    longest = max(one.mask.shape[1] for one in seen)

    def padded(name: str) -> Tensor:
        own = [getattr(one, name) for one in seen]
        return torch.cat([pad(t, [0, 0] * (t.ndim - 2) + [longest - t.shape[1], 0]) for t in own])

    return Observation(padded("activations"), padded("outputs"), padded("mask"), torch.cat([one.next for one in seen]))


def _tapped(model: nn.Module, target_module: TargetModule) -> tuple[Any, _Tap]:
    parent_path, _, name = target_module.path.rpartition(".")
    copied = copied_along(model, parent_path)
    parent = copied.get_submodule(parent_path)
    layer = parent._modules[name]
    tap = parent._modules[name] = _Tap(layer.base_module if isinstance(layer, SideMemoryLayer) else layer)
    return copied, tap
