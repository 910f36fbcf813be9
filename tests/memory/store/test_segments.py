"""Slots of every kind and width go into a segment and come out of it, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stores import edit
from tiny import same_tensors

from wise.errors import StoreError
from wise.memory.key_space import KeySpace, RelationSpace, Space
from wise.memory.slot import SLOT_KINDS, AnswerSlot, MaskedDenseSlot, Slot
from wise.memory.store.segments import StoredSlot, decode_segment, decode_space, encode_segment, encode_space


def slots() -> list[Slot]:
    """Kinds mixed, answers of unlike length, and bits that rounding or a comparison of numbers would lose."""
    fields = [{"id": i, "edit_ids": (f"e{i}",), "scores": (0.1 + 0.2,)} for i in range(6)]
    odd = torch.tensor([[-0.0, 0.0, torch.finfo(torch.float32).tiny / 3, 1.0]])
    mask = torch.rand(2, 4, 6) < 0.4
    return [
        answer(odd, 0, **fields[0]),
        answer(torch.randn(5, 4), 2, **fields[1]),
        MaskedDenseSlot(masks=mask, weight=torch.randn(4, 6) * mask.any(0), **fields[2]),  # type: ignore[arg-type]
        answer(torch.randn(3, 4), 3, **fields[3]),
        answer(torch.randn(2, 9), 1, **fields[4]),
        MaskedDenseSlot(masks=mask & False, weight=torch.zeros(4, 6), **fields[5] | {"edit_ids": (), "scores": ()}),  # type: ignore[arg-type]
    ]


def answer(values: torch.Tensor, chat: int, **fields: Any) -> AnswerSlot:
    """chat: how many of its tokens are of the chat answer."""
    counts = torch.tensor([chat, len(values) - chat])
    return AnswerSlot(values=values, ids=torch.arange(len(values)) + 7, counts=counts, features=6, **fields)


def rows(*, keyed: bool, dtype: torch.dtype = torch.float32) -> list[StoredSlot]:
    return [
        StoredSlot(
            slot=slot,
            edits=tuple(edit(slot.id) for _ in slot.edit_ids),
            tickets=tuple(slot.id + 1 for _ in slot.edit_ids),
            keys=tuple(torch.randn(1 + slot.id % 3, 5).to(dtype) if keyed else None for _ in slot.edit_ids),
        )
        for slot in slots()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("keyed", [True, False])
def test_what_goes_in_comes_out(keyed: bool, dtype: torch.dtype) -> None:
    given = rows(keyed=keyed, dtype=dtype)
    assert {row.slot.kind for row in given} == set(SLOT_KINDS), "a kind is not tried"
    data = encode_segment(given)
    found = decode_segment(data, "here")
    assert encode_segment(found) == data
    for a, b in zip(given, found, strict=True):
        assert (type(a.slot), a.slot.scores, a.edits, a.tickets) == (type(b.slot), b.slot.scores, b.edits, b.tickets)
        assert same_tensors(
            {name: tensor.contiguous().flatten().view(torch.uint8) for name, tensor in a.slot.tensors().items()},
            {name: tensor.contiguous().flatten().view(torch.uint8) for name, tensor in b.slot.tensors().items()},
        )
        for x, y in zip(a.keys, b.keys, strict=True):
            assert x is y is None or (x is not None and y is not None and x.dtype == y.dtype and torch.equal(x, y))


def test_what_is_no_segment_is_refused() -> None:
    data = encode_segment(rows(keyed=True))
    for wrong in (b"", data[: len(data) // 2], b"{}" * 40, data.replace(b'"answer', b'"unsure')):
        with pytest.raises(StoreError, match="here: is no segment of ours"):
            decode_segment(wrong, "here")


@pytest.mark.parametrize(
    "space",
    [
        KeySpace(mean=torch.randn(6), projection=torch.randn(3, 6)),
        RelationSpace(reader="words", size=3, threshold=1 / 3, unnamed_threshold=0.9),
    ],
    ids=["activations", "relations"],
)
def test_spaces_go_in_and_come_out(space: Space) -> None:
    data = encode_space(space)
    again = decode_space(data, "here")
    assert type(again) is type(space) and same_tensors(again.tensors(), space.tensors())
    assert encode_space(again) == data
    for wrong in (b"", data[:-1], encode_segment(rows(keyed=True))):
        with pytest.raises(StoreError, match="here: is no key space"):
            decode_space(wrong, "here")
