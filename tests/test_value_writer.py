"""Values that the writer finds make the base say the target, each edit for itself."""

from __future__ import annotations

import pytest
import torch
from grounds import records
from tiny import text, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.memory.slot import ValueSlot
from wise.training.writers import value
from wise.training.writers.base import SlotTask

each = pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])


def wrapped(model_type: str = "llama", **settings: object) -> wise.WiseModel:
    config = wise.WiseConfig(mode="hybrid", layer=1, terminator="", bos=False, prefixes=2, **settings)
    return wise.wrap(tiny_model(model_type), tiny_tokenizer(), config)


def edits(count: int, length: int) -> list[wise.Edit]:
    return [
        wise.Edit(
            id=f"e{i}",
            prompt=text([5 + i, 40 + i, 9]),
            subject=text([5 + i, 40 + i]),
            target=text([60 + 3 * i + n for n in range(length)]),
        )
        for i in range(count)
    ]


def tasks(given: list[wise.Edit]) -> list[SlotTask]:
    return [SlotTask(id=i, edits=(edit,)) for i, edit in enumerate(given)]


@torch.no_grad()
def argmaxes(model: wise.WiseModel, edit: wise.Edit, slot: ValueSlot) -> tuple[list[int], list[int]]:
    """What the base decodes behind the prompt with the values added by a hook, the target fed in; and the target."""
    prompt, target = model.encoder.prompt(edit.prompt), model.encoder.target(edit.prompt, edit.target)
    ids = torch.tensor([[*prompt, *target[:-1]]])

    def put(_module: object, _args: object, out: torch.Tensor) -> torch.Tensor:
        moved = out.reshape(*ids.shape, -1).clone()
        moved[0, len(prompt) - 1 + slot.places] += slot.values
        return moved.view(out.shape)

    handle = model.layer.base_layer.register_forward_hook(put)
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 :]
    handle.remove()
    return logits.argmax(-1).tolist(), target


@each
def test_what_is_fitted_is_what_the_whole_model_decodes(model_type: str) -> None:
    model = wrapped(model_type)
    given = edits(4, 3)
    written = model.trainer.writer.write(tasks(given))
    for edit, (slot, (outcome,)) in zip(given, written, strict=True):
        assert isinstance(slot, ValueSlot) and len(outcome.keys) == len(slot.values) == len(slot.places)
        said, target = argmaxes(model, edit, slot)
        assert (said == target) == outcome.fitted
        without = ValueSlot(id=0, edit_ids=(), values=0 * slot.values, places=slot.places, features=slot.features)
        assert argmaxes(model, edit, without)[0] != target
    assert sum(outcome.fitted for _, (outcome,) in written) >= 3


def test_further_places_are_given_where_one_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = wrapped(), edits(4, 4)
    with_help = model.trainer.writer.write(tasks(given))
    assert any(len(slot.places) > 1 for slot, _ in with_help)
    monkeypatch.setattr(value, "PATIENCE", 10**6)
    alone = wrapped().trainer.writer.write(tasks(given))
    assert all(slot.places.tolist() == [0] for slot, _ in alone)
    fitted = [sum(outcome.fitted for _, (outcome,) in written) for written in (with_help, alone)]
    assert fitted[0] > fitted[1]


def test_an_edit_is_written_alone_as_it_is_beside_others() -> None:
    model, given = wrapped(), edits(3, 2)
    together = model.trainer.writer.write(tasks(given))
    for i, edit in enumerate(given):
        ((slot, (outcome,)),) = model.trainer.writer.write(tasks([edit]))
        beside, (same,) = together[i]
        assert isinstance(slot, ValueSlot) and isinstance(beside, ValueSlot)
        assert outcome.steps == same.steps and slot.places.tolist() == beside.places.tolist()
        torch.testing.assert_close(slot.values, beside.values, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(outcome.keys, same.keys, rtol=1e-3, atol=1e-3)


def test_a_slot_of_several_edits_is_refused() -> None:
    with pytest.raises(ValueError, match="1 slots for 2 edits"):
        wrapped().trainer.writer.write([SlotTask(id=0, edits=tuple(edits(2, 1)))])


def test_the_shipped_model_says_what_it_is_taught_and_forgets_it_exactly() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    edited = wise.wrap(model, AutoTokenizer.from_pretrained(model_path()), wise.WiseConfig(mode="hybrid"))
    given = [record.edit for record in records(6)]
    report = edited.edit(given)
    live = [edit for edit in given if edit.id not in report.failed]
    assert len(live) >= 5
    assert [answer.text for answer in edited.ask([edit.prompt for edit in live])] == [edit.target for edit in live]
    before = edited.state
    further = edited.edit(records(7)[6].edit)
    assert further.lost == ()
    back = edited.state.without([records(7)[6].edit.id])
    assert back.edit_ids == before.edit_ids
    for one, other in zip(before.slots, back.slots, strict=True):
        assert all(torch.equal(t, other.tensors()[name]) for name, t in one.tensors().items())
    assert all(torch.equal(keys, back.keys[i]) for i, keys in before.keys.items())
