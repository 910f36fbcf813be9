"""Segments: some slots of a memory, with their edits and keys, as one block of bytes that never changes.

A segment is a safetensors file: the columns of the slots (`columns_of`), a column of keys, and one JSON text in the
metadata for the rest. Versions share segments, so a commit writes only the slots that are new.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wise.edits import Edit
from wise.errors import StoreError
from wise.memory.key_space import Space, space_from_tensors
from wise.memory.slot import ROWS, Slot, bitwise_equal, columns_of, is_column, slots_of, split_column
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
        tensors = (*self.slot.tensors().values(), *(keys for keys in self.keys if keys is not None))
        return sum(tensor.nbytes for tensor in tensors)

    def equals(self, slot: Slot, state: MemoryState, tickets: Mapping[str, int]) -> bool:
        """Whether it is what `stored` makes of `slot`, to the last bit and whatever the slot's number."""
        return self.slot.same(slot) and all(
            bitwise_equal(state.by_id[edit.id], edit)
            and tickets[edit.id] == ticket
            and bitwise_equal(state.keys.get(edit.id), key)
            for edit, ticket, key in zip(self.edits, self.tickets, self.keys, strict=True)
        )


def stored(slot: Slot, state: MemoryState, tickets: Mapping[str, int]) -> StoredSlot:
    return StoredSlot(
        slot=slot,
        edits=tuple(state.by_id[i] for i in slot.edit_ids),
        tickets=tuple(tickets[i] for i in slot.edit_ids),
        keys=tuple(state.keys.get(i) for i in slot.edit_ids),
    )


def check_tickets(state: MemoryState, tickets: Mapping[str, int]) -> None:
    """Raises StoreError where an edit has no ticket or is not in exactly one slot, or slots are misnumbered."""
    edits = state.by_id.keys()
    in_slots = [edit_id for slot in state.slots for edit_id in slot.edit_ids]
    wrong = set(in_slots) ^ edits or edits - tickets.keys()
    if wrong or len(in_slots) != len(edits):
        raise StoreError(
            f"edit {min(wrong, default=in_slots[:1])!r} is not in exactly one slot with a ticket of its own: "
            "enqueue edits first, then claim them, then commit what became of them"
        )
    numbers = [slot.id for slot in state.slots]
    if numbers != list(range(len(numbers))):
        raise StoreError(f"the slots are numbered {numbers[:8]}, expected 0, 1, 2, ...")


def state_of(slots: Sequence[StoredSlot], order: Sequence[str], key_space: Space | None) -> MemoryState:
    """The state of these slots, its edits in `order`."""
    edits = {edit.id: edit for stored in slots for edit in stored.edits}
    pairs = [pair for stored in slots for pair in zip(stored.edits, stored.keys, strict=True)]
    keys = {edit.id: key for edit, key in pairs if key is not None}
    return MemoryState(
        edits=tuple(edits[i] for i in order),
        slots=tuple(stored.slot.numbered(i) for i, stored in enumerate(slots)),
        keys={i: keys[i] for i in order if i in keys},
        key_space=key_space,
    )


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
            "kind": stored.slot.kind, "group": group,
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
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # behind its size, in eight bytes
        fields = json.loads(header["__metadata__"][FORMAT])
        tensors = load(data)
        columns = {name: tensor for name, tensor in tensors.items() if is_column(name) and name != "keys" + ROWS}
        edits = [tuple(map(Edit.from_dict, slot_fields["edits"])) for slot_fields in fields]
        stored_slots = [
            {"id": 0, "edit_ids": tuple(edit.id for edit in its), "scores": tuple(slot_fields["scores"])}
            for slot_fields, its in zip(fields, edits, strict=True)
        ]
        groups = [slot_fields["group"] for slot_fields in fields]
        kinds = {slot_fields["group"]: slot_fields["kind"] for slot_fields in fields}
        slots = slots_of(columns, kinds, groups, stored_slots)
        count = sum(map(len, edits))
        keys = split_column(tensors, "keys") if "keys" in tensors else [torch.zeros(0)] * count
        if len(keys) != count:
            raise ValueError(f"there are keys of {len(keys)} edits, expected of {count}")
        remaining_keys = (key.clone() if len(key) else None for key in keys)
        return [
            StoredSlot(
                slot=_copied(slot),
                edits=its,
                tickets=tuple(slot_fields["tickets"]),
                keys=tuple(islice(remaining_keys, len(its))),
            )
            for slot_fields, its, slot in zip(fields, edits, slots, strict=True)
        ]
    except _MALFORMED as error:
        kind = type(error).__name__  # what it says may quote an edit
        raise StoreError(f"{place}: is no segment of ours ({kind}); restore it from a backup") from error


def _copied(slot: Slot) -> Slot:
    """A copy, so that a slot that stays does not keep the whole segment in memory."""
    copies: dict[str, Any] = {name: part.clone() for name, part in vars(slot).items() if isinstance(part, Tensor)}
    return replace(slot, **copies)


def encode_space(space: Space) -> bytes:
    return save(space.tensors(), {SPACE_FORMAT: ""})


def decode_space(data: bytes, place: str) -> Space:
    """The inverse of `encode_space`. Raises StoreError where they are no key space."""
    try:
        return space_from_tensors(load(data))
    except _MALFORMED as error:
        raise StoreError(f"{place}: is no key space: {error!r:.200}; restore it from a backup") from error
