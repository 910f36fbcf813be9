"""Slots: the parts of a side memory, each with the edits that it holds and what it adds for them.

To add a kind of slot, subclass `Slot` and register it in `SLOT_KINDS`. A writer makes slots, and the bank of their kind
serves them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from wise.errors import ArtifactError, ConfigError, did_you_mean
from wise.memory.masks import pack_bits, unpack_bits
from wise.memory.side_memory import NO_SLOT, SlotBank

ROWS = "/rows"
"""Suffix of a column's name: how many rows each slot has in that column (`columns_of`)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slot(ABC):
    """What every kind of slot has. Immutable: editing makes a new one."""

    kind: ClassVar[str]
    shared: ClassVar[bool] = True
    """Whether what it adds keeps traces of edits that it no longer holds."""

    id: int
    edit_ids: tuple[str, ...]
    """The edits it holds, in the order in which they came."""
    scores: tuple[float, ...] = ()
    """The routing score that each of them is sure to reach wherever it must speak."""

    @property
    def threshold(self) -> float:
        """Routing score from which the slot speaks: the smallest of `scores`, infinite without any.

        The writer sets the scores: in `hybrid` by `Wordings.threshold` (`wise.training.wordings`), in `merge` and
        `retrieve` as a share of the edit's own activation score (`wise.training.writers.masked_dense`). So a threshold
        is a pure function of the edits that the slot now holds (WISE takes the smallest ever seen, which can only
        fall).
        """
        return min(self.scores, default=float("inf"))

    @property
    @abstractmethod
    def maps(self) -> tuple[int, int]:
        """f and d: from how many features to how many."""

    @classmethod
    @abstractmethod
    def bank(cls, slots: Sequence[Self], dtype: torch.dtype) -> SlotBank:
        """What serves slots of this kind, slot i with id i, in a precision. See `make_bank`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that it is made of, for safetensors."""

    @classmethod
    @abstractmethod
    def from_columns(cls, columns: Mapping[str, Tensor], fields: Sequence[Mapping[str, Any]]) -> list[Self]:
        """Slots of these ids, edits and scores from the columns of their group: see `columns_of`.

        Raises ArtifactError where these are not the columns of so many slots of this kind.
        """

    def same(self, other: Slot) -> bool:
        """Whether the other slot is this one to the last bit, whatever their numbers."""
        if self is other:
            return True
        theirs = vars(other)
        return type(self) is type(other) and all(
            bitwise_equal(value, theirs[name]) for name, value in vars(self).items() if name != "id"
        )

    def with_scores(self, scores: Mapping[str, float]) -> Self:
        """The same slot holding exactly the edits that `scores` names, of those it was written for."""
        kept = [i for i in self.edit_ids if i in scores]
        return replace(self, edit_ids=tuple(kept), scores=tuple(scores[i] for i in kept))

    def numbered(self, id: int) -> Self:
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

    @property
    def maps(self) -> tuple[int, int]:
        return self.weight.shape[1], self.weight.shape[0]

    def delta(self, activation: Tensor) -> Tensor:
        """What the slot adds: `[..., f] -> [..., d]`."""
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
    def from_columns(cls, columns: Mapping[str, Tensor], fields: Sequence[Mapping[str, Any]]) -> list[Self]:
        slots = []
        try:
            parts = {name: split_column(columns, name) for name in columns if not name.endswith(ROWS)}
            for *row, slot_fields in zip(*parts.values(), fields, strict=True):
                tensors: dict[str, Tensor] = dict(zip(parts, row, strict=True))
                masks = unpack_bits(tensors["masks"], tuple(tensors["shape"].tolist()))
                weight = torch.zeros(masks.shape[1:])
                weight[masks.any(0)] = tensors["values"]
                slots.append(cls(masks=masks, weight=weight, **slot_fields))
                # What was broadcast, or not read, shows when the slot is taken apart again.
                if shapes_of(slots[-1].tensors()) != shapes_of(tensors):
                    raise ValueError(f"{shapes_of(tensors)} make no slot of kind {cls.kind!r}")
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(str(error)) from error
        return slots


CHAT, COMPLETION = 0, 1
"""Forms in which an answer is given: a turn of a chat, or the end of a plain text."""
FORMS = 2
"""How many forms there are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerSlot(Slot):
    """The slot of one edit (`hybrid`): its answer in each form, and the value to add where each token is generated."""

    kind = "answer"
    shared = False

    values: Tensor
    """`[m, d]` float32: constants, as the values of GRACE's codebook (arXiv 2211.11031)."""
    ids: Tensor
    """`[m]` int64: the tokens that they make the base say, those of the chat answer before those of the completion."""
    counts: Tensor
    """`[FORMS]` int64: tokens of each form; 0 where the edit is not given in it."""
    features: int
    """f of the base; nothing is computed from it."""

    @property
    def answers(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Of each form, the first of its values, and its ids."""
        ids, ends = self.ids.tolist(), self.counts.cumsum(0).tolist()
        return tuple((start, tuple(ids[start:end])) for start, end in pairwise([0, *ends]))

    @property
    def maps(self) -> tuple[int, int]:
        return self.features, self.values.shape[1]

    @classmethod
    def bank(cls, slots: Sequence[Self], dtype: torch.dtype) -> SlotBank:
        return AnswerBank(slots, dtype)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {name: getattr(self, name) for name in ("values", "ids", "counts")}
        return tensors | {"features": torch.tensor(self.features)}

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor], fields: Sequence[Mapping[str, Any]]) -> list[Self]:
        """Of views: their values stay one block of memory, which is kept as long as one of them is."""
        if not _are_answers(columns, len(fields)):
            expected = f"expected values [m, d], ids [m], counts [{FORMS}] and features of each answer"
            raise ArtifactError(f"{shapes_of(columns)}: {expected}")
        rows = columns["values/rows"].tolist()
        parts = zip(
            torch.split(columns["values"], rows),
            torch.split(columns["ids"], rows),
            columns["counts"].view(-1, FORMS).unbind(),
            columns["features"].tolist(),
            fields,
            strict=True,
        )
        return [cls(values=v, ids=i, counts=c, features=f, **slot_fields) for v, i, c, f, slot_fields in parts]


def _are_answers(columns: Mapping[str, Tensor], count: int) -> bool:
    """Whether they are the columns of so many answers, each of which fits together."""
    names = ("counts", "counts/rows", "features", "ids", "ids/rows", "values", "values/rows")
    if tuple(sorted(columns)) != names or not count:
        return False
    counts, pairs, features, ids, lengths, values, rows = (columns[name] for name in names)
    numbers = (counts, pairs, features, ids, lengths, rows)
    if values.dtype != torch.float32 or any((each.dtype, each.ndim) != (torch.int64, 1) for each in numbers):
        return False
    fit = values.ndim == 2 and len(counts) == FORMS * count and len(rows) == len(pairs) == len(features) == count
    if not fit or not bool((pairs == FORMS).all()) or not torch.equal(rows, lengths):
        return False
    sound = torch.equal(counts.view(count, FORMS).sum(1), rows) and int(rows.sum()) == len(ids) == len(values)
    return sound and int(rows.min()) > 0 <= int(torch.minimum(counts.min(), ids.min()))


class AnswerBank(SlotBank):
    """The values of slots of one edit each. They stay where the slots hold them, and those that are chosen are brought
    to the device: so a bank of many edits is made at once and takes no memory of its own."""

    weights: Tensor
    """`[0, d]`: where, and in which precision, what is chosen is given."""

    def __init__(self, slots: Sequence[AnswerSlot], dtype: torch.dtype) -> None:
        super().__init__(torch.empty(0, slots[0].values.shape[1], dtype=dtype))
        self.slots = slots

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def chosen(self, slot: Sequence[int], value: Sequence[int]) -> Tensor:
        """`[n, d]`, zero for NO_SLOT. slot, value: of each of `n` tokens a slot, and which of its values."""
        out = self.weights.new_zeros(len(slot), self.weights.shape[1])
        at = [place for place, number in enumerate(slot) if number != NO_SLOT]
        if at:
            values = torch.stack([self.slots[slot[place]].values[value[place]] for place in at])
            out[torch.tensor(at, device=out.device)] = values.to(out)
        return out

    def forward(self, activation: Tensor, slot: Tensor | None = None) -> Tensor:
        raise NotImplementedError("a slot has several values: which one is chosen must be said")


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


def bitwise_equal(one: object, other: object) -> bool:
    """Whether two values are equal; tensors to the last bit, which tells -0.0 from 0.0."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(_bits(one), _bits(other))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


# -- the tensors of many slots as a few -------------------------------------------------------


def columns_of(slots: Sequence[Slot]) -> tuple[list[int], dict[str, Tensor]]:
    """The group of each slot, groups numbered as they come, and the columns of all groups.

    Slots of one kind whose tensors have one width are a group. The tensors that they have by one name are one tensor
    `GROUP/NAME`, row upon row, with the number of rows of each slot in `GROUP/NAME/rows`.
    """
    parts: dict[Any, list[dict[str, Tensor]]] = {}
    numbers: dict[Any, int] = {}
    groups = []
    for slot in slots:
        tensors = slot.tensors()
        alike = (slot.kind, *((name, t.dtype, t.ndim, t.shape[1:]) for name, t in tensors.items()))
        parts.setdefault(alike, []).append(tensors)
        groups.append(numbers.setdefault(alike, len(numbers)))
    columns: dict[str, Tensor] = {}
    for number, group in enumerate(parts.values()):
        for name in group[0]:
            columns |= _stack(f"{number}/{name}", [tensors[name] for tensors in group])
    return groups, columns


def is_column(name: str) -> bool:
    """Whether `columns_of` makes tensors of this name."""
    return "/" in name


def slots_of(
    columns: Mapping[str, Tensor], kinds: Mapping[int, str], groups: Sequence[int], fields: Sequence[Mapping[str, Any]]
) -> list[Slot]:
    """The inverse of `columns_of`. kinds: of each group. groups, fields: the group of each slot, its id, edits, scores.

    Raises ArtifactError for a kind that is not known, and where these are not the columns of these slots.
    """
    by_group: dict[int, list[Mapping[str, Any]]] = {group: [] for group in kinds}
    for group, slot_fields in zip(groups, fields, strict=True):
        by_group[group].append(slot_fields)
    parts: dict[str, dict[str, Tensor]] = {}
    for name in sorted(columns):
        group_name, _, part = name.partition("/")
        parts.setdefault(group_name, {})[part] = columns[name]
    if parts.keys() != set(map(str, kinds)):
        raise ArtifactError(f"there are tensors of the groups {sorted(parts)}, expected of {sorted(kinds)}")
    slots = {}
    for group, kind in kinds.items():
        if kind not in SLOT_KINDS:
            raise ArtifactError(f"slot kind {kind!r} is not known here: {did_you_mean(kind, SLOT_KINDS)}")
        slots[group] = iter(SLOT_KINDS[kind].from_columns(parts[str(group)], by_group[group]))
    return [next(slots[group]) for group in groups]


def split_column(tensors: Mapping[str, Tensor], name: str) -> Sequence[Tensor]:
    rows = tensors.get(name + ROWS)
    return tensors[name].unbind() if rows is None else torch.split(tensors[name], rows.tolist())


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Precision and shape of each, to be compared or shown."""
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}


def _stack(name: str, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Numbers side by side, others row upon row with their counts."""
    if not parts[0].ndim:
        return {name: torch.stack(list(parts))}
    return {name: torch.cat(list(parts)), name + ROWS: torch.tensor([len(part) for part in parts])}
