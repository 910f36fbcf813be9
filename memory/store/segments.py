"""Segments: some slots of a memory, with their edits and keys, as one block of bytes that never changes.

A segment is a safetensors file: the columns of the slots (`columns_of`), a column of keys, and one JSON text in the
metadata for the rest. Versions share segments, so a commit writes only the slots that are new.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wise.edits import Edit
from wise.errors import StoreError
from wise.memory.key_space import Space, space_from_tensors
from wise.memory.slot import ROWS, SLOT_KINDS, Slot, by_group, columns_of, is_column, split_column, split_group
from wise.memory.state import MemoryState

FORMAT = "wise-segment"
SPACE_FORMAT = "wise-space"
FULL = 256 * 1024
"""Bytes of tensors from which a segment takes no more slots: about a hundred edits of one value each."""

_MALFORMED = (SafetensorError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, OverflowError)
"""What reading bytes of another kind may raise; errors of edits and slots are among them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredSlot:
    """One slot, and what a version keeps with it."""

    slot: Slot
    edits: tuple[Edit, ...]
    tickets: tuple[int, ...]
    """The journal's tickets of these edits."""
    keys: tuple[Tensor | None, ...]
    """`[k, r]` for each edit; None where the mode has no keys."""

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        tensors = (*self.slot.tensors().values(), *(keys for keys in self.keys if keys is not None))
        return sum(tensor.nbytes for tensor in tensors)

    def equals(self, slot: Slot, table: EditTable) -> bool:
        """Whether it is what `table` stores of `slot`, to the last bit and whatever the slot's number."""
        if self.slot is not slot and not _same_slot(self.slot, slot):
            return False
        for edit, ticket, key in zip(self.edits, self.tickets, self.keys, strict=True):  # for every slot: no calls
            known = table.edits[edit.id]
            if known is not edit and known != edit:
                return False
            if table.tickets[edit.id] != ticket:
                return False
            own = table.keys.get(edit.id)
            if own is not key and not _same(own, key):
                return False
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class EditTable:
    """What a state holds for each of its edits, by id."""

    edits: Mapping[str, Edit]
    tickets: Mapping[str, int]
    keys: Mapping[str, Tensor]

    def stored(self, slot: Slot) -> StoredSlot:
        return StoredSlot(
            slot=slot,
            edits=tuple(self.edits[i] for i in slot.edit_ids),
            tickets=tuple(self.tickets[i] for i in slot.edit_ids),
            keys=tuple(self.keys.get(i) for i in slot.edit_ids),
        )


def edit_table(state: MemoryState, tickets: Mapping[str, int]) -> EditTable:
    """Raises StoreError where an edit has no ticket or is not in exactly one slot, or slots are misnumbered."""
    edits = {edit.id: edit for edit in state.edits}
    in_slots = [edit_id for slot in state.slots for edit_id in slot.edit_ids]
    wrong = set(in_slots) ^ edits.keys() or edits.keys() - tickets.keys()
    if wrong or len(in_slots) != len(edits):
        raise StoreError(
            f"edit {min(wrong, default=in_slots[:1])!r} is not in exactly one slot with a ticket of its own: "
            "enqueue edits first, then claim them, then commit what became of them"
        )
    numbers = [slot.id for slot in state.slots]
    if numbers != list(range(len(numbers))):
        raise StoreError(f"the slots are numbered {numbers[:8]}, expected 0, 1, 2, ...")
    return EditTable(edits=edits, tickets=tickets, keys=state.keys)


def state_of(slots: Sequence[StoredSlot], order: Sequence[str], key_space: Space | None) -> MemoryState:
    """The state of these slots, its edits in `order`."""
    edits = {edit.id: edit for stored in slots for edit in stored.edits}
    keys = {
        edit.id: key
        for stored in slots
        for edit, key in zip(stored.edits, stored.keys, strict=True)
        if key is not None
    }
    return MemoryState(
        edits=tuple(edits[i] for i in order),
        slots=tuple(stored.slot.numbered(i) for i, stored in enumerate(slots)),
        keys={i: keys[i] for i in order if i in keys},
        key_space=key_space,
    )


# -- bytes --------------------------------------------------------------------------------------


def split_into_segments(slots: Sequence[StoredSlot]) -> Iterator[list[StoredSlot]]:
    """Slots in their order, as many together as one segment takes."""
    segment: list[StoredSlot] = []
    size = 0
    for stored in slots:
        segment.append(stored)
        size += stored.nbytes
        if size >= FULL:
            yield segment
            segment, size = [], 0
    if segment:
        yield segment


def encode_segment(slots: Sequence[StoredSlot]) -> bytes:
    """The same bytes for the same slots."""
    groups, tensors = columns_of([stored.slot for stored in slots])
    fields = [
        {
            "kind": stored.slot.kind,
            "group": group,
            "scores": list(stored.slot.scores),
            "edits": [edit.to_dict() for edit in stored.edits],
            "tickets": list(stored.tickets),
        }
        for stored, group in zip(slots, groups, strict=True)
    ]
    keys = [key for stored in slots for key in stored.keys]
    present = [key for key in keys if key is not None]
    if present:
        tensors["keys"] = torch.cat(present)
        tensors["keys" + ROWS] = torch.tensor([0 if key is None else len(key) for key in keys])
    metadata = {FORMAT: json.dumps(fields, ensure_ascii=False)}  # one entry: safetensors writes several in any order
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def decode_segment(data: bytes, place: str) -> list[StoredSlot]:
    """The inverse of `encode_segment`. Raises StoreError, naming `place`, where they are no segment."""
    try:
        fields = json.loads(_metadata(data)[FORMAT])
        tensors = load(data)
        columns = {name: tensor for name, tensor in tensors.items() if is_column(name) and name != "keys" + ROWS}
        sizes = Counter(own["group"] for own in fields)
        slots = {number: iter(split_group(group, sizes[number])) for number, group in by_group(columns).items()}
        keys = iter(split_column(tensors, "keys")) if "keys" in tensors else None
        return [_stored(own, next(slots[own["group"]]), keys) for own in fields]
    except (*_MALFORMED, StopIteration) as error:
        kind = type(error).__name__  # what it says may quote an edit
        raise StoreError(f"{place}: is no segment of ours ({kind}); restore it from a backup") from error


def _stored(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], keys: Iterator[Tensor] | None) -> StoredSlot:
    """Of copies, so that a slot that stays does not keep the whole segment in memory."""
    edits = tuple(Edit.from_dict(edit) for edit in fields["edits"])
    own = [None if keys is None else next(keys).clone() for _ in edits]
    return StoredSlot(
        slot=SLOT_KINDS[fields["kind"]].from_tensors(
            {name: tensor.clone() for name, tensor in tensors.items()},
            id=0,
            edit_ids=tuple(edit.id for edit in edits),
            scores=tuple(fields["scores"]),
        ),
        edits=edits,
        tickets=tuple(fields["tickets"]),
        keys=tuple(None if key is None or not len(key) else key for key in own),
    )


def encode_space(space: Space) -> bytes:
    return save(space.tensors(), {SPACE_FORMAT: ""})


def decode_space(data: bytes, place: str) -> Space:
    """The inverse of `encode_space`. Raises StoreError where they are no key space."""
    try:
        return space_from_tensors(load(data))
    except _MALFORMED as error:
        raise StoreError(f"{place}: is no key space: {error!r:.200}; restore it from a backup") from error


def _metadata(data: bytes) -> dict[str, str]:
    """Of safetensors bytes: eight bytes with the size of the JSON header, and the header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header["__metadata__"])


def _same_slot(a: Slot, b: Slot) -> bool:
    other = vars(b)
    return type(a) is type(b) and all(_same(value, other[name]) for name, value in vars(a).items() if name != "id")


def _same(a: object, b: object) -> bool:
    """Tensors to the last bit, which tells -0.0 from 0.0."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.shape, a.dtype) == (b.shape, b.dtype) and torch.equal(_bits(a), _bits(b))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
