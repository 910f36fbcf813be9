"""The space in which edit keys are compared: of activations (`retrieve`), or of a relation reader (`hybrid`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize


@dataclass(frozen=True, kw_only=True, eq=False)
class KeySpace:
    """How an activation becomes an edit key: `normalize(projection (a - mean))`."""

    mean: Tensor
    """`[f]` mean over the base's own text."""
    projection: Tensor
    """`[r, f]` projection onto the directions that tell keys apart: whitening."""

    def __post_init__(self) -> None:
        # A product with a transposed view is summed in another order: a key space read from disk would differ in
        # the last bits from the one that was saved.
        object.__setattr__(self, "projection", self.projection.contiguous())

    @property
    def size(self) -> int:
        """r: numbers in a key."""
        return len(self.projection)

    @property
    def shift(self) -> Tensor:
        """`[r]` what is added behind the projection, in place of taking the mean off before it."""
        return -(self.projection.float() @ self.mean.float())

    def tensors(self) -> dict[str, Tensor]:
        """All that `from_tensors` needs, for safetensors; cloned, since it refuses tensors that share storage."""
        return {"mean": self.mean.clone(), "projection": self.projection.clone()}

    def keys(self, vectors: Tensor) -> Tensor:
        """Unit keys `[n, r]` of vectors `[n, f]`."""
        return normalize(linear(vectors.float().cpu() - self.mean, self.projection), dim=-1)


@dataclass(frozen=True, kw_only=True)
class RelationSpace:
    """The relation reader that made the keys, and its thresholds for the same question."""

    reader: str
    """Name of the trained reader: keys of different readers cannot be compared."""
    size: int
    """r: numbers in a key."""
    threshold: float
    """Cosine from which a question that names an edit's subject asks for it, unless the edit has its own."""
    unnamed_threshold: float
    """The same of a question that names no edited subject."""

    def tensors(self) -> dict[str, Tensor]:
        """All that `from_tensors` needs, for safetensors."""
        return {
            "reader": torch.tensor(list(self.reader.encode()), dtype=torch.uint8),
            "size": torch.tensor(self.size),
            "thresholds": torch.tensor([self.threshold, self.unnamed_threshold], dtype=torch.float64),
        }


Space = KeySpace | RelationSpace


def space_from_tensors(tensors: Mapping[str, Tensor]) -> Space:
    """The inverse of `tensors`. Raises KeyError where one is missing, ValueError where they do not fit together."""
    space = _relations(tensors) if "reader" in tensors else _activations(tensors)
    again = {name: (t.dtype, t.shape) for name, t in space.tensors().items()} if space is not None else None
    if space is None or again != {name: (t.dtype, t.shape) for name, t in tensors.items()}:
        found = {name: f"{t.dtype} {list(t.shape)}" for name, t in tensors.items()}
        raise ValueError(f"{found} make no space of keys")
    return space


def _activations(tensors: Mapping[str, Tensor]) -> KeySpace | None:
    mean, projection = tensors["mean"], tensors["projection"]
    if projection.ndim != 2 or mean.shape != projection.shape[1:] or {mean.dtype, projection.dtype} != {torch.float32}:
        return None
    return KeySpace(mean=mean, projection=projection)


def _relations(tensors: Mapping[str, Tensor]) -> RelationSpace | None:
    reader, size, thresholds = tensors["reader"], tensors["size"], tensors["thresholds"]
    if reader.ndim != 1 or reader.dtype != torch.uint8 or size.ndim or thresholds.shape != (2,) or int(size) < 1:
        return None
    if not all(0 < value <= 1 for value in thresholds.tolist()):
        return None
    try:
        name = bytes(reader.tolist()).decode()
    except UnicodeDecodeError:
        return None
    named, unnamed = thresholds.tolist()
    return RelationSpace(reader=name, size=int(size), threshold=named, unnamed_threshold=unnamed)
