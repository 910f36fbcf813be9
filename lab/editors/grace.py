"""GRACE: a codebook beside one layer. Its values replace the layer's output near their keys.

Hartvigsen, Sankaranarayanan, Palangi, Kim and Ghassemi, "Aging with GRACE: Lifelong Model Editing with Discrete
Key-Value Adaptors", NeurIPS 2023, arXiv 2211.11031. An entry is a key (the layer's input at the last token of an
edit's prompt), a value (trained on the edit's target) and the radius of a ball around the key. By equation (1) the
layer gives the value of the nearest key where its input falls into that key's ball, and the base's output elsewhere.
How edits come in is Algorithm 1: `Codebook.written`.

Where this departs from the paper and its code:

* The layer decides at every token from that token's input alone. The released code looks at one token, whose place it
  is told from outside (the last of the prompt), so that it knows neither caches nor batches, and then replaces the
  output at the tokens before it. Here nothing needs to be told, and padding, batches and caches change nothing.
* A value stands at one position, the prompt's last. Its own token's output gives the answer's first token; the later
  ones are not in the ball, and read the value through the attention of the blocks above. At the last block there is no
  attention above it, and only the first token changes.
* Two targets are the same label where their token ids are. The released code compares the means of the ids.
* The radius of a new ball is a share of its key's norm and not a number, so that it suits bases of any scale.
* A split never enlarges a ball, as the released code may. Where the two keys are one (the prompt is edited anew) there
  is nothing to split, and the new entry takes the place of the old one; the released code leaves balls of radius 0.
* Values start at the base's output (the released code's "warm"), training ends early, and the value that had the lowest
  loss is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wise.edits import Edit
from wise.lab.editors.base import Applied, LayerEditor, Replacement
from wise.lab.editors.context import EditingContext, mean_loss, padded_rows
from wise.lab.editors.settings import Count, Depth, LayerSettings, Nonnegative, Positive

SAME = 1e-4
"""Share of a key's norm under which another key is the same one but for rounding."""


@dataclass(frozen=True, kw_only=True)
class GraceSettings(LayerSettings):
    """The released code's for language models: 100 steps of 1.0, a block three quarters up; its radius is 1."""

    search = {
        "epsilon": (0.3, 0.5, 0.6, 0.7),
        "learning_rate": (0.1, 0.3, 1.0),
        "layer_fraction": (0.35, 0.5, 0.7, 0.85),
    }

    layer_fraction: Depth = 0.7
    epsilon: Positive = 0.6
    """Radius of a new ball, in units of its key's norm; the paper's eps_init."""
    learning_rate: Positive = 1.0
    """Of Adam, on a value."""
    steps: Count = 100
    """Of Adam for an edit, at most."""
    enough: Nonnegative = 0.01
    """Loss, in nats per token, at which training ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Entries in the order in which they came. Immutable: writing makes a new one."""

    keys: Tensor
    """`[n, f]` float32."""
    values: Tensor
    """`[n, d]` float32."""
    radii: Tensor
    """`[n]` float32; the paper's epsilon."""
    labels: tuple[tuple[int, ...], ...]
    """Token ids of each entry's target."""

    def __len__(self) -> int:
        return len(self.labels)

    def nearest(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """The distance to the nearest key, and its index, of each of `[m, f]`. A row does not depend on the others."""
        distances = torch.cdist(activations.float(), self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        result = distances.min(-1)
        return result.values, result.indices

    def inserted(self, key: Tensor, label: tuple[int, ...], start: Tensor, radius: Tensor) -> tuple[Codebook, int]:
        """Algorithm 1 for one edit: the codebook with room for it, and the entry whose value is to be trained.

        key `[f]`, start `[d]`: the value that a new entry begins with. radius: of a new ball, a scalar.
        """
        book = self._without(key)
        new = replace(
            book,
            keys=torch.cat([book.keys, key[None]]),
            values=torch.cat([book.values, start[None]]),
            radii=torch.cat([book.radii, radius[None]]),
            labels=(*book.labels, label),
        )
        last = len(book)
        if not last:
            return new, last
        distance, index = (outcome[0] for outcome in book.nearest(key[None]))
        i = int(index)
        if distance > book.radii[i] + radius:
            return new, last
        radii = new.radii.clone()
        if book.labels[i] == label:  # expand
            radii[i] = torch.maximum(radii[i], distance)
            return replace(book, radii=radii[:-1]), i
        for entry in (i, last):  # split
            radii[entry] = torch.minimum(radii[entry], distance / 2)
        return replace(new, radii=radii), last

    def _without(self, key: Tensor) -> Codebook:
        """The other entries, where one has this very key."""
        kept = (self.keys - key).norm(dim=-1) > SAME * key.norm()
        labels = tuple(label for label, keep in zip(self.labels, kept.tolist(), strict=True) if keep)
        return Codebook(keys=self.keys[kept], values=self.values[kept], radii=self.radii[kept], labels=labels)

    def with_value(self, index: int, value: Tensor) -> Codebook:
        """The same entries but for one value `[d]`, through which gradients pass."""
        place = torch.tensor([index], device=self.values.device)
        return replace(self, values=self.values.index_copy(0, place, value[None]))


class CodebookLayer(Replacement):
    """Equation (1)."""

    def __init__(self, context: EditingContext, settings: GraceSettings) -> None:
        super().__init__(context, settings)
        keys, values, radii = (
            torch.zeros(0, *size, device=context.device) for size in ((self.in_features,), (self.out_features,), ())
        )
        self.codebook = Codebook(keys=keys, values=values, radii=radii, labels=())

    @property
    def empty(self) -> bool:
        return not len(self.codebook)

    def changed(self, activation: Tensor, output: Tensor) -> Tensor:
        book = self.codebook
        distances, entries = book.nearest(activation.reshape(-1, self.in_features))
        inside = (distances <= book.radii[entries]).view(*activation.shape[:-1], 1)
        return torch.where(inside, book.values[entries].view(output.shape).to(output.dtype), output)


class Grace(LayerEditor[GraceSettings]):
    Config = GraceSettings
    layer: CodebookLayer

    def __init__(self, context: EditingContext, settings: GraceSettings) -> None:
        super().__init__(context, settings, CodebookLayer(context, settings))

    def _write(self, edit: Edit) -> Applied:
        prompt, target = self.context.row(edit)
        key, start = (tokens[-1].float() for tokens in self.layer.layer_io(self.model, prompt))
        radius = self.settings.epsilon * key.norm()
        book, entry = self.layer.codebook.inserted(key, tuple(target), start, radius)
        book, applied = self._trained(book, entry, padded_rows([(prompt, target)], self.context.device))
        self.layer.codebook = book
        return applied

    @torch.enable_grad()
    def _trained(self, book: Codebook, entry: int, row: tuple[Tensor, Tensor, Tensor]) -> tuple[Codebook, Applied]:
        """The codebook with the value of one entry fitted to a target, everything else as it will be served."""
        ids, mask, labels = row
        value = book.values[entry].clone().requires_grad_()
        optimizer = torch.optim.Adam([value], lr=self.settings.learning_rate)
        best, lowest, steps = value.detach().clone(), float("inf"), 0
        before = self.layer.codebook
        try:
            while True:
                self.layer.codebook = book.with_value(entry, value)
                logits = self.model(ids, attention_mask=mask, use_cache=False).logits
                loss = mean_loss(logits, labels)[0]
                if float(loss.detach()) < lowest:
                    best, lowest = value.detach().clone(), float(loss.detach())
                if lowest <= self.settings.enough or steps == self.settings.steps:
                    break
                (value.grad,) = torch.autograd.grad(loss, [value])
                optimizer.step()
                steps += 1
        finally:
            self.layer.codebook = before
        return book.with_value(entry, best), Applied(steps=steps, loss=lowest)

    @property
    def memory_bytes(self) -> int:
        book = self.layer.codebook
        return book.keys.nbytes + book.values.nbytes + book.radii.nbytes

    @property
    def state(self) -> Any:
        return self.layer.codebook

    def restore(self, state: Any) -> None:
        self.layer.codebook = state
