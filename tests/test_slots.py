"""What each kind of slot adds, alone and in its bank, and what does not fit together is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import slot_by_hand, wrap_tiny
from torch import Tensor

from wise.errors import ArtifactError, ConfigError
from wise.memory.grouped import NO_SLOT
from wise.memory.neurons import NeuronBank, spoken
from wise.memory.side_memory import KeyedBank
from wise.memory.slot import SLOT_KINDS, EditSlot, LowRankSlot, RankOneSlot, ValueSlot, make_bank

F, D = 12, 5
kinds = pytest.mark.parametrize("kind", ["value", "rank-one", "low-rank"])
KEY_SLOTS = torch.tensor([2, 0, 1, 2, 0, 2])  # slots have two, one and three keys


def activations(count: int = 9) -> Tensor:
    return torch.randn(count, F, generator=torch.Generator().manual_seed(1))


def slots(kind: str) -> list[EditSlot]:
    generator = torch.Generator().manual_seed(0)
    return [slot_by_hand(kind, i, activations(), D, 3.0, generator, n) for i, n in enumerate((2, 1, 3))]


def at(slot: EditSlot, place: int) -> EditSlot:
    """The slot with what it has at one of its places alone."""
    parts = {name: part[place : place + 1] for name, part in slot.tensors().items() if name != "features"}
    return replace(slot, **parts | {"places": torch.zeros(1, dtype=torch.long)})


def bank_of(kind: str, dtype: torch.dtype = torch.float32) -> KeyedBank:
    bank = make_bank(slots(kind), KEY_SLOTS, dtype)
    assert isinstance(bank, KeyedBank)
    return bank


def test_the_formula_of_each_kind() -> None:
    a = activations()
    value, one, low = (slots(kind)[2] for kind in ("value", "rank-one", "low-rank"))
    assert isinstance(value, ValueSlot) and isinstance(one, RankOneSlot) and isinstance(low, LowRankSlot)
    assert torch.equal(value.delta(a), value.values[0].expand(len(a), -1))
    weight = torch.outer(one.values[0, 0], one.keys[0, 0])
    torch.testing.assert_close(one.delta(a), a @ weight.T)
    torch.testing.assert_close(low.delta(a), (a @ low.keys[0].T).clamp(min=0) @ low.values[0])
    assert not torch.allclose(low.delta(a), a @ low.keys[0].T @ low.values[0]), "nothing was rectified"


@kinds
def test_a_bank_adds_for_each_key_what_its_slot_adds_at_that_place(kind: str) -> None:
    bank, held, a = bank_of(kind), slots(kind), activations(6)
    owners = [(2, 0), (0, 0), (1, 0), (2, 1), (0, 1), (2, 2)]
    for key, (slot, place) in enumerate(owners):
        wanted = at(held[slot], place).delta(a)
        torch.testing.assert_close(bank.of_keys(torch.full((6,), key), a), wanted)
        assert wanted.norm() > 0.1
        assert int(bank.places[slot, held[slot].places[place]]) == key
    assert bank.places.tolist() == [[1, -1, 4, -1, -1], [2, -1, -1, -1, -1], [0, -1, 3, -1, 5]]
    mixed = torch.tensor([3, NO_SLOT, 0, 5, NO_SLOT, 1])
    out = bank.of_keys(mixed, a)
    for row, key in enumerate(mixed.tolist()):
        wanted = torch.zeros(D) if key == NO_SLOT else at(held[owners[key][0]], owners[key][1]).delta(a[row])
        torch.testing.assert_close(out[row], wanted)
    slot = torch.tensor([2, 1, NO_SLOT, 0, 0, 2])
    first = torch.stack([torch.zeros(D) if s == NO_SLOT else held[s].delta(a[i]) for i, s in enumerate(slot.tolist())])
    torch.testing.assert_close(bank(a, slot), first)


@kinds
def test_tokens_at_which_none_speaks_add_nothing_and_precision_is_the_banks(kind: str) -> None:
    bank = bank_of(kind, torch.bfloat16)
    out = bank.of_keys(torch.full((4,), NO_SLOT), activations(4).double())
    assert out.dtype == torch.bfloat16 and not out.any()
    assert bank.of_keys(torch.tensor([0]), activations(1)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["rank-one", "low-rank"])
def test_neurons_pass_the_gradient_on_also_as_one_operator(kind: str) -> None:
    bank, key = bank_of(kind), torch.tensor([3, NO_SLOT, 0, 5])
    assert isinstance(bank, NeuronBank)
    found = []
    for how in (spoken, torch.ops.wise.spoken):
        x = activations(4).requires_grad_()
        how(x, key, bank.neurons, bank.keys, bank.weights, bank.rectified).sin().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)
    assert found[0] is not None and found[0][[0, 2, 3]].any() and not found[0][1].any()


@kinds
def test_a_slot_comes_back_from_its_tensors_to_the_bit(kind: str) -> None:
    for slot in slots(kind):
        again = SLOT_KINDS[kind].from_tensors(slot.tensors(), id=slot.id, edit_ids=slot.edit_ids, scores=slot.scores)
        assert type(again) is type(slot)
        assert all(torch.equal(t, again.tensors()[name]) for name, t in slot.tensors().items())


@kinds
def test_keys_have_floors_of_their_own_and_those_of_an_older_memory_the_score(kind: str) -> None:
    slot = slots(kind)[0]
    assert slot.floors is None and slot.key_floors.tolist() == pytest.approx([slot.threshold] * len(slot.places))
    own = replace(slot, floors=torch.arange(len(slot.places)) / 8)
    again = SLOT_KINDS[kind].from_tensors(own.tensors(), id=own.id, edit_ids=own.edit_ids, scores=own.scores)
    assert torch.equal(again.key_floors, own.floors)
    with pytest.raises(ArtifactError, match="floors .* and places .* do not fit together"):
        SLOT_KINDS[kind].from_tensors(
            own.tensors() | {"floors": torch.zeros(len(own.places) + 1)}, id=0, edit_ids=("e0",), scores=own.scores
        )


@kinds
@pytest.mark.parametrize("places", [[1, 2], [0, 0], [0, 1, 2], [[0, 1]], []])
def test_places_that_do_not_fit_are_refused(kind: str, places: list[Any]) -> None:
    tensors = slots(kind)[0].tensors() | {"places": torch.tensor(places, dtype=torch.long)}
    with pytest.raises(ArtifactError, match="do not fit together"):
        SLOT_KINDS[kind].from_tensors(tensors, id=0, edit_ids=("e0",))


@pytest.mark.parametrize("kind", ["rank-one", "low-rank"])
def test_neurons_that_do_not_fit_are_refused(kind: str) -> None:
    tensors = slots(kind)[0].tensors()
    for name, part in (("keys", tensors["keys"][:, :0]), ("values", tensors["values"][0])):
        with pytest.raises(ArtifactError, match=r"expected \[places, r, f\] and \[places, r, d\]"):
            SLOT_KINDS[kind].from_tensors(tensors | {name: part}, id=0, edit_ids=("e0",))
    with pytest.raises(ArtifactError, match="'keys'"):
        SLOT_KINDS[kind].from_tensors({"values": tensors["values"]}, id=0, edit_ids=("e0",))


def test_one_memory_serves_one_kind_and_keys_are_those_of_its_slots() -> None:
    mixed = [*slots("value")[:2], slots("rank-one")[2]]
    with pytest.raises(ConfigError, match="kinds .'rank-one', 'value'.: one memory serves one kind"):
        make_bank(mixed, KEY_SLOTS, torch.float32)
    with pytest.raises(ConfigError, match="slot 0 speaks at 2 places and its edit has 1 keys"):
        make_bank(slots("value"), KEY_SLOTS[:4], torch.float32)
    with pytest.raises(ConfigError, match="served by key: use mode='hybrid'"):
        make_bank(slots("low-rank"), None, torch.float32)


@pytest.mark.parametrize("slot", ["rank-one", "low-rank"])
def test_what_is_deleted_was_never_there(slot: str) -> None:
    wrapped = wrap_tiny("llama", f"hybrid {slot}", layer=1)
    left = wrapped.state.without(["e1"])
    assert [one.edit_ids for one in left.slots] == [("e0",), ("e2",)]
    for before, after in zip((wrapped.state.slots[0], wrapped.state.slots[2]), left.slots, strict=True):
        assert all(torch.equal(t, after.tensors()[name]) for name, t in before.tensors().items())
