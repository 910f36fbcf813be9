"""The closed forms are those of ROME and MEMIT, beside the weight."""

from __future__ import annotations

import pytest
import torch
from tiny import text, tiny_model, tiny_tokenizer
from torch import Tensor

import wise
from wise.memory.slot import LowRankSlot, RankOneSlot
from wise.training.baselines.registry import make_baseline
from wise.training.baselines.rome import Rome
from wise.training.baselines.values import ValueSettings
from wise.training.writers.base import SlotTask
from wise.training.writers.closed_form import RIDGE_WEIGHT, ClosedForm
from wise.training.writers.value import ValueWriter

each = pytest.mark.parametrize("model_type", ["llama", "gpt2"])
EDIT = wise.Edit(prompt=text([5, 40, 9]), subject=text([5, 40]), target=text([60]))


def wrapped(model_type: str = "llama", **settings: object) -> wise.WiseModel:
    config = wise.WiseConfig(mode="hybrid", layer=1, terminator="", bos=False, prefixes=2, **settings)
    return wise.wrap(tiny_model(model_type), tiny_tokenizer(), config)


def solver(model: wise.WiseModel) -> tuple[ValueWriter, ClosedForm]:
    writer = model.trainer.writer
    assert isinstance(writer, ValueWriter) and writer.closed_form is not None
    return writer, writer.closed_form


def contexts(writer: ValueWriter) -> tuple[list[tuple[list[int], list[int]]], Tensor]:
    """An edit's rows, and `[contexts, f]` their activations at the prompts' last tokens."""
    rows = writer._rows(EDIT, 1)
    return rows, writer.spliced.cache(rows).activations[:, 0]


@each
def test_rank_one_is_romes_update_beside_the_weight(model_type: str) -> None:
    """At k* it adds exactly v* - W k*, and elsewhere what ROME's change of the weight would."""
    writer, closed = solver(wrapped(model_type, slot="rank-one", writer="closed-form"))
    rows, own = contexts(writer)
    settings = ValueSettings(steps=8, learning_rate=0.3, clamp=8.0)
    start, (steps,) = closed.start([rows], [own], settings, kind="rank-one", rank=1)
    about = {"places": torch.zeros(1).long(), "gated": torch.ones(1).bool()}
    slot = RankOneSlot(id=0, edit_ids=("e",), keys=start.keys, values=start.values, **about)
    offset, key = start.values[0, 0], own.float().mean(0)
    assert steps > 0 and offset.norm() > 0.1
    torch.testing.assert_close(slot.delta(key), offset, rtol=1e-4, atol=1e-5)

    rome = make_baseline("rome", closed.ground, {"layer": 1})
    assert isinstance(rome, Rome)
    rome.factor = closed.factor
    update = torch.outer(offset, rome._direction(key, EDIT))
    elsewhere = torch.randn(7, len(key), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slot.delta(elsewhere), elsewhere @ update.T, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(slot.delta(elsewhere), offset.expand(7, -1), atol=0.1)


@each
def test_low_rank_is_memits_ridge_regression_over_the_contexts_of_an_edit(model_type: str) -> None:
    writer, closed = solver(wrapped(model_type, slot="low-rank", writer="closed-form"))
    rows, own = contexts(writer)
    start, _ = closed.start([rows], [own], ValueSettings(steps=4), kind="low-rank", rank=len(rows))
    keys, wanted = own.double(), start.values[0].double()
    moment = closed.factor @ closed.factor.T
    weight = RIDGE_WEIGHT * keys.shape[1]
    change = wanted.T @ keys @ torch.linalg.inv(weight * moment + keys.T @ keys)
    torch.testing.assert_close(wanted.T @ start.keys[0].double(), change, rtol=1e-3, atol=1e-5)
    active = (keys @ start.keys[0].double().T).float()
    torch.testing.assert_close(active, torch.eye(len(rows)), rtol=0, atol=0.05)
    place = torch.zeros(1).long()
    slot = LowRankSlot(id=0, edit_ids=("e",), places=place, gated=place == 0, keys=start.keys, values=start.values)
    added = slot.delta(own.float())
    torch.testing.assert_close(added, start.values[0], rtol=0.05, atol=0.05 * float(start.values.abs().max()))


def test_a_prompt_at_whose_end_nothing_is_active_gets_no_neuron() -> None:
    writer, closed = solver(wrapped(slot="rank-one", writer="closed-form"))
    rows, own = contexts(writer)
    start, _ = closed.start([rows], [0 * own], ValueSettings(steps=1), kind="rank-one", rank=1)
    assert not start.keys.any() and not start.values.any()


@pytest.mark.parametrize("slot", ["rank-one", "low-rank"])
def test_steps_begin_where_the_closed_form_ends(slot: str) -> None:
    ways = ("closed-form", "closed-form-steps", "gradient")
    solved, stepped, plain = (wrapped(slot=slot, writer=how, rank=3).trainer.writer for how in ways)
    task = [SlotTask(id=0, edits=(EDIT,))]
    (a, (one,)), (b, (two,)), (c, (three,)) = (writer.write(task)[0] for writer in (solved, stepped, plain))
    assert isinstance(a, (RankOneSlot, LowRankSlot)) and type(a) is type(b) is type(c)
    assert one.tried.startswith("in closed form") and "steps" in two.tried and "steps" in three.tried
    assert two.loss <= one.loss and two.fitted
    distance = float((a.keys - b.keys).norm())
    assert distance < float((a.keys - c.keys[:, : a.keys.shape[1]]).norm()) or slot == "low-rank"
