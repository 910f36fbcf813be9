"""Invariant 3: what is deleted, replaced or rolled back was never there, bit for bit: tensors, files and logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny import BATCH, memory_by_hand, put, reading, same_tensors, text, tiny_model, tiny_tokenizer, wrap_tiny

import wise
from wise.errors import EditError
from wise.memory.key_space import KeySpace
from wise.memory.state import MemoryState
from wise.training.report import VERIFIED
from wise.training.writers.base import SlotTask

WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
CAPACITY = 2
SHARED = ("merge", "retrieve")


def wrapped(mode: str = "hybrid", **settings: Any) -> wise.WiseModel:
    fitting = {"learning_rate": 0.03, "max_steps": 100, "prefixes": 1, "slot_capacity": CAPACITY, "layer": 1}
    config = wise.WiseConfig(mode=mode, terminator="", bos=False, **fitting | settings)
    return wise.wrap(tiny_model("llama", **WIDE), tiny_tokenizer(), config, **reading(mode))


@cache
def pair(mode: str) -> tuple[wise.WiseModel, wise.WiseModel]:
    """One to put sequences of calls to, and one to build afresh what they come to."""
    return wrapped(mode), wrapped(mode)


def edit(number: int, version: int = 0, **fields: Any) -> wise.Edit:
    """Versions of one number ask the same and want something else."""
    first = 5 + 7 * number
    target = text([60 + 3 * number + 7 * version, 61 + 2 * number + version])
    prompt = text([first, first + 1, first + 2, 30 + number])
    about = {"id": f"e{number}.{version}", "prompt": prompt, "target": target, "subject": text([first])}
    return wise.Edit(**about | fields)


def logits(model: wise.WiseModel, state: MemoryState | None = None) -> torch.Tensor:
    rows = [*BATCH, [5, 6, 7, 30, 60, 61], [12, 13, 14, 31, 63, 63], [19, 20, 21, 32, 66, 65]]
    with torch.no_grad(), model.serving(model.state if state is None else state):
        return torch.cat([model(torch.tensor([row]), use_cache=False).logits[0] for row in rows])


def differing(one: MemoryState, other: MemoryState) -> list[str]:
    """What two memories do not have alike to the last bit."""
    found = [] if one.edits == other.edits else ["edits"]
    described = [[(s.id, s.kind, s.edit_ids, s.scores) for s in state.slots] for state in (one, other)]
    found += [] if described[0] == described[1] else ["slots"]
    pairs = zip(one.slots, other.slots, strict=False)
    found += [f"slot {a.id}" for a, b in pairs if not same_tensors(a.tensors(), b.tensors())]
    by_id = [{i: state.keys[i] for i in sorted(state.keys)} for state in (one, other)]
    found += [] if same_tensors(*by_id) else ["keys"]
    spaces = [{} if state.key_space is None else state.key_space.tensors() for state in (one, other)]
    return found if same_tensors(*spaces) else [*found, "key_space"]


def files(model: wise.WiseModel, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def unable(model: wise.WiseModel, steps: int = 0) -> None:
    """Leaves fitting no steps, of which trying harder makes no more, or gives them back."""
    object.__setattr__(model.trainer.config, "max_steps", steps)  # the same one that fitting reads


# -- any sequence of calls --------------------------------------------------------------------

NUMBERS = st.integers(0, 3)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), NUMBERS, st.integers(0, 1)),
        st.tuples(st.just("delete"), st.sets(NUMBERS, min_size=1, max_size=2), st.just(0)),
        st.tuples(st.just("replace"), NUMBERS, st.integers(2, 3)),
        st.tuples(st.just("snapshot"), st.just(0), st.just(0)),
        st.tuples(st.just("rollback"), st.integers(0, 2), st.just(0)),
    ),
    min_size=2,
    max_size=6,
)
BEGINNING = [("edit", 0, 0), ("edit", 1, 0), ("edit", 2, 0), ("snapshot", 0, 0)]
some = settings(
    max_examples=8,
    phases=[Phase.generate],  # to look for a shorter sequence that fails takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a slot came about: what it was written with since it was last written from nothing."""

    writes: tuple[tuple[int, tuple[wise.Edit, ...]], ...]
    """The number it then had, and the edits it then held."""

    @property
    def edits(self) -> tuple[wise.Edit, ...]:
        return self.writes[-1][1]

    def holding(self, number: int, edits: tuple[wise.Edit, ...]) -> Recipe:
        """Itself where it holds these; written on where others have joined; begun anew where one has left."""
        if edits == self.edits:
            return self
        joined = edits[: len(self.edits)] == self.edits
        return Recipe(writes=(*(self.writes if joined else ()), (number, edits)))


def forgotten(recipes: Sequence[Recipe], gone: set[str]) -> list[Recipe]:
    """A slot that held one of them begins anew with the others; one that held no other goes."""
    left: list[Recipe] = []
    for recipe in recipes:
        kept = tuple(one for one in recipe.edits if one.id not in gone)
        if kept:
            left.append(recipe.holding(len(left), kept))
    return left


def written(recipes: Sequence[Recipe], one: wise.Edit, capacity: int | None) -> list[Recipe]:
    """The last slot is filled, then a new one is opened."""
    if recipes and (capacity is None or len(recipes[-1].edits) < capacity):
        *before, last = recipes
        return [*before, last.holding(len(before), (*last.edits, one))]
    return [*recipes, Recipe(writes=((len(recipes), (one,)),))]


def afresh(model: wise.WiseModel, recipes: Sequence[Recipe], edits: Sequence[wise.Edit]) -> MemoryState:
    """The memory that recipes give, written with nothing but what is in them."""
    if not edits:
        return MemoryState()
    slots, keys = [], {}
    for number, recipe in enumerate(recipes):
        slot = None
        for then, members in recipe.writes:
            ((slot, outcomes),) = model.trainer.writer.write([SlotTask(id=then, edits=members, start=slot)])
            scores = {one.id: outcome.score for one, outcome in zip(members, outcomes, strict=True)}
            keys |= {one.id: outcome.keys for one, outcome in zip(members, outcomes, strict=True)}
            slot = slot.with_scores(scores)
        slots.append(replace(slot, id=number))
    return MemoryState(edits=tuple(edits), slots=tuple(slots), keys=keys, key_space=model.trainer.key_space)


def run(model: wise.WiseModel, calls: Sequence[tuple[str, Any, int]], capacity: int | None) -> tuple[Any, Any]:
    """After `BEGINNING` makes the calls that can be made; what edits remain, and how their slots came about."""
    model.reset()
    edits: list[wise.Edit] = []
    recipes: list[Recipe] = []
    taken: list[tuple[MemoryState, list[wise.Edit], list[Recipe]]] = []
    for verb, what, version in (*BEGINNING, *calls):
        held = {int(one.id[1]): one for one in edits}
        if verb == "snapshot":
            taken.append((model.snapshot(), edits, recipes))
        elif verb == "rollback" and taken:
            state, edits, recipes = taken[what % len(taken)]
            model.rollback(state)
        elif verb == "delete" and what & set(held):
            gone = {held[number].id for number in what & set(held)}
            assert model.delete(gone).dropped == ()
            edits, recipes = [one for one in edits if one.id not in gone], forgotten(recipes, gone)
        elif (verb == "edit" and edit(what, version).id not in model.state.edit_ids) or (
            verb == "replace" and what in held
        ):
            # Half of the replacements have the id of what they replace, and ask it in other words.
            words = {"prompt": text([90, 5 + 7 * what, 6 + 7 * what, 30 + what])} if version == 3 else {}
            one = edit(what, version, **words | ({"id": held[what].id} if verb == "replace" else {}))
            report = model.edit(one) if verb == "edit" else model.replace(one)
            assert (report.count(VERIFIED), report.dropped) == (1, ())
            gone = {old.id for old in edits if old.id == one.id or old.prompt == one.prompt}
            assert set(report.replaced) == gone
            asked_alike = {old.id for old in edits if old.subject == one.subject} - gone
            superseded = {conflict.superseded for conflict in report.conflicts}
            assert superseded == (asked_alike if model.wise_config.mode == "hybrid" else set())
            edits = [*(old for old in edits if old.id not in gone | superseded), one]
            recipes = written(forgotten(recipes, gone), one, capacity)
        assert model.edits == tuple(edits)
    return edits, recipes


@some
@given(CALLS)
def test_any_sequence_of_calls_in_hybrid_comes_to_what_the_remaining_edits_alone_make(calls: Any) -> None:
    model, fresh = pair("hybrid")
    edits, _ = run(model, calls, 1)
    fresh.reset()
    for one in edits:
        assert fresh.edit(one).count(VERIFIED) == 1
    assert differing(model.state, fresh.state) == []
    assert torch.equal(logits(model), logits(fresh))


@pytest.mark.slow
@pytest.mark.parametrize("mode", SHARED)
@some
@given(CALLS)
def test_any_sequence_of_calls_comes_to_slots_that_never_met_what_is_gone(mode: str, calls: Any) -> None:
    model, fresh = pair(mode)
    edits, recipes = run(model, calls, None if mode == "merge" else CAPACITY)
    left = {one.id for one in edits}
    assert all(one.id in left for recipe in recipes for _, members in recipe.writes for one in members)
    expected = afresh(fresh, recipes, edits)
    assert differing(model.state, expected) == []
    assert torch.equal(logits(model), logits(fresh, expected))


# -- what a single call does ------------------------------------------------------------------


def test_edits_of_one_batch_are_taken_out_as_if_only_the_others_had_been_kept(tmp_path: Path) -> None:
    model = wrapped()
    assert model.edit([edit(i) for i in range(4)]).count(VERIFIED) == 4
    whole, before = model.snapshot(), logits(model)
    report = model.delete(["e1.0", "e2.0"])
    assert (report.deleted, report.rewritten, report.dropped) == (("e1.0", "e2.0"), (), ())
    kept = (whole.slots[0], replace(whole.slots[3], id=1))
    keys = {i: whole.keys[i] for i in ("e0.0", "e3.0")}
    expected = MemoryState(edits=(edit(0), edit(3)), slots=kept, keys=keys, key_space=whole.key_space)
    assert differing(model.state, expected) == [] and differing(whole, expected) != []
    assert torch.equal(logits(model), logits(model, expected)) and not torch.equal(logits(model), before)
    found = files(model, tmp_path / "deleted")
    put(model, expected)
    assert files(model, tmp_path / "expected") == found
    model.rollback(whole)
    assert torch.equal(logits(model), before)
    assert files(model, tmp_path / "whole") != found


@pytest.mark.parametrize("mode", ["hybrid", *SHARED])
def test_with_all_edits_gone_nothing_shows_that_there_were_any(mode: str, tmp_path: Path) -> None:
    model = wrapped(mode)
    base, never = logits(model), files(model, tmp_path / "never")
    model.edit([edit(0), edit(1)])
    assert not torch.equal(logits(model), base)
    model.delete({"e0.0", "e1.0"})
    assert torch.equal(logits(model), base) and files(model, tmp_path / "gone") == never
    unable(model)
    model.edit([edit(2), edit(3)])
    unable(model, steps=100)
    assert model.edits == () and files(model, tmp_path / "failed") == never


def test_what_is_left_of_a_shared_slot_is_what_one_call_with_the_others_writes() -> None:
    model, fresh = wrapped("merge"), wrapped("merge")
    model.edit([edit(i) for i in range(4)])
    traced = model.state.without(["e1.0"])
    report = model.delete("e1.0")
    assert (report.deleted, report.rewritten) == (("e1.0",), ("e0.0", "e2.0", "e3.0"))
    fresh.edit([edit(0), edit(2), edit(3)])
    assert differing(model.state, fresh.state) == []
    assert torch.equal(logits(model), logits(fresh))
    assert "slot 0" in differing(traced, fresh.state), "a trace is what a slot keeps that is not written anew"
    assert not torch.equal(logits(model, traced), logits(fresh))


def test_an_edit_that_cannot_be_written_without_the_deleted_one_is_lost_and_said_so() -> None:
    model = wrapped("merge")
    model.edit([edit(0), edit(1)])
    unable(model)
    report = model.delete("e0.0")
    assert (report.deleted, report.rewritten, report.dropped) == (("e0.0",), (), ("e1.0",))
    assert model.edits == () and model.state.slots == ()


def test_a_replacement_that_fails_leaves_the_old_one_as_it_was() -> None:
    model = wrapped()
    model.edit([edit(0), edit(1)])
    state, newer = model.snapshot(), edit(5, id="e0.0")
    unable(model)
    report = model.replace(newer)
    assert report.failed == ("e0.0",) and report.replaced == () and report.dropped == ()
    assert differing(model.state, state) == []
    unable(model, steps=100)
    report = model.replace(newer)
    assert report.replaced == ("e0.0",) and model.edits == (edit(1), newer)


def test_one_edit_can_take_the_place_of_two() -> None:
    model = wrapped()
    model.edit([edit(0), edit(1), edit(2)])
    both = edit(1, id="e0.0", target=text([80, 81]))  # the id of one, the prompt of another
    assert set(model.replace(both).replaced) == {"e0.0", "e1.0"}
    assert model.edits == (edit(2), both)


# -- what is refused --------------------------------------------------------------------------


def test_what_is_not_live_is_neither_deleted_nor_replaced() -> None:
    model = wrap_tiny("llama", "hybrid")
    state, memory = model.state, model.layer.memory
    with pytest.raises(EditError, match="'e9' is not live: known: e0, e1, e2"):
        model.delete(["e0", "e9"])
    with pytest.raises(EditError, match="no edit was named"):
        model.delete([])
    with pytest.raises(EditError, match="no live edit has the id 'e5.0'"):
        model.replace(edit(5))
    with pytest.raises(EditError, match="list .* was given; a wise.Edit"):
        model.replace([edit(5)])  # type: ignore[arg-type]
    assert model.state is state and model.layer.memory is memory
    model.delete("e1")
    with pytest.raises(EditError, match="'e1' is not live"):
        model.delete("e1")


def test_a_snapshot_of_another_model_is_refused() -> None:
    model, other = wrap_tiny("llama", "hybrid"), wrap_tiny("llama", "hybrid")
    own, logits_then = model.snapshot(), logits(model)
    model.delete("e0")
    for foreign in (other.snapshot(), memory_by_hand(model), replace(own), model.state, None):
        with pytest.raises(EditError, match="no snapshot of this model"):
            model.rollback(foreign)  # type: ignore[arg-type]
    assert model.state.edit_ids == ("e1", "e2")
    model.rollback(own)
    assert model.state is own and torch.equal(logits(model), logits_then)
    copied = copy.deepcopy(model)
    own_of_copy = copied.snapshot()
    copied.delete("e0")
    copied.rollback(own_of_copy)
    assert torch.equal(logits(copied), logits_then)
    model.unwrap()
    for call in (lambda: model.rollback(own), lambda: model.delete("e0"), lambda: model.replace(edit(0))):
        with pytest.raises(EditError, match="unwrapped"):
            call()


# -- spaces -----------------------------------------------------------------------------------


def test_keys_that_are_live_are_never_compared_in_another_space() -> None:
    """A snapshot may bring a space that was measured elsewhere, and what is edited then goes by it."""
    model = wrapped("retrieve")
    assert model.edit(edit(0)).count(VERIFIED) == 1
    space = model.state.key_space
    assert isinstance(space, KeySpace)
    elsewhere = replace(model.state, key_space=replace(space, mean=space.mean + 1e-6))
    model.reset()
    put(model, elsewhere)
    model.edit(edit(1))
    assert model.state.key_space is elsewhere.key_space and model.state.edit_ids == ("e0.0", "e1.0")


@pytest.mark.parametrize("mode", ["hybrid", "retrieve"])
def test_a_memory_read_from_disk_is_edited_on_as_the_one_that_was_saved(mode: str, tmp_path: Path) -> None:
    model = wrapped(mode)
    model.edit([edit(0), edit(1)])
    model.save_pretrained(tmp_path)
    base = tiny_model("llama", **WIDE)
    again = wise.WiseModel.from_pretrained(tmp_path, base, tiny_tokenizer(), **reading(mode))
    assert differing(again.state, model.state) == []
    for one in (model, again):
        assert one.edit(edit(2)).count(VERIFIED) == 1
        one.delete("e0.0")
    assert differing(again.state, model.state) == []
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("mode", ["hybrid", *SHARED])
def test_of_a_memory_read_from_disk_nothing_is_left_when_its_edits_are_gone(mode: str, tmp_path: Path) -> None:
    model = wrap_tiny("llama", mode)
    model.save_pretrained(tmp_path / "memory")
    again = wise.WiseModel.from_pretrained(
        tmp_path / "memory", tiny_model("llama"), tiny_tokenizer(), **reading(mode)
    )
    again.reset()
    assert differing(again.state, MemoryState()) == []
    assert files(again, tmp_path / "gone") == files(wrap_none(mode), tmp_path / "never")


def wrap_none(mode: str) -> wise.WiseModel:
    """As `wrap_tiny` wraps, without a memory."""
    model = wrap_tiny("llama", mode)
    model.reset()
    return wise.wrap(model.unwrap(), tiny_tokenizer(), model.wise_config, **reading(mode))


def test_a_snapshot_that_is_taken_while_another_thread_edits_is_one_of_the_model() -> None:
    class Edited(wise.WiseModel):
        """Another thread has edited it whenever its state was looked at."""

        @property
        def state(self) -> MemoryState:
            self._now, before = replace(self._now), self._now
            return before

        @state.setter
        def state(self, state: MemoryState) -> None:
            self._now = state

    model = Edited(tiny_model("llama", **WIDE), tiny_tokenizer(), wise.WiseConfig(mode="retrieve", layer=1))
    state = model.snapshot()
    assert state is not model.snapshot()
    model.rollback(state)


@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
def test_blocks_that_serve_other_memories_leave_what_is_live_in_place_however_they_overlap(mode: str) -> None:
    model = wrap_tiny("llama", mode)
    memory, other = model.layer.memory, memory_by_hand(model, seed=1)
    assert memory is not None

    @contextmanager
    def block(state: MemoryState) -> Iterator[None]:
        with model.serving(state):
            assert model.served is state or not state.edits
            yield

    first, second = block(MemoryState()), block(other)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert model.served is other
    second.__exit__(None, None, None)
    assert model.layer.memory is memory
    with block(other):
        with block(MemoryState()), pytest.raises(RuntimeError), block(other):
            raise RuntimeError
        assert model.served is other
    assert model.layer.memory is memory


@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
def test_what_is_edited_while_another_memory_is_served_is_live_after_it(mode: str) -> None:
    model = wrap_tiny("llama", mode)
    new = memory_by_hand(model, seed=1)
    with model.disabled():
        put(model, new)
        assert model.served.edits == () and model.state is new
    assert model.served is new
    model.reset()
    with model.serving(new):
        assert model.served is new
    assert model.served.edits == () and model.layer.memory is None
