"""Sharding: which edits share a slot, by the mode and by the order in which they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import reading, text, tiny_model, tiny_tokenizer

import wise
from wise.memory.slot import MaskedDenseSlot
from wise.memory.state import MemoryState
from wise.training.report import VERIFIED
from wise.training.writers.base import FEATURES_PER_EDIT, Sharding, SlotTask


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
def test_the_last_slot_is_filled_and_then_the_next(sizes: list[int], count: int, capacity: int | None) -> None:
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
    tasks = Sharding(capacity=capacity).tasks(state, fresh)
    assert [(t.id, t.edits, t.start) for t in tasks] == [(t.id, t.edits, t.start) for t in expected]


@pytest.mark.parametrize(
    ("settings", "capacity"),
    [
        ({"mode": "merge"}, None),
        ({"mode": "merge", "slot_capacity": 3}, None),
        ({"mode": "hybrid"}, 1),
        ({"mode": "hybrid", "slot_capacity": 3}, 1),
        ({"mode": "retrieve"}, 20),
        ({"mode": "retrieve", "slot_capacity": 3}, 3),
    ],
)
def test_in_merge_all_share_one_slot_in_hybrid_none_do_and_in_retrieve_as_many_as_the_layer_takes(
    settings: dict[str, Any], capacity: int | None
) -> None:
    config = wise.WiseConfig(**settings)
    assert Sharding.of(config, 20 * FEATURES_PER_EDIT) == Sharding(capacity=capacity)
    assert Sharding.of(config, 4).capacity == (8 if capacity == 20 else capacity), "however small the layer is"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("merge", [(0, 1, 2, 3)]), ("retrieve", [(0, 1), (2, 3)]), ("hybrid", [(0,), (1,), (2,), (3,)])],
)
def test_edits_of_several_calls_are_held_as_the_mode_says(mode: str, expected: list[tuple[int, ...]]) -> None:
    fitting = {"learning_rate": 0.03, "max_steps": 100, "prefixes": 1, "layer": 1, "terminator": "", "bos": False}
    config = wise.WiseConfig(mode=mode, slot_capacity=2, **fitting)
    base = tiny_model("llama", hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    model = wise.wrap(base, tiny_tokenizer(), config, **reading(mode))
    edits = []
    for i in range(4):
        subject = text([5 + 7 * i])
        edits.append(wise.Edit(id=str(i), prompt=f"{subject} w80 w{30 + i}", subject=subject, target=text([60 + i])))
    for part in (edits[:1], edits[1:]):
        assert model.edit(part).count(VERIFIED) == len(part)
    assert [slot.edit_ids for slot in model.state.slots] == [tuple(map(str, ids)) for ids in expected]
