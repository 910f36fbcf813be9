"""The space in which edit keys are compared: of activations (`retrieve`), or of a relation reader (`hybrid`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from wise.memory.slot import shapes_of


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
        return len(self.projection)

    @property
    def shift(self) -> Tensor:
        """`[r]` what is added behind the projection, in place of taking the mean off before it."""
        return -(self.projection.float() @ self.mean.float())

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors; cloned, since it refuses tensors that share storage."""
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
        """For safetensors."""
        return {
            "reader": torch.tensor(list(self.reader.encode()), dtype=torch.uint8),
            "size": torch.tensor(self.size),
            "thresholds": torch.tensor([self.threshold, self.unnamed_threshold], dtype=torch.float64),
        }


Space = KeySpace | RelationSpace


def space_from_tensors(tensors: Mapping[str, Tensor]) -> Space:
    """The inverse of `tensors`. Raises KeyError where one is missing, ValueError where they do not fit together."""
    shapes = shapes_of(tensors)
    space: Space | None = None
    if "reader" in tensors:
        reader, size, thresholds = tensors["reader"], tensors["size"], tensors["thresholds"]
        fit = reader.ndim == 1 and reader.dtype == torch.uint8 and not size.ndim and thresholds.shape == (2,)
        if fit and int(size) >= 1 and all(0 < value <= 1 for value in thresholds.tolist()):
            named, unnamed = thresholds.tolist()
            name = bytes(reader.tolist()).decode(errors="ignore")  # what is no text comes out shorter
            space = RelationSpace(reader=name, size=int(size), threshold=named, unnamed_threshold=unnamed)
    else:
        mean, projection = tensors["mean"], tensors["projection"]
        float32 = {mean.dtype, projection.dtype} == {torch.float32}
        if float32 and projection.ndim == 2 and mean.shape == projection.shape[1:]:
            space = KeySpace(mean=mean, projection=projection)
    if space is None or shapes != shapes_of(space.tensors()):
        raise ValueError(f"{shapes} make no space of keys")
    return space
