"""A new edit is compared with all that are live, and those that it could speak in are asked again, no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from grounds import records
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.memory.state import MemoryState
from wise.training import reach
from wise.training.reach import Reach

LAX, STRICT = (0.05, 0.1), (0.95, 0.99)


@pytest.fixture(scope="module")
def wrapped() -> wise.WiseModel:
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    wrapped = wise.wrap(model, AutoTokenizer.from_pretrained(model_path()), wise.WiseConfig(mode="hybrid"))
    wrapped.edit([record.edit for record in records(10)])
    return wrapped


def with_floors(state: MemoryState, floors: tuple[float, float]) -> MemoryState:
    """Every edit asks for so much of a relation and of a subject."""
    assert state.key_space is not None and state.subject_space is not None
    slots = tuple(replace(slot, scores=(floors[0],), floors=None) for slot in state.slots)
    relation, subject = replace(state.key_space, floors=(floors[0],)), replace(state.subject_space, floors=(floors[1],))
    return replace(state, slots=slots, key_space=relation, subject_space=subject)


def spoken_in(wrapped: wise.WiseModel, state: MemoryState, fresh: set[str]) -> set[str]:
    """The other edits in whose prompt or answer one of `fresh` opens its gate, found by serving these alone."""
    found = set()
    encoder = wrapped.encoder
    with wrapped.serving(state.without([i for i in state.edit_ids if i not in fresh])):
        for edit in state.edits:
            ids = [*encoder.prompt(edit.prompt), *encoder.target(edit.prompt, edit.target)]
            route = wrapped.route(torch.tensor([ids]))
            if edit.id not in fresh and route is not None and bool(route.open.any()):
                found.add(edit.id)
    return found


@pytest.mark.parametrize("floors", [LAX, STRICT])
def test_all_whom_new_edits_speak_in_are_found(wrapped: wise.WiseModel, floors: tuple[float, float]) -> None:
    state = with_floors(wrapped.state, floors)
    found = wrapped.trainer.reach
    assert found is not None
    spoken: list[int] = []
    for number in range(3, 10):
        seen = state.without(state.edit_ids[number:])
        fresh = set(seen.edit_ids[-2:])
        there = spoken_in(wrapped, seen, fresh)
        assert there <= found.touched(seen, fresh)
        spoken.append(len(there))
    assert any(spoken) == (floors == LAX), "neither always nor never"


def test_few_are_asked_again_of_many_unlike_ones(wrapped: wise.WiseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = wrapped.state
    asked: list[set[str]] = []
    answers = type(wrapped.trainer)._answers

    def noted(self, state, edits, serve):  # noqa: ANN001, ANN202
        asked.append(set(edits))
        return answers(self, state, edits, serve)

    monkeypatch.setattr(type(wrapped.trainer), "_answers", noted)
    new = records(1, skip=30)[0].edit
    report = wrapped.edit(new)
    wrapped._serve(before)
    assert report.outcomes[0].status == "verified" and report.lost == ()
    assert asked[0] >= {new.id} and len(asked[0]) < 5, "ten are live"


def test_an_id_that_another_edit_takes_and_gives_back_is_read_anew(wrapped: wise.WiseModel) -> None:
    own, state = wrapped.trainer.reach, wrapped.state
    assert own is not None and state.key_space is not None and state.subject_space is not None
    first, *others = state.edits
    near = replace(others[-1], id=first.id)  # what the new edit asks itself
    found = []
    for edit in (first, near, first):
        now = with_floors(replace(state, edits=(edit, *others)), (0.9, 0.95))
        found.append(first.id in own.touched(now, {others[-1].id}))
        own.touched(now, {first.id})  # as the call does that writes it
    assert found == [False, True, False]


def test_what_was_read_before_is_found_as_if_read_now(wrapped: wise.WiseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits come and go, in blocks that are joined and thinned out."""
    monkeypatch.setattr(reach, "AT_ONCE", 3)
    trainer, state = wrapped.trainer, with_floors(wrapped.state, LAX)
    assert trainer.reach is not None
    parts = trainer.reach.spliced, trainer.reach.reader, trainer.reach.encoder, trainer.reach.background
    kept, ids, seen = Reach(*parts), state.edit_ids, []
    calls = (("0123", "3"), ("01234", "4"), ("024567", "67"), ("02456789", "89"), ("0145689", "1"), ("19", "9"))
    for live, fresh in calls:
        now = state.without([i for n, i in enumerate(ids) if str(n) not in live])
        new = {ids[int(n)] for n in fresh}
        found = kept.touched(now, new)
        assert found == Reach(*parts).touched(now, new)
        texts = [text for block in kept._blocks for text in block.texts]
        assert len(texts) == len(set(texts)) <= len(now.edits), "nothing of an edit that is gone"
        seen.append(len(found))
    assert any(seen)
