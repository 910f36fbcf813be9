"""The oracle opens where it is told and nowhere else, and what it answers is the ceiling of the router in place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from routed import EDITED
from routed import edited as edited_model
from routed import records as known_records
from tiny import BATCH, generated, padded, put, tiny_model, wrap_tiny
from torch import Tensor
from torch.utils.hooks import RemovableHandle

import wise
from wise.errors import ConfigError
from wise.lab.eval.routing.oracle import (
    ForcedRouter,
    OracleRouter,
    consulting,
    measure_oracle,
    slots_of,
    speaking_places,
)
from wise.router.hybrid import HybridRouter

NOWHERE = torch.zeros(3, 8, dtype=torch.bool)
SLOTS = torch.tensor([2, 0, 1])


def follow(wrapped: wise.WiseModel) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], RemovableHandle]:
    """What goes into the layer, and (base's output, output) of each forward from now on."""
    into: list[Tensor] = []
    out: list[tuple[Tensor, Tensor]] = []

    def note(_: object, args: tuple[Tensor], result: Tensor) -> None:
        into.append(args[0])
        out.append((wrapped.layer.base_module(args[0]), result))

    return into, out, wrapped.layer.register_forward_hook(note)


@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_where_no_edit_is_to_speak_it_is_the_base_bit_for_bit(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode)
    base = tiny_model("llama")
    with consulting(wrapped, OracleRouter(torch.zeros(3, dtype=torch.long), NOWHERE)) as model:
        assert torch.equal(model(**padded(BATCH)).logits, base(**padded(BATCH)).logits)
    with consulting(wrapped, OracleRouter(torch.zeros(3, dtype=torch.long), NOWHERE)) as model:
        told = generated(model, BATCH)
    assert told == generated(base, BATCH)
    with consulting(wrapped, OracleRouter(torch.zeros(3, dtype=torch.long), ~NOWHERE)) as model:
        assert generated(model, BATCH) != told


def test_it_opens_the_right_slot_at_the_right_place() -> None:
    wrapped = wrap_tiny("llama")
    speaking = torch.tensor([[True, False, True], [False, True, False], [True, True, False]])
    into, out, handle = follow(wrapped)
    with consulting(wrapped, OracleRouter(SLOTS, speaking)) as model:
        model.generate(**padded(BATCH), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    handle.remove()
    assert len(into) == 6 and wrapped.layer.memory is not None
    weights = wrapped.layer.memory.bank.weights
    for place, (activation, (plain, spoken)) in enumerate(zip(into, out, strict=True)):
        assert activation.shape[1] == (max(map(len, BATCH)) if place == 0 else 1)
        for row in range(3):
            opened = place < 3 and bool(speaking[row, place])
            expected = plain[row].clone()
            if opened:
                expected[-1] += weights[SLOTS[row]] @ activation[row, -1]
            assert torch.allclose(spoken[row], expected, atol=1e-4)
            assert torch.equal(spoken[row], plain[row]) != opened


def test_the_router_comes_back_also_after_an_error() -> None:
    wrapped = wrap_tiny("llama")
    before = wrapped.layer.memory
    with pytest.raises(KeyError), consulting(wrapped, OracleRouter(SLOTS, NOWHERE)):
        assert wrapped.layer.memory is not before
        raise KeyError
    assert wrapped.layer.memory is before
    bare = wrap_tiny("llama", None)
    with pytest.raises(ConfigError, match="no edit is live"), consulting(bare, OracleRouter(SLOTS, NOWHERE)):
        pass


def test_forwards_that_it_cannot_follow_are_refused() -> None:
    wrapped = wrap_tiny("llama")
    with consulting(wrapped, OracleRouter(SLOTS, NOWHERE)) as model:
        model(**padded(BATCH))
        with pytest.raises(ConfigError, match="one greedy"):
            model(**padded(BATCH))
    with consulting(wrapped, OracleRouter(SLOTS, NOWHERE)) as model, pytest.raises(ConfigError, match="one greedy"):
        model(torch.tensor([[5, 6, 7, 8]]))


def test_places_are_those_where_the_base_is_wrong_and_always_the_first() -> None:
    assert speaking_places([5, 6, 7], [5, 6, 7]) == [True, False, False]
    assert speaking_places([5, 6, 7], [4, 6, 8]) == [True, False, True]


@pytest.fixture(scope="module", params=["merge", "retrieve", "hybrid"])
def edited(request: pytest.FixtureRequest) -> tuple[wise.WiseModel, list[wise.Record]]:
    """The shipped model with five of six facts changed."""
    return edited_model(request.param), known_records()


def test_it_is_the_ceiling_of_the_router_in_place(edited: tuple[wise.WiseModel, list[wise.Record]]) -> None:
    wrapped, records = edited
    live = [record for record in records if record.edit.id in slots_of(wrapped)]
    assert len(live) >= 4
    found = measure_oracle(wrapped, live)
    said = wrapped.ask([record.edit.prompt for record in live])
    actual = sum(a.text == record.edit.target for a, record in zip(said, live, strict=True)) / len(live)
    assert found["reliability"] is not None and found["generalization"] is not None
    assert found["reliability"] >= actual > 0
    shares = []
    for record in live:
        answers = wrapped.ask(record.paraphrases[:4])
        shares.append(sum(answer.text == record.edit.target for answer in answers) / len(answers))
    assert found["generalization"] >= sum(shares) / len(shares) - 1e-9
    assert wrapped.ask(live[0].edit.prompt)[0].text == live[0].edit.target


def test_where_the_hybrid_router_hears_no_question_the_oracle_still_does() -> None:
    wrapped, records = edited_model("hybrid"), known_records()[:EDITED]
    state = wrapped.state
    before = measure_oracle(wrapped, records)
    deaf = replace(state, slots=tuple(replace(slot, scores=(2.0,)) for slot in state.slots))
    prompts = [record.edit.prompt for record in records]
    try:
        put(wrapped, deaf)
        said = [answer.text for answer in wrapped.ask(prompts)]
        with wrapped.disabled():
            assert said == [answer.text for answer in wrapped.ask(prompts)]
        assert measure_oracle(wrapped, records) == before
    finally:
        put(wrapped, state)
    assert before["reliability"] == 1 and (before["generalization"] or 0) > 0.7


def test_an_answer_is_forced_behind_a_text_that_asks_nothing() -> None:
    wrapped = edited_model("hybrid")
    assert wrapped.layer.memory is not None
    router, ids = wrapped.layer.memory.router, wrapped.encoder.question("It rained all day", chat=False).ids
    assert isinstance(router, HybridRouter)
    assert not router.active(ids) and ForcedRouter(router, 0).active(ids) == {len(ids) - 1: 0}


def test_a_row_is_answered_as_it_is_alone(edited: tuple[wise.WiseModel, list[wise.Record]]) -> None:
    wrapped, records = edited
    live = [record for record in records if record.edit.id in slots_of(wrapped)]
    alone = [measure_oracle(wrapped, [record])["generalization"] for record in live]
    together = measure_oracle(wrapped, live)["generalization"]
    assert together == pytest.approx(sum(value or 0.0 for value in alone) / len(live))


def test_an_edit_that_is_not_live_counts_as_wrong(edited: tuple[wise.WiseModel, list[wise.Record]]) -> None:
    wrapped, records = edited
    assert records[5].edit.id not in slots_of(wrapped)
    none = {"reliability": 0.0, "generalization": 0.0, "free_generalization": None}
    assert measure_oracle(wrapped, records[5:]) == none
    alone = measure_oracle(wrapped, records[4:5])["reliability"]
    assert alone and measure_oracle(wrapped, records[4:6])["reliability"] == alone / 2
    bare = wise.Record(edit=records[0].edit)
    assert measure_oracle(wrapped, [bare])["generalization"] is None
    with pytest.raises(ConfigError, match="no edit is live"), wrapped.disabled():
        measure_oracle(wrapped, records)
