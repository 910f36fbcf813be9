"""KnowledgeEditor: a recurrent network reads an edit and predicts how to gate and shift the gradient of each matrix.

De Cao, Aziz and Titov 2021, "Editing Factual Knowledge in Language Models", arXiv 2104.08164. The prompt, the answer so
far and the wanted answer, as the base embeds them, go through a bidirectional LSTM; from its last states a feed-forward
network makes, for each edited matrix `[d, f]`, vectors a, b of size d, g, h of size f, and a scalar eta:

    Delta W = sigmoid(eta) * (A * gradient + B),    A = softmax(a) g^T,    B = softmax(b) h^T

with `*` entry by entry. Since A and B have rank one, the update has at most one rank more than the gradient, and is
kept as factors: `(softmax(a) * delta_t) (g * u_t)^T` per token, and the pair softmax(b), h.

Training minimises the loss on equivalent wordings under the constraint that the KL from the base on unrelated prompts
is at most a margin. The constraint is relaxed with a multiplier that rises while it is broken and falls while it holds.
Edits are applied one after the other, each at the weights that the last one left.

Departures. The base's own embeddings are read and not trained on. Softmax shares 1 out between d entries: A is
multiplied by d times `rate` here, and g begins near -1 and h near 0, so that training begins about at a plain gradient
step whatever the model's width; the paper begins anywhere and trains for days. The unrelated prompt is one of
the record's own neighbours where it has any, and the KL is taken along the base's own greedy answer; the paper samples
others' prompts and sums over a beam. The margin stands still, the multiplier goes by plain ascent. Edited are the same
matrices as with MEND; the paper edits nearly all of the model. Training is short, so what it does not learn in minutes
is not learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from wise.edits import Edit
from wise.lab.editors.base import Applied
from wise.lab.editors.context import EditingContext
from wise.lab.editors.factors import Factors, sizes
from wise.lab.editors.hypernetwork import EditQuery, Example, HyperEditor, HyperSettings
from wise.lab.editors.settings import Count, Nonnegative, Positive
from wise.training.generation import right_pad

FIRST = 0.01
"""Standard deviation of the last layer's weights before training."""


@dataclass(frozen=True, kw_only=True)
class KnowledgeEditorSettings(HyperSettings):
    search = {
        "margin": (0.01, 0.1, 0.3),
        "learning_rate": (3e-4, 1e-3, 3e-3),
        "blocks": (1, 3),
    }

    condition: Count = 128
    """Size of the LSTM's states, each way, and of what is made of them."""
    hidden: Count = 128
    """Size of the layer between that and the vectors."""
    rate: Positive = 0.1
    """What the gated gradient is multiplied by; half of it is the rate of the gradient step that training begins at."""
    margin: Positive = 0.1
    """Mean KL per token, in nats, that unrelated prompts may move by."""
    multiplier: Nonnegative = 1.0
    """What the constraint's multiplier begins at."""
    multiplier_rate: Positive = 0.1
    """What the multiplier rises by in a step in which the KL is one nat above the margin."""


class Network(nn.Module):
    """Reads edits, and gives the vectors for every matrix."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], embedding: int, condition: int, hidden: int) -> None:
        """shapes: path of a layer -> (f, d). embedding: size of what is read per token."""
        super().__init__()
        self.shapes = dict(shapes)
        self.lstm = nn.LSTM(embedding, condition, batch_first=True, bidirectional=True)
        self.condition = nn.Sequential(nn.Linear(2 * condition, condition), nn.Tanh())
        self.heads = nn.ModuleList()
        for f, d in self.shapes.values():
            last = nn.Linear(hidden, 2 * (d + f) + 1)
            nn.init.normal_(last.weight, std=FIRST)
            nn.init.zeros_(last.bias)
            nn.init.constant_(last.bias[2 * d : 2 * d + f], -1.0)  # g
            self.heads.append(nn.Sequential(nn.Linear(condition, hidden), nn.Tanh(), last))

    def forward(self, read: Tensor, lengths: Sequence[int]) -> dict[str, Gate]:
        """read: `[edits, longest, embedding]`."""
        packed = pack_padded_sequence(read, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        condition = self.condition(torch.cat([last[0], last[1]], -1))
        results = {}
        for (path, (f, d)), head in zip(self.shapes.items(), self.heads, strict=True):
            a, b, g, h, eta = head(condition).split([d, d, f, f, 1], -1)
            results[path] = Gate(a=a.softmax(-1), b=b.softmax(-1), g=g, h=h, strength=eta.sigmoid())
        return results


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """What is done to the gradient of one matrix, per edit."""

    a: Tensor
    """`[edits, d]`"""
    b: Tensor
    """`[edits, d]`"""
    g: Tensor
    """`[edits, f]`"""
    h: Tensor
    """`[edits, f]`"""
    strength: Tensor
    """`[edits, 1]` in (0, 1)."""

    def factors(self, u: Tensor, delta: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """`strength * (rate d a g^T * gradient + b h^T)`, of a gradient as factors."""
        rate *= self.a.shape[-1]
        left = torch.cat([rate * self.a[:, None] * delta, self.b[:, None]], 1)
        right = torch.cat([self.g[:, None] * u, self.h[:, None]], 1)
        return right, self.strength[..., None] * left


class KnowledgeEditor(HyperEditor[KnowledgeEditorSettings]):
    Config = KnowledgeEditorSettings
    kind = "ke"
    reads_old = True

    def __init__(self, context: EditingContext, settings: KnowledgeEditorSettings) -> None:
        super().__init__(context, settings)
        self.multiplier = settings.multiplier

    def _build(self) -> nn.Module:
        shapes = {path: sizes(module) for path, module in self.linears.items()}
        size = self._embedded([[0]]).shape[-1]
        return Network(shapes, size, self.settings.condition, self.settings.hidden)

    @torch.no_grad()
    def _embedded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """`[rows, longest, embedding]` as the base embeds them, right-padded."""
        ids, _ = right_pad(rows, device=self.context.device)
        result: Tensor = self.model.get_input_embeddings()(ids)
        return result.float().to(self.context.device)

    def gates(self, queries: Sequence[EditQuery]) -> dict[str, Gate]:
        """What the hypernetwork says to edits."""
        between = min(self.encoder.stops)
        rows = [
            [*edit.row[0], between, *(i for i in edit.old if i not in self.encoder.stops), between, *edit.row[1]]
            for edit in queries
        ]
        results: dict[str, Gate] = self.network(self._embedded(rows), [len(row) for row in rows])
        return results

    def _update(self, queries: Sequence[EditQuery], gradients: Factors, mask: Tensor) -> Factors:
        gates = self.gates(queries)  # gradients are 0 at pads, and gating leaves them so
        return {path: gates[path].factors(*pair, self.settings.rate) for path, pair in gradients.items()}

    def _begin(self, examples: Sequence[Example]) -> None:
        self.multiplier = self.settings.multiplier

    def _objective(self, edit: Any, locality: Any) -> Any:
        return edit + self.multiplier * (locality - self.settings.margin)

    def _stepped(self, locality: float) -> None:
        risen = self.multiplier + self.settings.multiplier_rate * (locality - self.settings.margin)
        self.multiplier = max(0.0, risen)

    def merit(self, edit: float, locality: float) -> float:
        """A constraint broken by as much again as the margin weighs as much as one nat."""
        return edit + max(0.0, locality - self.settings.margin) / self.settings.margin

    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        for count, edit in enumerate(edits, start=1):
            self._write([edit], lambda _: None)
            progress(count)
        return [Applied()] * len(edits)
