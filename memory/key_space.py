"""The space in which edit keys are compared, and how a vector of the base is brought into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, pad, relu

from wise.errors import ConfigError
from wise.memory.context import joined


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One hidden layer of `h` units over `x = a - mean`: `outer relu(inner x + bias)`."""

    inner: Tensor
    """`[h, f]`."""
    bias: Tensor
    """`[h]`."""
    outer: Tensor
    """`[r, h]`."""

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, f] -> [n, r]`."""
        return linear(relu(linear(x, self.inner, self.bias)), self.outer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """How surely a question ends at a token, from 0 to 1: `sigmoid(layer(x) + offset)`."""

    layer: Layer
    """To one number. Of the leading numbers of `x` alone, where it takes fewer: the activation is known first."""
    offset: float


@dataclass(frozen=True, kw_only=True, eq=False)
class KeySpace:
    """How a vector becomes an edit key: `normalize(projection x + bend(x))` with `x = a - mean`."""

    mean: Tensor
    """`[f]` mean over the base's own text."""
    projection: Tensor
    """`[r, f]` projection onto the directions that tell keys apart: whitening, or learned."""
    bend: Layer | None = None
    """What a learned space adds to its projection."""
    gate: Gate | None = None
    """What a learned space knows besides: whether there is a question to compare at all."""
    recent: int = 0
    """Value vectors that stand behind the activation in a vector (`ContextReader.beside`), or in the space of subjects
    behind the token's own (`joined`)."""
    surroundings: int = 0
    """In the space of subjects, texts in which a name is read for its key: each gives two parts, for the beginning of
    the name and its end (`of_whom`). 0: its end where the prompt names it is all."""
    text: Tensor | None = None
    """In the space of relations `[n, r]`, the keys of tokens of running text, at which no question is asked."""
    floors: tuple[float, ...] = ()
    """Cosine from which a key counts in a memory of up to 1, 2, 4, ... edits, the last of them in all that are larger;
    none where the space comes without (`retrieve` has its own setting)."""

    def __post_init__(self) -> None:
        # A product with a transposed view is summed in another order: a key space read from disk would differ in
        # the last bits from the one that was saved.
        object.__setattr__(self, "projection", self.projection.contiguous())

    @property
    def parts(self) -> int:
        """Unit vectors side by side in a key."""
        return max(1, ENDS * self.surroundings)

    @property
    def shift(self) -> Tensor:
        """`[r]` what is added behind the projection, in place of taking the mean off before it."""
        return -(self.projection.float() @ self.mean.float())

    def shifted(self, layer: Layer) -> Layer:
        """The same layer over `a` itself."""
        return replace(layer, bias=layer.bias - layer.inner @ self.mean[: layer.inner.shape[1]].float())

    def floor(self, edits: int) -> float:
        """Cosine from which a key counts in a memory of so many edits.

        Raises ConfigError where the space comes with none.
        """
        if not self.floors:
            raise ConfigError("the space of keys has no floors: it was made for mode='retrieve'")
        return self.floors[min(max(edits - 1, 0).bit_length(), len(self.floors) - 1)]

    def tensors(self) -> dict[str, Tensor]:
        """All that `from_tensors` needs, for safetensors; cloned, since it refuses tensors that share storage."""
        found = {"mean": self.mean.clone(), "projection": self.projection.clone()}
        for prefix, layer in (("bend", self.bend), ("gate", None if self.gate is None else self.gate.layer)):
            if layer is not None:
                found |= {f"{prefix}.{name}": getattr(layer, name).clone() for name in LAYER}
        if self.gate is not None:
            found["gate.offset"] = torch.tensor(self.gate.offset, dtype=torch.float64)
        for name in COUNTS:
            if getattr(self, name):
                found[name] = torch.tensor(getattr(self, name))
        if self.text is not None:
            found["text"] = self.text.clone()
        if self.floors:
            found["floors"] = torch.tensor(self.floors, dtype=torch.float64)
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> KeySpace:
        """The inverse of `tensors`. Raises KeyError where one is missing, ValueError where they do not fit together."""
        mean, projection, floors = tensors["mean"], tensors["projection"], tensors.get("floors")
        counts = {name: tensors.get(name, torch.tensor(0)) for name in COUNTS}
        text = tensors.get("text")
        bend, layer = (_layer(tensors, prefix) for prefix in ("bend", "gate"))
        offset = None if layer is None else tensors["gate.offset"]
        r, f = projection.shape if projection.ndim == 2 else (-1, -1)
        sound = mean.shape == (f,) and (floors is None or floors.ndim == 1) and (offset is None or offset.ndim == 0)
        sound = sound and all(count.ndim == 0 and int(count) >= 0 for count in counts.values())
        sound = sound and (text is None or text.shape == (len(text), r))
        for part, size, leading in ((bend, r, f), (layer, 1, min(f, layer.inner.shape[-1] if layer else f))):
            h = part.bias.numel() if part is not None else 0
            sound = sound and (part is None or _shapes(part) == ((h, leading), (h,), (size, h)))
        if sound:
            space = cls(
                mean=mean,
                projection=projection,
                bend=bend,
                gate=None if layer is None or offset is None else Gate(layer=layer, offset=float(offset)),
                text=text,
                **{name: int(count) for name, count in counts.items()},
                floors=() if floors is None else tuple(floors.tolist()),
            )
            # What was left unread shows when the space is taken apart again.
            wanted = {name: DTYPES.get(name, torch.float32) for name in space.tensors()}
            sound = {name: tensor.dtype for name, tensor in tensors.items()} == wanted
        if not sound:
            told = {name: f"{t.dtype} {list(t.shape)}" for name, t in tensors.items()}
            raise ValueError(f"{told} make no space of keys")
        return space

    def keys(self, vectors: Tensor) -> Tensor:
        """Unit keys `[n, r]` of vectors `[n, f]`."""
        x = vectors.float().cpu() - self.mean
        key = linear(x, self.projection)
        return normalize(key if self.bend is None else key + self.bend(x), dim=-1)

    def named(self, values: Tensor) -> Tensor:
        """What subjects are compared by at the tokens of a sequence, value vectors `[tokens, v]`: `[1, tokens, s]`.

        Each token alone, and `[2, tokens, s]` with each behind the token before it, where a subject is known by both.
        """
        alone = pad(values, (0, self.recent * values.shape[1]))
        found = [alone] if not self.recent else [alone, joined(values, self.recent)]
        return torch.stack([self.keys(vectors) for vectors in found])

    def asks(self, vectors: Tensor) -> Tensor:
        """How surely a question ends at each vector of `[n, f]`, `[n]`; 1 in a space that does not know."""
        if self.gate is None:
            return torch.ones(len(vectors))
        leading = self.gate.layer.inner.shape[1]
        x = vectors[:, :leading].float().cpu() - self.mean[:leading]
        return torch.sigmoid(self.gate.layer(x)[:, 0] + self.gate.offset)

    def queries(self, vectors: Tensor) -> Tensor:
        """What is compared with keys, `[n, r]`: a key's cosine counts as much as a question is asked."""
        return self.keys(vectors) * self.asks(vectors)[:, None]


def of_whom(cosines: Tensor, parts: int) -> Tensor:
    """How near subjects come by the parts of their keys: `[..., n * parts]`, of each part the nearest -> `[..., n]`.

    Both ends of a name count, in the one of its surroundings in which they come nearest: names of a kind end alike, and
    what a name reads as depends on whether it opens a text, a sentence, or neither.
    """
    if parts == 1:
        return cosines
    each = cosines.shape[-1] // parts, parts // ENDS, ENDS
    beginning, end = cosines.reshape(*cosines.shape[:-1], *each).unbind(-1)
    nearest: Tensor = (BEGINNING * beginning + (1 - BEGINNING) * end).amax(-1)
    return nearest


ENDS = 2
"""Parts of a name that are compared: its first two tokens and its last two, or the one that it has."""
BEGINNING = 1 / 3
"""What the first counts: more, and a subject that is called by a part of its name is not known again."""
APART, HIGHEST = 0.01, 0.99
"""How far the floor of an edit's own lies above what must not reach it, and the highest that there is, so that rounding
does not shut its gate."""
LAYER = ("inner", "bias", "outer")
COUNTS = ("recent", "surroundings")
DTYPES = {"floors": torch.float64, "gate.offset": torch.float64} | dict.fromkeys(COUNTS, torch.int64)
"""Of numbers that are compared as they were computed, or count; all else is float32."""


def _layer(tensors: Mapping[str, Tensor], prefix: str) -> Layer | None:
    own = {name: tensors[f"{prefix}.{name}"] for name in LAYER if f"{prefix}.{name}" in tensors}
    if own and len(own) < len(LAYER):
        raise KeyError(next(f"{prefix}.{name}" for name in LAYER if name not in own))
    return Layer(**own) if own else None


def _shapes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(getattr(layer, name).shape) for name in LAYER)
