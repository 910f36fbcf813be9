"""Where a side memory stands in a model: the module to whose output it adds.

No table of architectures: the model is asked. A few tokens are run through one block, and the modules of the block that
work token by token are tried from the last to the first: a vector is added to the output of a module, and the right
place is one where the same vector, up to a factor, comes out of the block. That is the value projection of a dense
feed-forward layer, the whole feed-forward layer where it holds packed experts, and the norm behind it where one
follows. A user may name another module with `WiseConfig(target_module="...{i}...")`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from wise.config import WiseConfig
from wise.errors import ConfigError, UnsupportedModelError
from wise.memory.modules import activation_of, evaluating, execution_device, first_tensor, hooked, with_first
from wise.supported import NOT_RUN, make_differentiable

TOKENS = 8
"""Tokens that a block is tried with."""
ALIGNED = 0.98
"""Cosine between what is added to a module and what comes out of the block, from which the module is the place."""
EVEN = 0.9
"""Share of the largest of these factors that the smallest must reach: behind a gate it does not."""
MIXED = 0.02
"""Relative change of later tokens from which a module is known to carry information between tokens."""


@dataclass(frozen=True, kw_only=True)
class TargetModule:
    """The module that is wrapped, and where it stands."""

    path: str
    """Dotted path from the model, e.g. `model.layers.4.mlp.down_proj`."""
    blocks: str
    """Dotted path of the list of blocks, e.g. `model.layers`."""
    layer: int
    """Index of the edited block."""
    depth: int
    """Number of blocks."""
    in_features: int
    """f: size of the activation."""
    out_features: int
    """d: size of the block's output."""


LAYER_FRACTION = {"merge": 0.85, "retrieve": 0.85, "hybrid": 0.7}
"""Depth of the edited block where no setting names it: the WISE paper edits block 27 of 32. `hybrid` edits lower, since
its answers are read through the blocks above."""


def locate(model: PreTrainedModel, config: WiseConfig, *, linear: bool = False) -> TargetModule:
    """The module that `config` asks for; it takes one forward pass of a few tokens, up to the edited block.

    linear: the last projection of the feed-forward layer is wanted, whatever norm stands behind it, as editors that
    solve for its weight need it.

    Raises UnsupportedModelError where a model has no such module, and ConfigError where `layer` is not a block of it.
    """
    make_differentiable(model)
    with evaluating(model):
        if config.target_module is not None:
            return _named(model, config, config.target_module)
        blocks_path, blocks = _find_blocks(model)
        layer = _choose_layer(config, len(blocks))
        for i in [layer] if config.layer is not None else sorted(range(len(blocks)), key=lambda i: abs(i - layer)):
            trial = _Trial.of(model, blocks, i)
            inner = trial.last_projection() if linear else trial.place()
            if inner is not None:
                return trial.describe(inner, blocks_path, i, len(blocks))
        candidates = _candidates(model)
    lacks = f"no block of {blocks_path} of this {model.config.model_type} model has a"
    if config.layer is not None:
        lacks = f"block {layer} ({blocks_path}.{layer}) of this {model.config.model_type} model has no"
    part = "linear layer at the end of a feed-forward layer" if linear else "feed-forward layer in its residual stream"
    raise UnsupportedModelError(
        f"{lacks} {part}; choose another layer, or name a module with target_module='path.{{i}}.name'; candidates: "
        f"{candidates}"
    )


def _find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The path and list of the blocks that text runs through: the longest list whose first module is run.

    Raises UnsupportedModelError where there is none.
    """
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not re.search(r"\.\d+\.", f"{path}.")
    }
    run: dict[str, int] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda *_: run.update({path: len(lists[path])})

    with hooked([(module[0], note(path)) for path, module in lists.items()], before=True):
        _run(model)
    if not run:
        raise UnsupportedModelError(
            f"this {model.config.model_type} model runs none of its lists of modules with text "
            f"({', '.join(lists) or 'it has none'}): wise edits a block of a decoder"
        )
    path = max(run, key=lambda path: run[path])
    return path, lists[path]


def _choose_layer(config: WiseConfig, depth: int) -> int:
    if config.layer is None:
        return int(LAYER_FRACTION[config.mode] * depth)
    if config.layer >= depth:
        raise ConfigError(f"layer={config.layer}: this model has {depth} blocks, 0 to {depth - 1}")
    return config.layer


def _named(model: PreTrainedModel, config: WiseConfig, template: str) -> TargetModule:
    blocks_path, _, inner = template.partition(".{i}.")
    blocks = dict(model.named_modules(remove_duplicate=False)).get(blocks_path)
    problem = f"{blocks_path!r} is not a list of blocks"
    if blocks is None:
        problem = f"this {model.config.model_type} model has no module {blocks_path!r}"
    if not isinstance(blocks, nn.ModuleList) or not len(blocks) or not inner:
        raise UnsupportedModelError(f"target_module {template!r}: {problem}; candidates: {_candidates(model)}")
    layer = _choose_layer(config, len(blocks))
    trial = _Trial.of(model, blocks, layer)
    if inner not in trial.calls:
        raise UnsupportedModelError(
            f"{blocks_path}.{layer}.{inner} of this {model.config.model_type} model is not there or does not map every "
            f"token to {trial.width} features once in a forward pass; candidates: {_candidates(model)}"
        )
    return trial.describe(inner, blocks_path, layer, len(blocks))


class _Reached(Exception):
    """Ends a forward pass at the block that was waited for."""


class _Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    features: int
    """f: size of what it was given."""
    output: Tensor


class _Trial:
    """One block and what it was called with, to be run again with changes."""

    def __init__(self, block: nn.Module, width: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """width: of the model, of which a block that keeps several streams side by side gives a multiple."""
        self.block, self.args, self.kwargs = block, args, kwargs
        self.calls: dict[str, _Call] = {}
        """By path within the block, in the order of their ends: modules called once that give a vector per token."""
        several: set[str] = set()
        adapted = tuple(f"{path}." for path, module in block.named_modules() if hasattr(module, "merged_adapters"))
        hooks = [
            (module, self._recorder(path, several))
            for path, module in block.named_modules()
            # One expert of a list is not a feed-forward layer, and a part of one of peft's layers is none of the base.
            if path and not re.search(r"(^|\.)\d+\.", path) and not path.startswith(adapted)
        ]
        with hooked(hooks, named=True):
            self.output = self.run()
        if TOKENS not in self.output.shape[:-1]:
            raise UnsupportedModelError(
                f"a block of this model gives {list(self.output.shape)} for {TOKENS} tokens: it runs other columns "
                "than those of the text, by which wise knows where an answer begins"
            )
        self.width = self.output.shape[-1] if self.output.shape[-1] % width else width
        size = TOKENS * self.width
        whole = {p: c for p, c in self.calls.items() if c.output.shape[-1] == self.width and c.output.numel() == size}
        self.calls = {path: call for path, call in whole.items() if path not in several}

    @classmethod
    def of(cls, model: PreTrainedModel, blocks: nn.ModuleList, layer: int) -> _Trial:
        """Block `layer` in a forward pass of the model, which ends there."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def take(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))
            raise _Reached

        with suppress(_Reached), hooked([(blocks[layer], take)], before=True, named=True):
            _run(model)
        if not calls:
            raise UnsupportedModelError(
                f"block {layer} of this {model.config.model_type} model is not run with text: choose another layer"
            )
        hidden_size = getattr(model.config.get_text_config(), "hidden_size", None)
        width = int(hidden_size or model.get_input_embeddings().weight.shape[-1])  # type: ignore[index]
        return cls(blocks[layer], width, *calls[0])

    @torch.no_grad()
    def run(self) -> Tensor:
        """The output of the block `[..., d]`."""
        args, kwargs = _copied(self.args), _copied(self.kwargs)
        try:
            output = first_tensor(self.block(*args, **kwargs))
        except NOT_RUN as error:
            raise UnsupportedModelError(f"a block of this model cannot be run by itself: {error}") from error
        if output is None:
            raise UnsupportedModelError("a block of this model returns no hidden states: they were expected first")
        return output

    def _recorder(self, path: str, several: set[str]) -> Callable[..., None]:
        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            activation, tensor = activation_of(args, kwargs), first_tensor(output)
            if path in self.calls:
                several.add(path)
            if activation is not None and tensor is not None and tensor.is_floating_point():
                self.calls[path] = _Call(args, kwargs, activation.shape[-1], tensor.detach().clone())

        return record

    def place(self) -> str | None:
        """The module to add to: a projection whose output enters the residual stream as it is, else the last whole part
        that works token by token; else a part behind a feed-forward layer: a convolution, or one that is scaled.
        """
        candidates = list(self._per_token())[::-1]
        linear = [path for path in candidates if _inputs(self.block.get_submodule(path))]
        whole = [path for path in candidates if "." not in path]
        feeds = any(p.ndim > 1 for path in whole for p in self.block.get_submodule(path).parameters())
        later = [path for path in reversed(self.calls) if "." not in path] if feeds else []
        tests: tuple[tuple[list[str], Callable[[str], bool]], ...] = (
            (linear, lambda path: self.passes(path, even=True)),
            (whole, self.passes),
            (later, self.passes),
            (later, self._is_alike),
        )
        return next((path for paths, right in tests for path in paths if right(path)), None)

    def last_projection(self) -> str | None:
        """The last linear layer of the parts that work token by token."""
        linear = [path for path in self._per_token() if _inputs(self.block.get_submodule(path))]
        return next((p for p in reversed(linear) if hasattr(self.block.get_submodule(p), "weight")), None)

    def _per_token(self) -> Iterator[str]:
        """Modules of those parts of the block that carry nothing from one token to another."""
        alone: dict[str, bool] = {}
        for path in self.calls:
            part = path.partition(".")[0]
            if part not in alone:
                alone[part] = part in self.calls and not self._mixes(part)
            if alone[part]:
                yield path

    @torch.no_grad()
    def _mixes(self, part: str) -> bool:
        """Whether another first token changes what a part of the block makes of the later ones."""
        call = self.calls[part]

        def changed(value: Any) -> Any:
            if not (isinstance(value, Tensor) and value.is_floating_point() and value.numel() == TOKENS * self.width):
                return value
            rows = value.clone().view(TOKENS, self.width)
            rows[0] = rows.flip(0)[0] * 3 + rows.std() * _direction(self.width, rows)
            return rows.view(value.shape)

        module = self.block.get_submodule(part)
        args, kwargs = tuple(map(changed, call.args)), {name: changed(value) for name, value in call.kwargs.items()}
        output = first_tensor(module(*args, **kwargs))
        if output is None:
            return True
        before, after = (t.reshape(TOKENS, -1)[1:].float() for t in (call.output, output))
        return bool((after - before).norm(dim=-1).max() > MIXED * before.norm(dim=-1).max())

    def passes(self, path: str, *, even: bool = False) -> bool:
        """Whether what is added to the output of a module comes out of the block; `even`, by one factor everywhere."""
        change = self._change(path)
        sizes = change.norm(dim=-1)
        along = cosine_similarity(change, _direction(self.width, change), dim=-1)
        aligned = bool((along > ALIGNED).any(0).all())  # in one of the streams, where a block has several
        return aligned and (not even or bool(sizes.min() > EVEN * sizes.max()))

    def _is_alike(self, path: str) -> bool:
        """Whether it changes what comes out of the block alike at every token, as where each channel is scaled."""
        change = self._change(path)
        return bool((cosine_similarity(change, change[:, :1], dim=-1) > ALIGNED).any(0).all())

    def _change(self, path: str) -> Tensor:
        """`[streams, TOKENS, d]` what comes out of the block of a vector that is added to the output of a module."""
        added = _direction(self.width, self.output) * self.output.float().norm(dim=-1).mean()

        def add(_module: nn.Module, _args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            return output if tensor is None else with_first(output, tensor + added.to(tensor))

        with hooked([(self.block.get_submodule(path), add)]):
            change = self.run().float() - self.output.float()
            # A block may give several streams, in an axis of their own or side by side.
            streams = change.reshape(*change.shape[:-1], -1, self.width)
            tokens = max(axis for axis, size in enumerate(streams.shape[:-1]) if size == TOKENS)
            return streams.movedim(tokens, -2).reshape(-1, TOKENS, self.width)

    def describe(self, inner: str, blocks: str, layer: int, depth: int) -> TargetModule:
        return TargetModule(
            path=f"{blocks}.{layer}.{inner}",
            blocks=blocks,
            layer=layer,
            depth=depth,
            # Under tensor parallelism each rank sees a part of what goes into a linear layer.
            in_features=_inputs(self.block.get_submodule(inner)) or self.calls[inner].features,
            out_features=self.width,
        )


@torch.no_grad()
def _run(model: PreTrainedModel) -> None:
    """A forward pass of a few ordinary tokens. Raises UnsupportedModelError if the model does not run on them alone."""
    # Ids from all over the vocabulary, none of which stands for an image or another special thing.
    named = [pair for config in (model.config, model.config.get_text_config()) for pair in vars(config).items()]
    special = {value for name, value in named if isinstance(value, int) and re.search(r"token_(id|index)$", name)}
    size = int(model.config.get_text_config().vocab_size)
    ids = [i for i in range(1, size, max(1, size // (4 * TOKENS))) if i not in special] or [0]
    tokens = torch.tensor([(ids * TOKENS)[:TOKENS]], dtype=torch.long, device=execution_device(model))
    try:
        model(input_ids=tokens, use_cache=False)
    except NOT_RUN as error:
        name = model.config.model_type
        raise UnsupportedModelError(f"this {name} model does not run on text alone: {error}") from error


def _copied(value: Any) -> Any:
    """The same arguments in tensors of their own, since some blocks work in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    return {name: _copied(one) for name, one in value.items()} if isinstance(value, dict) else value


def _direction(width: int, like: Tensor) -> Tensor:
    """A random unit vector, always the same."""
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    unit: Tensor = vector / vector.norm()
    return unit.to(like.device)


def _inputs(module: nn.Module) -> int | None:
    """f of a linear layer, `nn.Linear` and its kin or transformers' Conv1D; None for any other module."""
    for inner in ("base_module", "base_layer"):  # of a wrapped layer; of one of peft's, or of another editor's
        module = getattr(module, inner, module)
    width = getattr(module, "in_features", getattr(module, "nx", None))
    weight = hasattr(module, "weight") or hasattr(module, "qweight")  # as GPTQ and AWQ pack it
    return width if isinstance(width, int) and weight else None


def _candidates(model: PreTrainedModel) -> str:
    """Modules of the middle block from which what is added comes out of it, `{i}` for the block."""
    blocks_path, blocks = _find_blocks(model)
    trial = _Trial.of(model, blocks, len(blocks) // 2)
    return ", ".join(f"{blocks_path}.{{i}}.{path}" for path in trial.calls if trial.passes(path)) or "none found"
