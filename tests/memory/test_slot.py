"""What each kind of slot adds, alone and in its bank, and what does not fit together is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wise.edits import Edit
from wise.errors import ArtifactError, ConfigError
from wise.memory.side_memory import NO_SLOT
from wise.memory.slot import (
    CHAT,
    COMPLETION,
    SLOT_KINDS,
    AnswerBank,
    AnswerSlot,
    MaskedDenseSlot,
    Slot,
    columns_of,
    make_bank,
    slots_of,
)
from wise.memory.state import MemoryState

F, D = 12, 5
COUNTS = ((2, 1), (0, 3), (1, 0))
"""Tokens of the chat answer and of the completion of three edits."""


def activations(count: int = 9) -> Tensor:
    return torch.randn(count, F, generator=torch.Generator().manual_seed(1))


def answer_slot(number: int) -> AnswerSlot:
    generator, tokens = torch.Generator().manual_seed(number), sum(COUNTS[number])
    return AnswerSlot(
        id=number,
        edit_ids=(f"e{number}",),
        scores=(0.5 + number / 8,),
        values=torch.randn(tokens, D, generator=generator),
        ids=torch.arange(10 * number, 10 * number + tokens),
        counts=torch.tensor(COUNTS[number]),
        features=F,
    )


def answer_slots() -> list[AnswerSlot]:
    return [answer_slot(number) for number in range(3)]


def dense_slot(number: int = 0) -> MaskedDenseSlot:
    generator = torch.Generator().manual_seed(number)
    masks = torch.rand(2, D, F, generator=generator) < 0.4
    weight = torch.randn(D, F, generator=generator) * masks.any(0)
    return MaskedDenseSlot(id=number, edit_ids=(f"e{number}", "f"), scores=(0.5, 0.25), masks=masks, weight=weight)


def columns_of_one(slot: Slot) -> dict[str, Tensor]:
    """The columns of a group of this slot alone."""
    return {name.removeprefix("0/"): column for name, column in columns_of([slot])[1].items()}


def test_the_formula_of_each_kind() -> None:
    a, answer, dense = activations(), answer_slot(0), dense_slot()
    torch.testing.assert_close(dense.delta(a), a @ dense.weight.T)
    assert (answer.threshold, dense.threshold) == (0.5, 0.25)


def test_answers_are_told_by_their_form() -> None:
    assert [slot.answers for slot in answer_slots()] == [
        ((0, (0, 1)), (2, (2,))),
        ((0, ()), (0, (10, 11, 12))),
        ((0, (20,)), (1, ())),
    ]
    first, ids = answer_slot(0).answers[COMPLETION]
    assert (first, ids) == (2, (2,)) and answer_slot(0).answers[CHAT] == (0, (0, 1))


def test_a_bank_of_answers_gives_the_values_that_are_chosen() -> None:
    slots = answer_slots()
    bank = make_bank(slots, torch.float32)
    assert isinstance(bank, AnswerBank)
    every = [(slot.id, value) for slot in slots for value in range(len(slot.values))]
    chosen = [every[-1], (NO_SLOT, 5), *every, every[0], every[0], (NO_SLOT, NO_SLOT)]
    found = bank.chosen([slot for slot, _ in chosen], [value for _, value in chosen])
    for row, (slot, value) in zip(found, chosen, strict=True):
        assert torch.equal(row, torch.zeros(D) if slot == NO_SLOT else slots[slot].values[value])
    with pytest.raises(NotImplementedError, match="several values"):
        bank(activations(1))


@pytest.mark.parametrize("kind", SLOT_KINDS)
def test_precision_is_the_banks(kind: str) -> None:
    made = make_bank(answer_slots() if kind == "answer" else [dense_slot()], torch.bfloat16)
    assert made.weights.dtype == torch.bfloat16
    if isinstance(made, AnswerBank):
        out = made.chosen([NO_SLOT] * 4, [NO_SLOT] * 4)
        assert out.dtype == torch.bfloat16 and not out.any()
        wanted = answer_slot(1).values[2].bfloat16()
        assert torch.equal(made.chosen([1], [2])[0], wanted) and made.chosen([1], [2]).dtype == torch.bfloat16


def test_a_bank_of_dense_slots_adds_what_each_slot_adds() -> None:
    slots, a = [dense_slot(0), dense_slot(1)], activations(4)
    out = make_bank(slots, torch.float32)(a, torch.tensor([1, 0, NO_SLOT, 1]))
    wanted = torch.stack([slots[1].delta(a[0]), slots[0].delta(a[1]), torch.zeros(D), slots[1].delta(a[3])])
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("slot", [*answer_slots(), dense_slot()], ids=lambda slot: f"{slot.kind} {slot.id}")
def test_a_slot_comes_back_from_its_tensors_to_the_bit(slot: AnswerSlot | MaskedDenseSlot) -> None:
    own = {"id": slot.id, "edit_ids": slot.edit_ids, "scores": slot.scores}
    groups, columns = columns_of([slot])
    [again] = slots_of(columns, {0: slot.kind}, groups, [own])
    assert type(again) is type(slot) and again.scores == slot.scores
    assert all(torch.equal(t, again.tensors()[name]) for name, t in slot.tensors().items())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("values", torch.zeros(2, D)),
        ("values", torch.zeros(3)),
        ("values", torch.zeros(3, D, dtype=torch.float16)),
        ("ids", torch.tensor([1, 2])),
        ("ids", torch.tensor([1, 2, -3])),
        ("ids", torch.tensor([1.0, 2.0, 3.0])),
        ("counts", torch.tensor([2, 2])),
        ("counts", torch.tensor([4, -1])),
        ("counts", torch.tensor([3])),
        ("counts", torch.tensor([2.0, 1.0])),
    ],
)
def test_parts_of_an_answer_that_do_not_fit_together_are_refused(name: str, part: Tensor) -> None:
    columns = columns_of_one(answer_slot(0)) | {name: part, f"{name}/rows": torch.tensor([len(part)])}
    with pytest.raises(ArtifactError, match=r"expected values \[m, d\], ids \[m\], counts \[2\]"):
        AnswerSlot.from_columns(columns, [{"id": 7, "edit_ids": ("e0",)}])


def test_an_answer_of_no_token_is_refused() -> None:
    none = replace(answer_slot(0), values=torch.zeros(0, D), ids=torch.arange(0), counts=torch.tensor([0, 0]))
    with pytest.raises(ArtifactError, match="expected values"):
        AnswerSlot.from_columns(columns_of_one(none), [{"id": 0, "edit_ids": ("e0",)}])


@pytest.mark.parametrize("slot", [answer_slot(0), dense_slot()], ids=lambda slot: slot.kind)
def test_a_slot_of_which_a_part_is_missing_or_foreign_is_refused(slot: AnswerSlot | MaskedDenseSlot) -> None:
    whole, fields = columns_of_one(slot), [{"id": slot.id, "edit_ids": slot.edit_ids}]
    assert len(type(slot).from_columns(whole, fields)) == 1
    for name in whole:
        with pytest.raises(ArtifactError):
            type(slot).from_columns({other: part for other, part in whole.items() if other != name}, fields)
    with pytest.raises(ArtifactError):
        type(slot).from_columns(whole | {"more": torch.ones(1)}, fields)
    with pytest.raises(ArtifactError):
        type(slot).from_columns(whole, fields * 2)


@pytest.mark.parametrize("slot", [answer_slot(0), dense_slot()], ids=lambda slot: slot.kind)
def test_slots_are_the_same_to_the_last_bit(slot: AnswerSlot | MaskedDenseSlot) -> None:
    name = "values" if isinstance(slot, AnswerSlot) else "weight"
    whole = replace(slot, **{name: torch.zeros_like(getattr(slot, name))})
    signed = replace(whole, **{name: -getattr(whole, name)})
    again = replace(whole, **{name: getattr(whole, name).clone()}, id=9)
    assert whole.same(again) and torch.equal(getattr(whole, name), getattr(signed, name))
    assert not whole.same(signed) and not whole.same(replace(whole, edit_ids=(*whole.edit_ids[:-1], "other")))
    assert MemoryState(slots=(whole,)).same(MemoryState(slots=(again,)))
    assert not MemoryState(slots=(whole,)).same(MemoryState(slots=(signed,)))


def test_one_memory_serves_one_kind() -> None:
    with pytest.raises(ConfigError, match="'answer', 'masked-dense'"):
        make_bank([answer_slot(0), dense_slot(1)], torch.float32)
    with pytest.raises(ConfigError, match=r"kinds \[\]"):
        make_bank([], torch.float32)


def test_edits_are_removed_without_a_search_for_each() -> None:
    class Searched(tuple[str, ...]):
        def __contains__(self, _: object) -> bool:
            raise AssertionError("10,000 of 100,000 edits would take a minute")

    edits = tuple(Edit(id=f"e{number}", prompt="Who?", target="me") for number in range(3))
    state = MemoryState(edits=edits, slots=tuple(answer_slots()), keys={edit.id: torch.zeros(1, 2) for edit in edits})
    left = state.without(Searched(["e1"]))
    assert left.edit_ids == ("e0", "e2") == tuple(left.keys) and len(left.slots) == 2
    shared = replace(state, slots=(dense_slot(),))
    assert shared.sharing(Searched(["e0"])) == ("f",)
