"""MEND: a small network maps the gradient of an edit, token by token, to a change of the weights.

Mitchell, Lin, Bosselut, Finn and Manning 2022, "Fast Model Editing at Scale", arXiv 2110.11309. Of a linear layer l the
gradient is `sum_t delta_t u_t^T` (section 3.1). Each pair, every dimension of it normalised over the training edits, is
`z = [u; delta]`, and goes through a residual network of low rank that is shared between layers of one shape (eq. 3):

    h    = z + relu(s1_l * (U1 V1 z + b1) + o1_l)
    g(z) = h + relu(s2_l * (U2 V2 h + b2) + o2_l)        -> [u~; delta~]

whose s and o, unlike the rest, are the layer's own. U, b and o begin at 0 and s at 1, so g begins as the identity. The
edited weight is `W - alpha_l sum_t delta~_t u~_t^T` with a learned alpha_l. Training (algorithm 1) minimises (eq. 4)

    c_edit * -log p_edited(y'|x') + KL(p_base(.|x_loc) || p_edited(.|x_loc))

for an equivalent wording x' and an unrelated prompt x_loc. An edit is one pass (algorithm 2); edits given in one call
are added up, each made at the same weights.

Departures. The moments that pairs are normalised by are each layer's own, and taken once, before training. x' is the
edit's own wording half of the time, and x_loc is one of the record's own neighbours where it has any: the hardest to
leave alone, and what locality is measured by. V begins at unit scale, the network's learning rate is larger than the
paper's and training takes minutes, not a day; c_edit is 1 (0.1 there). Edits of one call are added up however many they
are, with a network that was trained on single ones; the paper trains one for each number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wise.edits import Edit
from wise.lab.editors.base import Applied
from wise.lab.editors.factors import Factors, sizes
from wise.lab.editors.hypernetwork import CHUNK, EditQuery, Example, HyperEditor, HyperSettings
from wise.lab.editors.settings import Count, Positive

SMALL = 1e-7


@dataclass(frozen=True, kw_only=True)
class MendSettings(HyperSettings):
    search = {
        "edit_weight": (0.1, 0.3, 1.0),
        "learning_rate": (3e-4, 1e-3, 3e-3),
        "blocks": (1, 3),
    }

    rank: Count = 128
    """Of U and V; no more than f + d is used. The paper's 1920 is of layers with some thousand features."""
    edit_weight: Positive = 1.0
    """c_edit"""
    edit_rate: Positive = 1e-4
    """What every alpha_l begins at."""
    rate_rate: Positive = 1e-5
    """Learning rate of the alphas; as large as they are themselves, as in the paper, they jump from step to step."""


class Transform(nn.Module):
    """g of eq. 3, for layers of one shape."""

    def __init__(self, size: int, layers: int, rank: int) -> None:
        super().__init__()
        rank = min(rank, size)
        self.v = nn.Parameter(torch.randn(2, rank, size) / size**0.5)
        self.u = nn.Parameter(torch.zeros(2, size, rank))
        self.bias = nn.Parameter(torch.zeros(2, size))
        self.scale = nn.Parameter(torch.ones(layers, 2, size))
        self.offset = nn.Parameter(torch.zeros(layers, 2, size))

    def forward(self, z: Tensor, layer: int) -> Tensor:
        for i in range(2):
            inner = z @ self.v[i].mT @ self.u[i].mT + self.bias[i]
            # clamp has the gradient 1 at 0, where all begins; relu has 0 and would never learn
            z = z + (self.scale[layer, i] * inner + self.offset[layer, i]).clamp(min=0)
        return z


class Network(nn.Module):
    """A transform per shape, and alpha and moments per layer."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int, edit_rate: float) -> None:
        """shapes: path of a layer -> (f, d)."""
        super().__init__()
        alike: dict[tuple[int, int], list[str]] = {}
        for path, shape in shapes.items():
            alike.setdefault(shape, []).append(path)
        self.transforms = nn.ModuleDict(
            {f"{f}x{d}": Transform(f + d, len(paths), rank) for (f, d), paths in alike.items()}
        )
        self.place = {path: (f"{f}x{d}", i) for (f, d), paths in alike.items() for i, path in enumerate(paths)}
        self.alpha = nn.Parameter(torch.full((len(shapes),), edit_rate))
        self.moments = nn.ModuleList(Moments(sum(shape)) for shape in shapes.values())

    def forward(self, gradients: Factors, mask: Tensor) -> Factors:
        """What to add to the weights: `-alpha delta~` and `u~`, 0 at pads."""
        results = {}
        for i, (path, (u, delta)) in enumerate(gradients.items()):
            name, layer = self.place[path]
            z = self.moments[i](torch.cat([u, delta], -1))
            u, delta = self.transforms[name](z, layer).split([u.shape[-1], delta.shape[-1]], -1)
            results[path] = u, -self.alpha[i] * delta * mask[..., None]
        return results


class Moments(nn.Module):
    """Normalises every dimension; changes nothing before it has seen anything."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.deviation

    def fit(self, total: Tensor, squares: Tensor, count: int) -> None:
        """The sums of `count` pairs and of their squares, `[f + d]` float64 each."""
        mean = total / count
        variance = (squares - count * mean.square()) / (count - 1)
        self.mean, self.deviation = mean.float(), variance.clamp(min=0).sqrt().float() + SMALL


class Mend(HyperEditor[MendSettings]):
    Config = MendSettings
    kind = "mend"

    def _build(self) -> nn.Module:
        shapes = {path: sizes(module) for path, module in self.linears.items()}
        return Network(shapes, self.settings.rank, self.settings.edit_rate)

    def _groups(self) -> list[dict[str, Any]]:
        alpha = self.network.alpha
        others = [parameter for parameter in self.network.parameters() if parameter is not alpha]
        return [
            {"params": others, "lr": self.settings.learning_rate}, {"params": [alpha], "lr": self.settings.rate_rate}
        ]

    def _begin(self, examples: Sequence[Example]) -> None:
        total: dict[str, Any] = dict.fromkeys(self.linears, 0.0)
        squares, count = dict(total), 0
        for start in range(0, len(examples), CHUNK):
            gradients, mask = self.gradients([example.query for example in examples[start : start + CHUNK]])
            for path, pair in gradients.items():  # sums alone are kept: the pairs of all records are many gigabytes
                z = torch.cat(pair, -1)[mask.bool()].double()
                total[path], squares[path] = total[path] + z.sum(0), squares[path] + z.square().sum(0)
            count += int(mask.sum())
        for moments, path in zip(self.network.moments, self.linears, strict=True):
            moments.fit(total[path], squares[path], count)

    def _update(self, queries: Sequence[EditQuery], gradients: Factors, mask: Tensor) -> Factors:
        result: Factors = self.network(gradients, mask)
        return result

    def _objective(self, edit: Any, locality: Any) -> Any:
        return self.settings.edit_weight * edit + locality

    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        self._write(edits, progress)
        return [Applied()] * len(edits)
