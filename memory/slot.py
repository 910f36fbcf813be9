"""A slot: one shard of the side memory, the edits it holds and what it adds for them.

To add a kind of slot, subclass `Slot` and register it in `SLOT_KINDS`; a writer makes it, the bank that its kind makes
serves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from wise.errors import ArtifactError, ConfigError
from wise.memory.grouped import NO_SLOT
from wise.memory.masks import pack_bits, unpack_bits
from wise.memory.neurons import NeuronBank
from wise.memory.side_memory import SlotBank, ValueBank


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

    @classmethod
    @abstractmethod
    def bank(cls, slots: Sequence[Self], key_slots: Tensor | None, dtype: torch.dtype) -> SlotBank:
        """What serves slots of this kind, slot i with id i, in a precision. See `make_bank`."""

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

    def numbered(self, id: int) -> Self:
        """The same slot with this id."""
        return self if self.id == id else replace(self, id=id)

    def without(self, edit_ids: Collection[str]) -> Self:
        """The same slot with these edits no longer live; what it adds stays as it is."""
        if self.edit_ids and not any(edit_id in edit_ids for edit_id in self.edit_ids):
            return self
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

    @classmethod
    def bank(cls, slots: Sequence[Self], key_slots: Tensor | None, dtype: torch.dtype) -> SlotBank:
        return SlotBank(torch.stack([slot.weight for slot in slots]).to(dtype))

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
class EditSlot(Slot):
    """One edit's own. It speaks at one or more tokens of its answer, each time with another key of the edit."""

    shared = False

    places: Tensor
    """`[m]` int64: at which token of its answer each key speaks; 0 is the prompt's last token. Ascending from 0."""
    gated: Tensor
    """`[m]` bool: a key speaks only where a question ends, as the relation space sees it; not so within an answer, nor
    where the edit's own prompt does not look like a question."""
    floors: Tensor | None = None
    """`[m]` float32: cosine of relations that each key asks for, at least. None: the score for all, as it once was."""

    @property
    def key_floors(self) -> Tensor:
        """`[m]` the same of every slot."""
        return torch.full((len(self.places),), self.threshold) if self.floors is None else self.floors

    def _floors(self) -> dict[str, Tensor]:
        return {} if self.floors is None else {"floors": self.floors}

    def check(self, **parts: Tensor) -> Self:
        """The slot itself. Raises ArtifactError where there is not one entry of each part for each place."""
        parts |= self._floors()
        places = self.places.tolist()
        ordered = self.places.ndim == 1 and places[:1] == [0] and all(a < b for a, b in pairwise(places))
        for name, part in parts.items():
            if not ordered or len(part) != len(places):
                shape = list(part.shape)
                raise ArtifactError(f"slot {self.id}: {name} {shape} and places {places} do not fit together")
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueSlot(EditSlot):
    """Constants, whatever the activation (GRACE's kind of value, arXiv 2211.11031)."""

    kind = "value"

    values: Tensor
    """`[m, d]` float32"""
    features: int
    """f, which says what it stands beside and is otherwise of no account."""

    def delta(self, activation: Tensor) -> Tensor:
        """The first value."""
        if activation.shape[-1] != self.features:
            raise RuntimeError(f"an activation of {activation.shape[-1]} features, {self.features} expected")
        return self.values[0].to(activation).expand(*activation.shape[:-1], -1)

    @classmethod
    def bank(cls, slots: Sequence[Self], key_slots: Tensor | None, dtype: torch.dtype) -> ValueBank:
        order, places = _keys_of(slots, key_slots)
        values = torch.cat([slot.values for slot in slots])
        return ValueBank(values.new_empty(values.shape).index_copy(0, order, values).to(dtype), places)

    def tensors(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in ("values", "places", "gated")}
        return own | self._floors() | {"features": torch.tensor(self.features)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **fields: Any) -> Self:
        try:
            values, places, gated = (tensors[name] for name in ("values", "places", "gated"))
            features = int(tensors["features"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"slot {fields.get('id')}: its tensors do not fit together: {error}") from error
        floors = tensors.get("floors")
        slot = cls(values=values, places=places, gated=gated, floors=floors, features=features, **fields)
        if values.ndim != 2:
            raise ArtifactError(f"slot {slot.id}: values {list(values.shape)}: expected [places, d]")
        return slot.check(values=values, gated=gated)


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronSlot(EditSlot):
    """A few neurons at each place: `delta(a) = R^T act(K a)`, a side feed-forward layer of one edit."""

    rectified: ClassVar[bool]
    """Whether act is the rectifier; otherwise it is nothing."""

    keys: Tensor
    """`[m, r, f]` float32: K at each place."""
    values: Tensor
    """`[m, r, d]` float32: R at each place."""

    def delta(self, activation: Tensor) -> Tensor:
        """What it adds at the first place."""
        active = linear(activation, self.keys[0].to(activation))
        return linear(relu(active) if self.rectified else active, self.values[0].T.to(activation))

    @classmethod
    def bank(cls, slots: Sequence[Self], key_slots: Tensor | None, dtype: torch.dtype) -> NeuronBank:
        order, places = _keys_of(slots, key_slots)
        counts = torch.tensor([slot.keys.shape[1] for slot in slots for _ in slot.places])
        within = torch.arange(int(counts.max()))
        numbers = (counts.cumsum(0) - counts)[:, None] + within
        numbers = torch.where(within < counts[:, None], numbers, NO_SLOT)
        return NeuronBank(
            torch.cat([slot.keys.flatten(0, 1) for slot in slots]).to(dtype),
            torch.cat([slot.values.flatten(0, 1) for slot in slots]).to(dtype),
            numbers.new_empty(numbers.shape).index_copy(0, order, numbers),
            places,
            rectified=cls.rectified,
        )

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("keys", "values", "places", "gated")} | self._floors()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **fields: Any) -> Self:
        try:
            keys, values, places, gated = (tensors[name] for name in ("keys", "values", "places", "gated"))
        except KeyError as error:
            raise ArtifactError(f"slot {fields.get('id')}: its tensors do not fit together: {error}") from error
        slot = cls(keys=keys, values=values, places=places, gated=gated, floors=tensors.get("floors"), **fields)
        if slot.keys.ndim != 3 or slot.values.ndim != 3 or slot.keys.shape[:2] != slot.values.shape[:2]:
            shapes = f"keys {list(slot.keys.shape)} and values {list(slot.values.shape)}"
            raise ArtifactError(f"slot {slot.id}: {shapes}: expected [places, r, f] and [places, r, d]")
        return slot.check(keys=slot.keys, gated=slot.gated)


class RankOneSlot(NeuronSlot):
    """One neuron without a nonlinearity: a rank-one change of the value projection, as ROME's, beside it."""

    kind = "rank-one"
    rectified = False


class LowRankSlot(NeuronSlot):
    """A few rectified neurons: a small feed-forward layer beside the base's."""

    kind = "low-rank"
    rectified = True


SLOT_KINDS: dict[str, type[Slot]] = {
    kind.kind: kind for kind in (MaskedDenseSlot, ValueSlot, RankOneSlot, LowRankSlot)
}


def make_bank(slots: Sequence[Slot], key_slots: Tensor | None, dtype: torch.dtype) -> SlotBank:
    """What serves `slots`, slot i with id i.

    key_slots: `[keys]` the slot of each edit key, those of an edit in their order; None where slots hold many edits.
    dtype: precision of what slots add.

    Raises ConfigError for slots of several kinds, of another kind than is served, or keys that are not theirs.
    """
    kinds = {type(slot) for slot in slots}
    if len(kinds) != 1:
        raise ConfigError(f"slots of the kinds {sorted(kind.kind for kind in kinds)}: one memory serves one kind")
    return kinds.pop().bank(slots, key_slots, dtype)


def _keys_of(slots: Sequence[EditSlot], key_slots: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which key speaks for what, of slots of one edit each.

    Returns the key of each slot's each place, slots one after the other, `[keys]`, and the same as a table by slot and
    token of the answer, NO_SLOT where none speaks.
    """
    if key_slots is None:
        raise ConfigError(f"slots of kind {slots[0].kind!r} are served by key: use mode='hybrid'")
    sizes = torch.tensor([len(slot.places) for slot in slots])
    if not torch.equal(torch.bincount(key_slots, minlength=len(slots)), sizes):
        found = torch.bincount(key_slots, minlength=len(slots)).tolist()
        at = next(i for i, (a, b) in enumerate(zip(found, sizes.tolist(), strict=True)) if a != b)
        raise ConfigError(f"slot {at} speaks at {int(sizes[at])} places and its edit has {found[at]} keys")
    order = torch.argsort(key_slots, stable=True)
    places = torch.cat([slot.places for slot in slots])
    table = torch.full((len(slots), int(places.max()) + 1), NO_SLOT)
    table[torch.repeat_interleave(torch.arange(len(slots)), sizes), places] = order
    return order, table
