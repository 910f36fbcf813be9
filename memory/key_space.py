"""The space in which edit keys are compared, and how a vector of the base is brought into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, relu

from wise.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class Bend:
    """What a learned space adds to its projection: one hidden layer of `h` units."""

    inner: Tensor
    """`[h, f]`."""
    bias: Tensor
    """`[h]`."""
    outer: Tensor
    """`[r, h]`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeySpace:
    """How a vector becomes an edit key: `normalize(projection x + outer relu(inner x + bias))` with `x = a - mean`."""

    mean: Tensor
    """`[f]` mean over the base's own text."""
    projection: Tensor
    """`[r, f]` projection onto the directions that tell keys apart: whitening, or learned."""
    bend: Bend | None = None
    floors: tuple[float, ...] = ()
    """Cosine from which a key counts in a memory of up to 1, 2, 4, ... edits, the last of them in all that are larger;
    none where the space comes without (`retrieve` has its own setting)."""

    def __post_init__(self) -> None:
        # A product with a transposed view is summed in another order: a key space read from disk would differ in
        # the last bits from the one that was saved.
        object.__setattr__(self, "projection", self.projection.contiguous())

    @property
    def shift(self) -> Tensor:
        """`[r]` what is added behind the projection, in place of taking the mean off before it."""
        return -(self.projection.float() @ self.mean.float())

    @property
    def bend_shift(self) -> Tensor | None:
        """`[h]` the same of the hidden layer, its bias within."""
        return None if self.bend is None else self.bend.bias - self.bend.inner @ self.mean.float()

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
        if self.bend is not None:
            found |= {name: getattr(self.bend, name).clone() for name in BENT}
        if self.floors:
            found["floors"] = torch.tensor(self.floors, dtype=torch.float64)
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> KeySpace:
        """The inverse of `tensors`. Raises KeyError where one is missing, ValueError where they do not fit together."""
        mean, projection = tensors["mean"], tensors["projection"]
        bend = Bend(**{name: tensors[name] for name in BENT}) if tensors.keys() & set(BENT) else None
        floors = tensors.get("floors")
        r, f = projection.shape if projection.ndim == 2 else (-1, -1)
        sound = mean.shape == (f,) and (floors is None or (floors.dtype == torch.float64 and floors.ndim == 1))
        if bend is not None:
            h = len(bend.bias) if bend.bias.ndim else -1
            sound = sound and bend.inner.shape == (h, f) and bend.bias.shape == (h,) and bend.outer.shape == (r, h)
        if not sound:
            raise ValueError(f"{({name: list(t.shape) for name, t in tensors.items()})} make no space of keys")
        return cls(mean=mean, projection=projection, bend=bend, floors=() if floors is None else tuple(floors.tolist()))

    def keys(self, vectors: Tensor) -> Tensor:
        """Unit keys `[n, r]` of vectors `[n, f]`."""
        x = vectors.float().cpu() - self.mean
        key = linear(x, self.projection)
        if self.bend is not None:
            key = key + linear(relu(linear(x, self.bend.inner, self.bend.bias)), self.bend.outer)
        return normalize(key, dim=-1)


BENT = ("inner", "bias", "outer")
