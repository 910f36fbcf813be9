"""Slots of every kind and width go into a segment and come out of it, bit for bit."""

from __future__ import annotations

import pytest
import torch
from stores import edit
from test_artifact import same_tensors

from wise.errors import StoreError
from wise.memory.segment import Row, decoded, encoded
from wise.memory.slot import SLOT_KINDS, LowRankSlot, MaskedDenseSlot, RankOneSlot, Slot, ValueSlot


def per_edit(places: int) -> dict[str, torch.Tensor]:
    return {"places": torch.arange(places), "gated": torch.tensor([True] + [False] * (places - 1))}


def neurons(places: int, rank: int) -> dict[str, torch.Tensor]:
    return {"keys": torch.randn(places, rank, 6), "values": torch.randn(places, rank, 4)} | per_edit(places)


def slots() -> list[Slot]:
    """Kinds mixed, ranks and places unlike, and bits that rounding or a comparison of numbers would lose."""
    fields = [{"id": i, "edit_ids": (f"e{i}",), "scores": (0.1 + 0.2,)} for i in range(8)]
    odd = torch.tensor([[-0.0, 0.0, torch.finfo(torch.float32).tiny / 3, 1.0]])
    mask = torch.rand(2, 4, 6) < 0.4
    return [
        ValueSlot(values=odd, features=6, **per_edit(1), **fields[0]),  # type: ignore[arg-type]
        LowRankSlot(**neurons(1, 3), **fields[1]),  # type: ignore[arg-type]
        ValueSlot(values=torch.randn(3, 4), features=6, **per_edit(3), **fields[2]),  # type: ignore[arg-type]
        LowRankSlot(**neurons(2, 5), **fields[3]),  # type: ignore[arg-type]
        RankOneSlot(**neurons(1, 1), **fields[4]),  # type: ignore[arg-type]
        LowRankSlot(**neurons(2, 3), **fields[5]),  # type: ignore[arg-type]
        MaskedDenseSlot(masks=mask, weight=torch.randn(4, 6) * mask.any(0), **fields[6]),  # type: ignore[arg-type]
        MaskedDenseSlot(masks=mask & False, weight=torch.zeros(4, 6), **fields[7] | {"edit_ids": (), "scores": ()}),  # type: ignore[arg-type]
    ]


def rows(*, keyed: bool) -> list[Row]:
    return [
        Row(
            slot=slot,
            edits=tuple(edit(slot.id) for _ in slot.edit_ids),
            tickets=tuple(slot.id + 1 for _ in slot.edit_ids),
            keys=tuple(torch.randn(1 + slot.id % 3, 5) if keyed else None for _ in slot.edit_ids),
        )
        for slot in slots()
    ]


@pytest.mark.parametrize("keyed", [True, False])
def test_what_goes_in_comes_out(keyed: bool) -> None:
    given = rows(keyed=keyed)
    assert {row.slot.kind for row in given} == set(SLOT_KINDS), "a kind is not tried"
    data = encoded(given)
    found = decoded(data, "here")
    assert encoded(found) == data
    for a, b in zip(given, found, strict=True):
        assert (type(a.slot), a.slot.scores, a.edits, a.tickets) == (type(b.slot), b.slot.scores, b.edits, b.tickets)
        assert same_tensors(
            {name: tensor.contiguous().flatten().view(torch.uint8) for name, tensor in a.slot.tensors().items()},
            {name: tensor.contiguous().flatten().view(torch.uint8) for name, tensor in b.slot.tensors().items()},
        )
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(a.keys, b.keys, strict=True))  # type: ignore[arg-type]


def test_what_is_no_segment_is_refused() -> None:
    data = encoded(rows(keyed=True))
    for wrong in (b"", data[: len(data) // 2], b"{}" * 40, data.replace(b"low-rank", b"tow-rank")):
        with pytest.raises(StoreError, match="here: is no segment of ours"):
            decoded(wrong, "here")
