"""A slot: one shard of the side memory, the edits it holds and what it adds for them.

To add a kind of slot, subclass `Slot` and register it in `SLOT_KINDS`; a writer makes it, the bank that its kind makes
serves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from wise.errors import ArtifactError, ConfigError
from wise.memory.grouped import NO_SLOT
from wise.memory.masks import pack_bits, unpack_bits
from wise.memory.side_memory import SlotBank


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
    def bank(cls, slots: Sequence[Self], dtype: torch.dtype) -> SlotBank:
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
    def bank(cls, slots: Sequence[Self], dtype: torch.dtype) -> SlotBank:
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


CHAT, COMPLETION = 0, 1
"""Forms in which an answer is given: a turn of a chat, or the end of a plain text."""
FORMS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerSlot(Slot):
    """One edit's own (`hybrid`): its answer in each form, and the value added where each of its tokens is generated."""

    kind = "answer"
    shared = False

    values: Tensor
    """`[m, d]` float32: constants, as the values of GRACE's codebook (arXiv 2211.11031)."""
    ids: Tensor
    """`[m]` int64: the tokens that they make the base say, those of the chat answer before those of the completion."""
    counts: Tensor
    """`[FORMS]` int64: tokens of each form; 0 where the edit is not given in it."""
    features: int
    """f, which says what it stands beside and is otherwise of no account."""

    @property
    def answers(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Of each form, the first of its values, and its ids."""
        sizes = self.counts.tolist()
        ids = self.ids.tolist()
        return tuple((sum(sizes[:i]), tuple(ids[sum(sizes[:i]) : sum(sizes[: i + 1])])) for i in range(len(sizes)))

    def delta(self, activation: Tensor) -> Tensor:
        """The first value."""
        if activation.shape[-1] != self.features:
            raise RuntimeError(f"an activation of {activation.shape[-1]} features, {self.features} expected")
        return self.values[0].to(activation).expand(*activation.shape[:-1], -1)

    @classmethod
    def bank(cls, slots: Sequence[Self], dtype: torch.dtype) -> SlotBank:
        return AnswerBank(torch.cat([slot.values for slot in slots]).to(dtype))

    def tensors(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in ("values", "ids", "counts")}
        return own | {"features": torch.tensor(self.features)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **fields: Any) -> Self:
        try:
            values, ids, counts = (tensors[name] for name in ("values", "ids", "counts"))
            features = int(tensors["features"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"slot {fields.get('id')}: its tensors do not fit together: {error}") from error
        sound = values.ndim == 2 and ids.shape == values.shape[:1] and counts.shape == (FORMS,)
        sound = sound and (values.dtype, ids.dtype, counts.dtype) == (torch.float32, torch.int64, torch.int64)
        sound = sound and int(counts.sum()) == len(ids) > 0
        if not sound or int(counts.min()) < 0 or int(ids.min()) < 0:
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            raise ArtifactError(f"slot {fields.get('id')}: {shapes}: expected values [m, d], ids [m], counts [{FORMS}]")
        return cls(values=values, ids=ids, counts=counts, features=features, **fields)


class AnswerBank(SlotBank):
    """The values of all slots, one after the other."""

    weights: Tensor
    """`[values, d]`."""

    def of_keys(self, key: Tensor, activation: Tensor) -> Tensor:
        """key `[n]` numbers of values, activation `[n, f]` -> `[n, d]`, zero for NO_SLOT."""
        return torch.where((key == NO_SLOT)[:, None], 0, self.weights[key.clamp(min=0)])

    def forward(self, activation: Tensor, slot: Tensor | None = None) -> Tensor:
        raise NotImplementedError("values are chosen by key")


SLOT_KINDS: dict[str, type[Slot]] = {kind.kind: kind for kind in (MaskedDenseSlot, AnswerSlot)}


def make_bank(slots: Sequence[Slot], dtype: torch.dtype) -> SlotBank:
    """What serves `slots`, slot i with id i.

    dtype: precision of what slots add.

    Raises ConfigError for slots of several kinds, or none.
    """
    kinds = {type(slot) for slot in slots}
    if len(kinds) != 1:
        raise ConfigError(f"slots of the kinds {sorted(kind.kind for kind in kinds)}: one memory serves one kind")
    return kinds.pop().bank(slots, dtype)
