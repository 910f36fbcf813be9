"""A slot: one shard of the side memory, the edits it holds and what it adds for them.

To add a kind of slot, subclass `Slot` and register it in `SLOT_KINDS`; a writer makes it, the bank serves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from wise.errors import ArtifactError
from wise.memory.masks import pack_bits, unpack_bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Slot(ABC):
    """What every kind of slot has. Immutable: editing makes a new one."""

    kind: ClassVar[str]
    shared: ClassVar[bool] = True
    """Whether what it adds bears traces of edits that it no longer holds, or held none of."""

    id: int
    edit_ids: tuple[str, ...]
    """The edits it holds, in the order in which they came."""
    scores: tuple[float, ...] = ()
    """The routing score that each of them is sure to reach wherever it must speak."""

    @property
    def threshold(self) -> float:
        """Routing score from which the slot speaks: the smallest over its edits, infinite without any.

        A pure function of the edits it now holds (WISE takes the smallest ever seen, which can only fall).
        """
        return min(self.scores, default=float("inf"))

    @abstractmethod
    def delta(self, activation: Tensor) -> Tensor:
        """What the slot adds: `[..., f] -> [..., d]`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that `from_tensors` needs, for safetensors."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **fields: Any) -> Self:
        """The inverse of `tensors`. Raises ArtifactError where they do not fit together."""

    def with_scores(self, scores: Mapping[str, float]) -> Self:
        """The same slot holding exactly the edits that `scores` names, of those it was written for."""
        kept = [i for i in self.edit_ids if i in scores]
        return replace(self, edit_ids=tuple(kept), scores=tuple(scores[i] for i in kept))

    def without(self, edit_ids: Collection[str]) -> Self:
        """The same slot with these edits no longer live; what it adds stays as it is."""
        scores = dict(zip(self.edit_ids, self.scores, strict=True))
        return self.with_scores({i: score for i, score in scores.items() if i not in edit_ids})


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedDenseSlot(Slot):
    """WISE's: a dense change of the value projection, confined to k random masks and merged."""

    kind = "masked-dense"

    masks: Tensor
    """`[k, d, f]` bool: the entries that each shard may change."""
    weight: Tensor
    """`[d, f]` float32: the merged change W' - W, zero outside the masks."""

    def delta(self, activation: Tensor) -> Tensor:
        return linear(activation, self.weight.to(activation))

    def tensors(self) -> dict[str, Tensor]:
        """Bits for the masks, and only the entries that may differ from zero."""
        return {
            "masks": pack_bits(self.masks),
            "shape": torch.tensor(self.masks.shape),
            "values": self.weight[self.masks.any(0)],
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **fields: Any) -> Self:
        try:
            masks = unpack_bits(tensors["masks"], tuple(tensors["shape"].tolist()))
            weight = torch.zeros(masks.shape[1:])
            weight[masks.any(0)] = tensors["values"]
        except (KeyError, ValueError, RuntimeError, IndexError) as error:
            raise ArtifactError(f"slot {fields.get('id')}: its tensors do not fit together: {error}") from error
        return cls(masks=masks, weight=weight, **fields)


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueSlot(Slot):
    """One edit's: constants, whatever the activation (GRACE's kind of value, arXiv 2211.11031), one for each key."""

    kind = "value"
    shared = False

    values: Tensor
    """`[m, d]` float32, in the order of the edit's keys."""
    places: Tensor
    """`[m]` int64: at which token of its answer each is added; 0 is the prompt's last token. Ascending from 0."""
    features: int
    """f, which says what it stands beside and is otherwise of no account."""

    def delta(self, activation: Tensor) -> Tensor:
        """The first value."""
        if activation.shape[-1] != self.features:
            raise RuntimeError(f"an activation of {activation.shape[-1]} features, {self.features} expected")
        return self.values[0].to(activation).expand(*activation.shape[:-1], -1)

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "places": self.places, "features": torch.tensor(self.features)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **fields: Any) -> Self:
        try:
            values, places, features = tensors["values"], tensors["places"], int(tensors["features"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"slot {fields.get('id')}: its tensors do not fit together: {error}") from error
        ordered = places.ndim == 1 and len(places) and not int(places[0]) and bool((places.diff() > 0).all())
        if values.ndim != 2 or len(values) != len(places) or not ordered:
            raise ArtifactError(
                f"slot {fields.get('id')}: values {list(values.shape)} and places {places.tolist()} do not fit together"
            )
        return cls(values=values, places=places, features=features, **fields)


SLOT_KINDS: dict[str, type[Slot]] = {kind.kind: kind for kind in (MaskedDenseSlot, ValueSlot)}
