"""Runs a model with noise on some tokens, and with parts of one run put into another.

Everything is done by hooks for the length of one `with` block; the model is the very same afterwards, whatever
happened. All rows of a run are the same prompt, so nothing is padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wise.errors import UnsupportedModelError
from wise.lab.locate.sites import KINDS, Sites
from wise.memory.modules import execution_device, first_tensor, hooked, with_first


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """What is added to the input embeddings of some tokens."""

    start: int
    """The first of these tokens."""
    values: Tensor
    """`[rows, tokens, e]`"""

    def select(self, rows: Tensor) -> Noise:
        return Noise(start=self.start, values=self.values[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    logits: Tensor
    """`[rows, vocabulary]` float32, behind the last token."""
    outputs: dict[str, list[Tensor]]
    """Kind -> per layer `[rows, tokens, d]`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """Values put in the place of what a module gives; row, token and value of the same number belong together."""

    kind: str
    layer: int
    rows: Tensor
    """`[n]`"""
    tokens: Tensor
    """`[n]`"""
    values: Tensor
    """`[n, d]`"""


class Runner:
    """Runs one model. Use it within `evaluating(model)`."""

    def __init__(self, model: PreTrainedModel, sites: Sites) -> None:
        self.model = model
        self.sites = sites
        self.device = execution_device(model)
        self._last_only = "logits_to_keep" in inspect.signature(model.forward).parameters

    def logits(self, ids: Sequence[int], *, last: int) -> Tensor:
        """Logits `[last, vocabulary]` float32 behind each of the last tokens of a prompt; nothing else is kept."""
        return self._forward(ids, 1, None, last)[0]

    def record(self, ids: Sequence[int], noise: Noise | None = None) -> Run:
        """Runs a prompt, once per row of `noise` or once without, and keeps what every place gave.

        Raises UnsupportedModelError where a place is never reached, or more than once.
        """
        rows = 1 if noise is None else len(noise.values)
        layers = range(self.sites.depth)
        outputs_at: dict[tuple[str, int], list[Tensor]] = {(kind, layer): [] for kind in KINDS for layer in layers}
        with hooked((self.sites.module(*place), partial(_take, states)) for place, states in outputs_at.items()):
            logits = self._forward(ids, rows, noise)[:, -1]
        for (kind, layer), states in outputs_at.items():
            if len(states) != 1:
                raise UnsupportedModelError(
                    f"{kind} of layer {layer} was computed {len(states)} times in one forward, once was expected; "
                    "tracing cannot follow this model"
                )
        outputs = {kind: [outputs_at[kind, i][0].view(rows, len(ids), -1) for i in layers] for kind in KINDS}
        return Run(logits=logits, outputs=outputs)

    def patched(self, ids: Sequence[int], noise: Noise, patches: Sequence[Patch] = ()) -> Tensor:
        """Logits `[rows, vocabulary]` behind the last token of a run with noise and with `patches` put in."""
        rows = len(noise.values)
        by_place: dict[tuple[str, int], list[Patch]] = {}
        for patch in patches:
            by_place.setdefault((patch.kind, patch.layer), []).append(patch)
        putters = ((self.sites.module(*place), partial(_put, here, rows, len(ids))) for place, here in by_place.items())
        with hooked(putters):
            return self._forward(ids, rows, noise)[:, -1]

    @torch.no_grad()
    def _forward(self, ids: Sequence[int], rows: int, noise: Noise | None, last: int = 1) -> Tensor:
        """Logits `[rows, last, vocabulary]` float32, behind the last tokens."""
        tokens = torch.tensor([list(ids)], device=self.device).expand(rows, -1)
        only = {"logits_to_keep": last} if self._last_only else {}
        with hooked([] if noise is None else [(self.sites.embedding, partial(_disturb, noise))]):
            logits: Tensor = self.model(input_ids=tokens, use_cache=False, **only).logits
        return logits[:, -last:].float()


def _take(outputs: list[Tensor], _module: nn.Module, _args: Any, output: Any) -> None:
    """A copy is taken: Falcon adds what attention gives into the feed-forward output, in place."""
    state = first_tensor(output)
    if state is not None:
        outputs.append(state.clone(memory_format=torch.contiguous_format))


def _disturb(noise: Noise, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    noisy = output.clone()
    noisy[:, noise.start : noise.start + noise.values.shape[1]] += noise.values.to(noisy)
    return noisy


def _put(patches: Sequence[Patch], rows: int, tokens: int, _module: nn.Module, _args: Any, output: Any) -> Any:
    tensor = first_tensor(output)
    if tensor is None:
        return output
    changed = tensor.reshape(rows, tokens, -1).clone()  # OPT's feed-forward layer runs on rows put end to end
    for patch in patches:
        changed[patch.rows, patch.tokens] = patch.values.to(changed)
    return with_first(output, changed.reshape(tensor.shape))
