"""What the writer finds makes the base say the target, each edit for itself, whatever kind of slot it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from grounds import records
from tiny import text, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.memory.slot import EditSlot
from wise.memory.state import MemoryState
from wise.training.report import FAILED, VERIFIED, Outcome
from wise.training.trainer import Trainer
from wise.training.writers import value
from wise.training.writers.base import SlotTask
from wise.training.writers.stepping import WITHIN, Stepping

WAYS = ("gradient", "closed-form-steps")
NEURONS = [{"slot": slot, "writer": how} for slot in ("rank-one", "low-rank") for how in WAYS]
each_way = pytest.mark.parametrize("settings", [{}, *NEURONS], ids=lambda s: " ".join(s.values()) or "value")
each = pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])


def wrapped(model_type: str = "llama", **settings: Any) -> wise.WiseModel:
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


def at(slot: EditSlot, place: int) -> EditSlot:
    """The slot with what it has at one of its places alone."""
    parts = {name: part[place : place + 1] for name, part in slot.tensors().items() if name != "features"}
    return replace(slot, **parts | {"places": torch.zeros(1, dtype=torch.long)})


@torch.no_grad()
def argmaxes(model: wise.WiseModel, edit: wise.Edit, slot: EditSlot | None) -> tuple[list[int], list[int]]:
    """What the base decodes behind the prompt with what the slot adds put there by a hook, the target fed in; and the
    target."""
    prompt, target = model.encoder.prompt(edit.prompt), model.encoder.target(edit.prompt, edit.target)
    ids = torch.tensor([[*prompt, *target[:-1]]])

    def put(_module: object, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        moved, activation = out.reshape(*ids.shape, -1).clone(), args[0].reshape(*ids.shape, -1)
        for n, place in enumerate([] if slot is None else slot.places.tolist()):
            token = len(prompt) - 1 + place
            moved[0, token] += at(slot, n).delta(activation[0, token])
        return moved.view(out.shape)

    handle = model.layer.base_layer.register_forward_hook(put)
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 :]
    handle.remove()
    return logits.argmax(-1).tolist(), target


def fits(model: wise.WiseModel) -> None:
    given = edits(4, 3)
    written = model.trainer.writer.write(tasks(given))
    for edit, (slot, (outcome,)) in zip(given, written, strict=True):
        assert isinstance(slot, EditSlot) and slot.kind == model.wise_config.slot
        assert len(outcome.keys) == len(slot.places)
        said, target = argmaxes(model, edit, slot)
        assert (said == target) == outcome.fitted
        assert argmaxes(model, edit, None)[0] != target
    assert sum(outcome.fitted for _, (outcome,) in written) >= 3


@each
def test_what_is_fitted_is_what_the_whole_model_decodes(model_type: str) -> None:
    fits(wrapped(model_type))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", NEURONS, ids=lambda s: " ".join(s.values()))
def test_what_is_fitted_of_neurons_is_what_the_whole_model_decodes(model_type: str, settings: dict[str, str]) -> None:
    fits(wrapped(model_type, **settings))


def test_further_places_are_given_where_one_does_not_do_or_at_once_or_never() -> None:
    given, written = edits(4, 4), {}
    for places in ("needed", "first", "all"):
        written[places] = wrapped(places=places).trainer.writer.write(tasks(given))
    held = {name: [slot.places.tolist() for slot, _ in found] for name, found in written.items()}  # type: ignore[attr-defined]
    assert any(len(places) > 1 for places in held["needed"])
    assert held["first"] == [[0]] * 4 and held["all"] == [[0, 1, 2, 3, 4]] * 4
    fitted = {name: sum(outcome.fitted for _, (outcome,) in found) for name, found in written.items()}
    assert fitted["needed"] > fitted["first"] and fitted["all"] > fitted["first"]


@each_way
def test_an_edit_is_written_alone_as_it_is_beside_others(settings: dict[str, str]) -> None:
    model, given = wrapped(**settings), edits(3, 2)
    together = model.trainer.writer.write(tasks(given))
    for i, edit in enumerate(given):
        ((slot, (outcome,)),) = model.trainer.writer.write(tasks([edit]))
        beside, (same,) = together[i]
        assert outcome.steps == same.steps
        for name, tensor in slot.tensors().items():
            torch.testing.assert_close(tensor, beside.tensors()[name], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(outcome.keys, same.keys, rtol=1e-3, atol=1e-3)


def test_a_long_target_is_said_at_every_token_from_the_start() -> None:
    (long,), (short,) = edits(1, 14), [replace(edits(2, 9)[1], id="short")]
    model = wrapped(max_steps=20)
    (slot, (outcome,)), (other, _) = model.trainer.writer.write(tasks([long, short]))
    assert slot.places.tolist() == list(range(15)) and other.places.tolist() == [0]
    assert outcome.fitted
    report = model.edit(long)
    assert report.failed == () and model.ask(long.prompt)[0].text == long.target
    one = wrapped(max_steps=20, places="first")
    assert one.edit(long).failed == (long.id,)


def test_each_key_has_a_floor_of_its_own_and_the_first_is_gated_where_it_still_opens() -> None:
    writer = wrapped(relation_floor=0.5).trainer.writer
    near, asks = torch.tensor([[0.6, 0.9], [0.7, 0.3]]), torch.tensor([1.0, 0.2])
    gated, floors = writer._floors(near, asks, 0.8)
    assert gated.tolist() == [True, False]
    assert floors.tolist() == pytest.approx([0.61, 0.91]), "what comes near the second says nothing of the first"
    gated, floors = writer._floors(near, asks, 0.61)
    assert gated.tolist() == [False, False] and floors.tolist() == pytest.approx([0.71, 0.91])
    assert writer._floors(near[:0], asks[:0], 0.8)[1].tolist() == pytest.approx([0.5, 0.5])
    assert writer._floors(near + 1, asks, 0.8)[1].tolist() == pytest.approx([0.99, 0.99])


# -- trying again -----------------------------------------------------------------------------


def test_an_edit_that_fails_is_tried_harder_and_the_report_says_what_was_tried() -> None:
    given = edits(3, 3)
    model = wrapped(max_steps=20)
    report = model.edit(given)
    again = [outcome for outcome in report.outcomes if len(outcome.tried) > 1]
    assert any(outcome.status == VERIFIED for outcome in again)
    for outcome in again:
        assert outcome.tried[0] == "20 steps behind 1 prefixes at 1 places"
        assert outcome.tried[1].startswith("40 steps behind 1 prefixes at ") and outcome.steps > 20
    live = [edit for edit in given if edit.id not in report.failed]
    assert [answer.text for answer in model.ask([edit.prompt for edit in live])] == [edit.target for edit in live]


def test_an_edit_that_holds_at_once_is_not_written_again_and_one_that_never_does_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, asked = edits(2, 3), []
    write = value.ValueWriter.write

    def noted(self: Any, jobs: list[SlotTask], progress: Any = None, effort: int = 0) -> Any:
        asked.append((effort, [edit.id for job in jobs for edit in job.edits]))
        found = write(self, jobs, progress, effort)
        return [(s, [replace(o, fitted=o.fitted and s.edit_ids != ("e1",)) for o in out]) for s, out in found]

    monkeypatch.setattr(value.ValueWriter, "write", noted)
    report = wrapped().edit(given)
    assert asked == [(0, ["e0", "e1"]), (1, ["e1"]), (2, ["e1"])]
    assert [(o.status, len(o.tried)) for o in report.outcomes] == [(VERIFIED, 1), (FAILED, 3)]
    assert report.failed == ("e1",)
    assert report.to_dict()["outcomes"][1]["tried"][2].endswith("at 4 places")


def test_trying_harder_for_one_edit_never_costs_another(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = edits(2, 1)
    first, second = MemoryState(edits=(one,)), MemoryState(edits=(two,))

    def attempt(
        self: Any, kept: Any, replaced: Any, fresh: Any, serve: Any, progress: Any, effort: int = 0, stream: Any = ()
    ) -> Any:
        state = first if not effort else second
        plain = Outcome(id="", status=FAILED, answer="", steps=5, loss=1.0, milliseconds=1.0, tried=(str(effort),))
        statuses = {e.id: VERIFIED if e in state.edits else FAILED for e in fresh}
        return state, {i: replace(plain, id=i, status=status) for i, status in statuses.items()}, ()

    trainer = wrapped().trainer
    monkeypatch.setattr(Trainer, "_attempt", attempt)
    state, report = trainer.edit(MemoryState(), [one, two], serve=lambda _: pytest.fail("asked"))
    assert state is first
    assert [(o.status, o.steps, o.tried) for o in report.outcomes] == [
        (VERIFIED, 5, ("0",)),
        (FAILED, 15, ("0", "1", "2")),
    ]


@pytest.mark.parametrize(
    ("kept", "right", "steps"),
    [(0.999, True, WITHIN), (0.999, False, 40), (0.99, True, 40), (1.0, True, WITHIN), (0.5, True, 3)],
    ids=["stuck", "stuck and wrong", "falling", "still", "done"],
)
def test_an_edit_that_is_right_is_left_where_nothing_more_is_won(kept: float, right: bool, steps: int) -> None:
    class Told(Stepping):
        """Of one edit, whose loss is what is left of 0.5 when so much is kept of it in each step."""

        def __init__(self) -> None:
            self.steps, self.loss = torch.zeros(1, dtype=torch.long), torch.zeros(1)
            self.max_steps, self.places = 40, ""
            self.speaks, self.wrong = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[not right]])

        def _look(self, active: torch.Tensor) -> torch.Tensor:
            self.loss = 0.5 * kept ** self.steps.float()
            return self.loss

        def _step(self, objective: torch.Tensor, active: torch.Tensor) -> None:
            self.steps += active

    assert Told().run(None).steps == [steps]


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
