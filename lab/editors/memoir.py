"""MEMOIR: a residual memory beside one layer. Each edit writes to few of its columns, and each prompt reads few.

Wang, Qin, Dimitriadis, Favero and Frossard, "MEMOIR: Lifelong Model Editing with Minimal Overwrite and Informed
Retention for LLMs", NeurIPS 2025, arXiv 2506.07899. Beside the value projection W stands a memory W_m of the same
shape, zero at first:

    y = W a + W_m (mask * a)

The mask is one for a whole prompt (TopHash): the k features of the prompt's mean activation that differ most from their
mean over unrelated prompts, carried by a fixed random permutation to k columns. An edit trains the columns of its own
prompt's mask, and the mask is stored. A prompt is compared with the stored masks: from a share tau of common columns on
it is the best matching edit, or another wording of it, and reads with that edit's mask (informed retention); below it
the memory is silent. What is trained, and how, is as in the released code: gradient descent whose gradient is cut to
norm 1, with weight decay, on the bare prompt and on the prompt behind texts that the base began by itself.

Where this departs from the paper and its code:

* The released code measures one row at a time and gets the end of its prompt as an argument. Here each row of a batch
  has its own mask, and a hook on the model finds the prompts: in a forward without cached tokens they are all the
  tokens that the attention mask keeps, and forwards with those tokens' cache keep those masks. A caller that feeds in
  more than a prompt says so with `reading`.
* k is a share of the features: the paper's 4096 of 14336.
* The mean over unrelated prompts is in a chat one over questions as turns, and else one over records that are not
  edited, or over the corpus; the released code ships a file for each base. Its prompts must have the form of those that
  are asked: otherwise what all of one form have in common stands out, and all of them match.
* Masks are compared from `tau` on as the code does; its value there differs by data set.
* A prompt that is edited anew takes the place of its old mask. The released code keeps only one of two equal masks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from wise.edits import Edit
from wise.errors import ConfigError
from wise.lab.editors.base import Applied, LayerEditor, Replacement, WholePrompts
from wise.lab.editors.context import EditingContext, mean_loss, padded_rows
from wise.lab.editors.settings import Bounds, Count, CountOrZero, LayerSettings, Positive, Share

UNRELATED = 100
"""Prompts, or rows of the corpus, that a feature's usual activation is taken over."""
UNRELATED_TOKENS = 16
"""Of a row of the corpus: about as long as a prompt."""
DECAY = 1e-5
CLIP = 1.0
QUIET, FITTED = 1e-4, 0.02
"""Training ends where the loss, in nats per token, changed by no more than this and is no more than that."""
SILENT = -1
"""Index in the place of a matching edit's, where none matches."""


@dataclass(frozen=True, kw_only=True)
class MemoirSettings(LayerSettings):
    """The released code's for LLaMA-3, in shares where it gives numbers; but tau, which is 0.4 there."""

    search = {
        "tau": (0.4, 0.5, 0.6, 0.7),
        "learning_rate": (1.0, 3.0, 10.0),
        "layer_fraction": (0.35, 0.5, 0.7, 0.85),
    }

    active: Share = 4096 / 14336
    """Share of the columns that an edit writes to."""
    tau: Annotated[float, Bounds(high=1)] = 0.6
    """Share of common columns from which a prompt is taken for an edit's."""
    learning_rate: Positive = 1.0
    """Of gradient descent on the memory."""
    steps: Count = 30
    contexts: CountOrZero = 10
    """Texts that an edit's prompt is also trained behind."""


class TopHash:
    """Which columns belong to a prompt: a permutation of the features that stand out."""

    def __init__(self, features: int, count: int, seed: int) -> None:
        self.count = count
        self.permutation = torch.randperm(features, generator=torch.Generator().manual_seed(seed))

    def masks(self, features: Tensor) -> Tensor:
        """`[rows, f]` -> `[rows, f]` bool with k ones each. Of features that stand out alike, the first ones count."""
        top = features.abs().argsort(dim=-1, descending=True, stable=True)[:, : self.count]
        columns = self.permutation.to(top.device)[top]
        return torch.zeros_like(features, dtype=torch.bool).scatter_(1, columns, True)


class MemoryLayer(Replacement):
    """The base's layer and the residual memory. `prompts` must be set before each forward."""

    def __init__(self, context: EditingContext, settings: MemoirSettings) -> None:
        super().__init__(context, settings)
        f, d = self.in_features, self.out_features
        self.tau = settings.tau
        self.hash = TopHash(f, max(1, round(settings.active * f)), settings.seed)
        self.memory = torch.zeros(d, f, device=context.device)
        """`[d, f]` float32: W_m."""
        self.masks = torch.zeros(0, f, dtype=torch.bool, device=context.device)
        """`[edits, f]`."""
        self.usual = torch.zeros(f, dtype=torch.float64, device=context.device)
        """`[f]`: mean activation over unrelated prompts."""
        self.prompts: Tensor | None = None
        """`[rows, tokens]` bool: the tokens of the prompts that are being read; None goes on with those read last."""
        self.matched: Tensor | None = None
        """`[rows]`: index of the edit that each of those prompts is taken for, or SILENT."""
        self.writing: tuple[Tensor, Tensor] | None = None
        """While an edit is trained: the columns `[k]` it may change, and what stands in them `[d, k]`."""

    @property
    def empty(self) -> bool:
        return not len(self.masks) and self.writing is None

    def changed(self, activation: Tensor, output: Tensor) -> Tensor:
        if self.writing is not None:
            columns, part = self.writing
            return output + linear(activation[..., columns].float(), part).to(output.dtype)
        if self.prompts is not None:
            self.matched = self.match(prompt_means(activation, self.prompts))
        matched = self.matched
        if matched is None or activation.numel() % (len(matched) * self.in_features):
            raise ConfigError(
                "a forward goes on with cached tokens of prompts that the memory did not see; read the prompts and "
                "what follows them with one cache, through the model itself"
            )
        if bool((matched == SILENT).all()):
            return output
        rows = activation.reshape(len(matched), -1, self.in_features)
        sparse = rows.float() * self.masks[matched.clamp(min=0)][:, None]
        added = linear(sparse, self.memory).to(output.dtype)
        base = output.reshape(added.shape)
        return torch.where((matched != SILENT)[:, None, None], base + added, base).view(output.shape)

    def match(self, means: Tensor) -> Tensor:
        """Mean activations of prompts `[rows, f]` -> the edit that each is taken for, or SILENT, `[rows]`."""
        shared = self.hash.masks(means - self.usual).float() @ self.masks.float().T
        best = shared.max(-1)
        return torch.where(best.values >= self.tau * self.hash.count, best.indices, SILENT)


def prompt_means(activation: Tensor, prompts: Tensor) -> Tensor:
    """Of activations `[rows, tokens, f]`, or `[rows * tokens, f]`, the mean over each row's prompt: `[rows, f]`.

    float64, so that it does not depend on how many tokens beside the prompt a row has.
    """
    rows = activation.reshape(*prompts.shape, activation.shape[-1]).double()
    is_prompt = prompts[..., None].to(rows.device)
    return torch.where(is_prompt, rows, 0).sum(1) / is_prompt.sum(1).clamp(min=1)


class Memoir(LayerEditor[MemoirSettings], WholePrompts):
    Config = MemoirSettings
    layer: MemoryLayer

    def __init__(self, context: EditingContext, settings: MemoirSettings) -> None:
        super().__init__(context, settings, MemoryLayer(context, settings))
        self._lengths: list[int] | None = None
        self._prefixes: list[str] = []
        self._hook = context.model.register_forward_pre_hook(self._announce, with_kwargs=True)

    @contextmanager
    def reading(self, lengths: Sequence[int]) -> Iterator[None]:
        self._lengths = list(lengths)
        try:
            yield
        finally:
            self._lengths = None

    def _announce(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tells the layer which tokens of the coming forward are prompts."""
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # the latter before transformers 5.24
        if cache is not None and int(cache.get_seq_length()):
            self.layer.prompts = None
            return
        self.layer.matched = None
        tokens = next(
            t for t in (kwargs.get("input_ids"), *args[:1], kwargs.get("inputs_embeds")) if isinstance(t, Tensor)
        )
        rows, width = tokens.shape[:2]
        mask = kwargs.get("attention_mask")
        if self._lengths is not None:
            if len(self._lengths) != rows:
                raise ConfigError(f"reading() was given {len(self._lengths)} lengths, and {rows} rows are read")
            lengths = torch.tensor(self._lengths, device=tokens.device)
            self.layer.prompts = torch.arange(width, device=tokens.device) < lengths[:, None]
        elif isinstance(mask, Tensor) and mask.ndim == 2:
            self.layer.prompts = mask[:, -width:].bool()
        else:
            self.layer.prompts = torch.ones(rows, width, dtype=torch.bool, device=tokens.device)

    def unwrap(self) -> Any:
        self._hook.remove()
        return super().unwrap()

    def _prepare(self) -> None:
        unrelated = self.context.unrelated or [record.edit.prompt for record in self.context.training]
        prompts = list(unrelated[:UNRELATED])
        about: dict[str, Any] = {"path": self.layer.path, "prompts": prompts}
        if not prompts:
            about |= {"corpus": self.context.corpus_digest(), "seed": self.settings.seed}
        result = self.context.cached("memoir", about, lambda: {"usual": self._usual(prompts)})
        self.layer.usual = result["usual"].to(self.layer.usual)
        self._prefixes = self.context.beginnings(self.settings.contexts, seed=self.settings.seed)

    def _usual(self, prompts: Sequence[str]) -> Tensor:
        """`[f]` float64: the mean over unrelated prompts of their mean activations."""
        rows = [self.encoder.prompt(prompt) for prompt in prompts]
        if not rows:
            tokens = UNRELATED * UNRELATED_TOKENS
            rows = list(self.context.corpus(tokens, length=UNRELATED_TOKENS, seed=self.settings.seed))
        means = []
        for row in rows:
            means.append(self._mean(row))
            self.context.progress("MEMOIR: usual activations", len(means), len(rows))
        return torch.cat(means).mean(0)

    def _mean(self, prompt: Sequence[int]) -> Tensor:
        """`[1, f]` float64."""
        activation, _ = self.layer.layer_io(self.model, prompt)
        return prompt_means(activation, torch.ones(1, len(prompt), dtype=torch.bool))

    def _write(self, edit: Edit) -> Applied:
        layer = self.layer
        prompt, target = self.context.row(edit)
        mask = layer.hash.masks(self._mean(prompt) - layer.usual)
        columns = mask[0].nonzero().squeeze(1)
        behind = [self.context.row(edit, f"{prefix}. {edit.prompt}") for prefix in self._prefixes]
        rows = [(prompt, target), *(row for row in behind if len(row[0]) + len(row[1]) <= self.encoder.context)]
        part, applied = self._trained(columns, padded_rows(rows, self.context.device))
        layer.memory = layer.memory.index_copy(1, columns, part)
        layer.masks = torch.cat([layer.masks[(layer.masks != mask).any(-1)], mask])
        layer.matched = None
        return applied

    @torch.enable_grad()
    def _trained(self, columns: Tensor, rows: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Applied]:
        """What then stands in the columns `[d, k]`, everything else as it was."""
        ids, mask, labels = rows
        part = self.layer.memory[:, columns].requires_grad_()
        optimizer = torch.optim.SGD([part], lr=self.settings.learning_rate, weight_decay=DECAY)
        before, steps = float("inf"), 0
        try:
            self.layer.writing = columns, part
            while True:
                losses = mean_loss(self.model(ids, attention_mask=mask, use_cache=False).logits, labels)
                now = float(losses.detach().mean())
                if (abs(now - before) <= QUIET and now <= FITTED) or steps == self.settings.steps:
                    break
                (part.grad,) = torch.autograd.grad(losses.mean(), [part])
                torch.nn.utils.clip_grad_norm_([part], CLIP)
                optimizer.step()
                before, steps = now, steps + 1
        finally:
            self.layer.writing = None
        return part.detach(), Applied(steps=steps, loss=float(losses[0].detach()))

    @property
    def memory_bytes(self) -> int:
        """The residual memory, whole, the masks and the usual activations; nothing before the first edit."""
        layer = self.layer
        return sum(t.nbytes for t in (layer.memory, layer.masks, layer.usual)) if len(layer.masks) else 0

    @property
    def state(self) -> Any:
        return self.layer.memory, self.layer.masks

    def restore(self, state: Any) -> None:
        self.layer.memory, self.layer.masks = state
        self.layer.matched = None
