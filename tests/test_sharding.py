"""Sharding: every edit in one slot, no slot too full, like with like, and no edit lost to another that joins it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import same_tensors, text, tiny_model, tiny_tokenizer
from torch import Tensor
from torch.nn.functional import normalize

import wise
from wise.memory.slot import MaskedDenseSlot
from wise.memory.state import MemoryState
from wise.training.report import VERIFIED
from wise.training.sharding import ByMeaning, ByOrder, grouped, halves
from wise.training.writers.base import SlotTask

WIDE: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2},
    "gpt2": {"n_embd": 64, "n_layer": 2},
}
architectures = pytest.mark.parametrize("model_type", sorted(WIDE))
Groups = Mapping[int, Sequence[str]]


def kinds(count: int, size: int, seed: int = 0, spread: float = 0.05) -> dict[str, Tensor]:
    """Unit keys of edits of so many kinds, at right angles but for a little noise; one of each kind after the other."""
    noise = torch.randn(size, count, 16, generator=torch.Generator().manual_seed(seed)) * spread
    keys = normalize(torch.eye(16)[:count] + noise, dim=-1)
    return {f"{kind}.{number}": keys[number, kind] for number in range(size) for kind in range(count)}


def problems(groups: Groups, ids: Sequence[str], capacity: int) -> list[str]:
    """What is wrong with the edits of each slot."""
    held = [edit_id for members in groups.values() for edit_id in members]
    found = [f"{i} is in {held.count(i)} slots" for i in ids if held.count(i) != 1]
    found += [f"slot {n} holds {len(m)}" for n, m in groups.items() if not 0 < len(m) <= capacity]
    found += [f"slot {n} is out of order" for n, m in groups.items() if list(m) != sorted(m, key=ids.index)]
    return found + (["numbers"] if sorted(groups) != list(range(len(groups))) else [])


def torn(groups: Groups) -> set[str]:
    """The kinds of which edits are in several slots."""
    slots = [{edit_id.split(".")[0] for edit_id in members} for members in groups.values()]
    return {kind for kind in set().union(*slots) if sum(kind in slot for slot in slots) > 1}


# -- by meaning, on keys alone ----------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 5), st.integers(0, 2**20), st.floats(0, 2), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_edit_is_in_one_slot_and_no_slot_is_too_full(
    capacity: int, seed: int, spread: float, calls: list[int]
) -> None:
    keys = kinds(4, 9, seed, spread)
    groups: dict[int, list[str]] = {}
    fresh = list(keys)
    for count in calls:
        came, fresh = fresh[:count], fresh[count:]
        before, groups = groups, grouped(groups, keys, came, capacity, len(groups))
        ids = [i for i in keys if i not in fresh]
        assert problems(groups, ids, capacity) == []
        # A split leaves a slot's oldest edit in it, so a number never comes to mean other edits altogether.
        assert all(groups[number][0] == members[0] for number, members in before.items())


def test_the_check_sees_an_edit_that_is_missing_twice_there_or_one_too_many() -> None:
    ids = ["a", "b", "c"]
    assert problems({0: ["a", "b"], 1: ["c"]}, ids, 2) == []
    assert problems({0: ["a", "b"]}, ids, 2) == ["c is in 0 slots"]
    assert problems({0: ["a", "b"], 1: ["b", "c"]}, ids, 2) == ["b is in 2 slots"]
    assert problems({0: ["a", "b", "c"]}, ids, 2) == ["slot 0 holds 3"]
    assert problems({0: ["b", "a"], 1: ["c"]}, ids, 2) == ["slot 0 is out of order"]
    assert problems({0: ["a", "b"], 2: ["c"]}, ids, 2) == ["numbers"]


@pytest.mark.parametrize("call", [1, 7, 32])
def test_edits_of_one_kind_share_a_slot_however_they_come(call: int) -> None:
    keys, groups = kinds(4, 8), dict[int, list[str]]()
    ids = list(keys)
    for start in range(0, len(ids), call):
        groups = grouped(groups, keys, ids[start : start + call], 8, len(groups))
    assert problems(groups, ids, 8) == [] and torn(groups) == set()
    assert torn({n: ids[at : at + 8] for n, at in enumerate(range(0, len(ids), 8))}) == {"0", "1", "2", "3"}
    assert torn(grouped({}, dict(zip(ids, reversed(keys.values()), strict=True)), ids, 2, 0)) != set()


def test_a_kind_too_large_for_a_slot_is_split_and_all_of_it_is_kept() -> None:
    keys = kinds(1, 9)
    ids = list(keys)
    full = {0: ids[:8]}
    groups = grouped(full, keys, ids[8:], 8, 1)
    assert problems(groups, ids, 8) == [] and len(groups) == 2 and groups[0][0] == ids[0]
    assert full == {0: ids[:8]}, "what was held is not changed in place"
    unlike = keys | {ids[8]: -keys[ids[0]]}
    assert grouped(full, unlike, ids[8:], 8, 1) == {0: ids[:8], 1: ids[8:]}, "nothing is near: a slot of its own"
    assert grouped({0: ids[:7]}, unlike, ids[8:], 8, 1) == {0: [*ids[:7], ids[8]]}, "unless one has room"


def test_halves_are_the_two_kinds_that_there_are() -> None:
    keys = kinds(2, 5)
    ids = sorted(keys, key=lambda i: i.split(".")[1])
    for members in (ids, ids[::-1], ids[1:]):
        first = members[0].split(".")[0]
        mine = [i for i in members if i.split(".")[0] == first]
        assert halves(members, keys) == (mine, [i for i in members if i not in mine])
    same = dict.fromkeys(ids, keys[ids[0]])
    assert halves(ids, same) == (ids[:5], ids[5:])
    assert halves(ids[:2], same) == (ids[:1], ids[1:2])


# -- by order ---------------------------------------------------------------------------------


def held_by(sizes: Sequence[int]) -> MemoryState:
    """Slots with so many edits each."""
    weight, masks = torch.zeros(2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    edits, slots = [], []
    for number, size in enumerate(sizes):
        own = [wise.Edit(id=f"{number}.{i}", prompt=f"w{number} w{i}", target="w4") for i in range(size)]
        ids = tuple(one.id for one in own)
        slots.append(MaskedDenseSlot(id=number, edit_ids=ids, scores=(1.0,) * size, masks=masks, weight=weight))
        edits += own
    return MemoryState(edits=tuple(edits), slots=tuple(slots))


@given(st.lists(st.integers(1, 4), max_size=3), st.integers(1, 9), st.sampled_from([1, 3, 4, None]))
def test_by_order_the_last_slot_is_filled_and_then_the_next(sizes: list[int], count: int, capacity: int | None) -> None:
    state = held_by(sizes)
    fresh = [wise.Edit(id=f"new{i}", prompt=f"w9 w{i}", target="w5") for i in range(count)]
    expected: list[SlotTask] = []
    for one in fresh:
        last = expected[-1] if expected else None
        if last is None and state.slots:
            own = tuple(e for e in state.edits if e.id in state.slots[-1].edit_ids)
            last = SlotTask(id=len(sizes) - 1, edits=own, start=state.slots[-1])
        if last is not None and (capacity is None or len(last.edits) < capacity):
            expected = [*expected[:-1], replace(last, edits=(*last.edits, one))]
        else:
            expected.append(SlotTask(id=len(sizes) + sum(task.start is None for task in expected), edits=(one,)))
    tasks = ByOrder(capacity=capacity).tasks(state, fresh)
    assert [(t.id, t.edits, t.start) for t in tasks] == [(t.id, t.edits, t.start) for t in expected]


# -- in a model -------------------------------------------------------------------------------


def wrapped(model_type: str = "llama", **changes: Any) -> wise.WiseModel:
    fitting = {"learning_rate": 0.03, "max_steps": 100, "prefixes": 1, "layer": 1, "terminator": "", "bos": False}
    config = wise.WiseConfig(**fitting | {"sharding": "meaning", "slot_capacity": 2} | changes)
    return wise.wrap(tiny_model(model_type, **WIDE[model_type]), tiny_tokenizer(), config)


def edit(kind: int, number: int) -> wise.Edit:
    """Edits of a kind want the same, and ask it in the same words but for the first: in each model near enough."""
    prompt = text([70 + 3 * number, *(5 + (17 * kind + 7 * i) % 60 for i in range(20))])
    return wise.Edit(id=f"{kind}.{number}", prompt=prompt, target=text([60 + 5 * kind, 61 + 2 * kind]))


STREAM = [edit(kind, number) for number in range(2) for kind in range(3)]


def slots_of(model: wise.WiseModel) -> dict[int, tuple[str, ...]]:
    return {slot.id: slot.edit_ids for slot in model.state.slots}


@architectures
@pytest.mark.parametrize("call", [2, 6])
def test_edits_that_ask_alike_share_a_slot_and_all_are_said(model_type: str, call: int) -> None:
    model = wrapped(model_type)
    for start in range(0, len(STREAM), call):
        report = model.edit(STREAM[start : start + call])
        assert report.count(VERIFIED) == call and report.lost == ()
    groups = slots_of(model)
    assert problems(groups, [one.id for one in STREAM], 2) == [] and torn(groups) == set()
    assert [answer.text for answer in model.ask([one.prompt for one in STREAM])] == [one.target for one in STREAM]
    by_order = wrapped(model_type, sharding="order")
    by_order.edit(STREAM)
    assert torn(slots_of(by_order)) == {"0", "1", "2"}


def test_a_slot_that_no_edit_joins_or_leaves_is_not_written() -> None:
    model = wrapped()
    model.edit([edit(0, 0), edit(0, 1), edit(1, 0)])
    full, other = model.state.slots
    assert (full.edit_ids, other.edit_ids) == (("0.0", "0.1"), ("1.0",))
    model.edit(edit(1, 1))
    again, joined = model.state.slots
    assert same_tensors(again.tensors(), full.tensors()) and again.scores == full.scores
    assert joined.edit_ids == ("1.0", "1.1")
    assert same_tensors({"masks": joined.tensors()["masks"]}, {"masks": other.tensors()["masks"]})
    assert not same_tensors(joined.tensors(), other.tensors())


@pytest.mark.parametrize("sharding", ["meaning", "order"])
def test_an_edit_that_would_cost_one_of_its_slot_goes_elsewhere(
    sharding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By order it has no other place to go, and the loss is told."""
    model = wrapped(sharding=sharding, slot_capacity=4)
    model.edit([edit(0, 0), edit(0, 1)])
    (slot,) = model.state.slots
    verified = type(model.trainer)._verified

    def strict(trainer: Any, state: MemoryState, *rest: Any) -> Any:
        """As if the first edit could not share its slot with a third."""
        crowded = any("0.0" in slot.edit_ids and len(slot.edit_ids) > 2 for slot in state.slots)
        return verified(trainer, state.without(["0.0"]) if crowded else state, *rest)

    monkeypatch.setattr(type(model.trainer), "_verified", strict)
    report = model.edit(edit(0, 2))
    assert report.count(VERIFIED) == 1
    if sharding == "order":
        assert report.lost == ("0.0",) and slots_of(model) == {0: ("0.1", "0.2")}
    else:
        assert report.lost == () and slots_of(model) == {0: ("0.0", "0.1"), 1: ("0.2",)}
        assert same_tensors(model.state.slots[0].tensors(), slot.tensors())


def test_one_that_spares_all_that_it_was_told_is_itself() -> None:
    sharding = wrapped().trainer.sharding
    assert isinstance(sharding, ByMeaning)
    assert sharding.sparing([]) is sharding
    spared = sharding.sparing(["a"])
    assert spared is not sharding and spared.sparing(["a"]) is spared
    assert spared.sparing(["b"]).spared == {"a", "b"}  # type: ignore[attr-defined]


def test_a_memory_read_from_disk_is_sharded_on_as_the_one_that_was_saved(tmp_path: Path) -> None:
    model, more = wrapped(), [edit(0, 1), edit(3, 0), edit(2, 1)]
    model.edit(STREAM[:3])
    model.save_pretrained(tmp_path)
    base = tiny_model("llama", **WIDE["llama"])
    again = wise.WiseModel.from_pretrained(base, tiny_tokenizer(), tmp_path)
    assert again.wise_config.sharding == "meaning"
    for one in (model, again):
        assert one.edit(more).count(VERIFIED) == 3
    assert slots_of(model) == slots_of(again) and torn(slots_of(again)) == set()
    for mine, theirs in zip(model.state.slots, again.state.slots, strict=True):
        assert same_tensors(mine.tensors(), theirs.tensors()) and mine.scores == theirs.scores
