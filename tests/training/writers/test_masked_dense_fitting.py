"""Fitting many weights at once: inside their masks, until they hold, and none touching another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny import text, tiny_model, tiny_tokenizer
from torch import Tensor

import wise
from wise.memory.masks import random_masks
from wise.training.trainer import Trainer
from wise.training.writers.base import EditsDone, SlotTask, silent
from wise.training.writers.masked_dense import MaskedDenseWriter
from wise.training.writers.masked_dense_examples import Examples, prepare
from wise.training.writers.masked_dense_fitting import BETA, MARGIN_KEPT, QUIET, Fit, Fitting
from wise.training.writers.masked_dense_statistics import BaseStatistics

CONFIG = wise.WiseConfig(
    mode="retrieve", learning_rate=0.03, max_steps=60, terminator="", bos=False, prefixes=2, layer=1
)


def edit(number: int, **fields: Any) -> wise.Edit:
    first = 5 + 7 * number
    prompt = text([first, first + 1, first + 2, 30 + number])
    return wise.Edit(
        id=f"e{number}", prompt=prompt, target=text([60 + 3 * number, 61 + 2 * number]), **fields
    )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A base that has been measured, and what it takes to fit edits on it."""

    wrapped: wise.WiseModel
    statistics: BaseStatistics
    config: wise.WiseConfig

    @property
    def trainer(self) -> Trainer:
        return self.wrapped.trainer

    def examples(self, *slots: Sequence[wise.Edit]) -> Examples:
        return prepare(
            [SlotTask(id=i, edits=tuple(edits)) for i, edits in enumerate(slots)],
            spliced=self.trainer.spliced,
            encoder=self.trainer.encoder,
            statistics=self.statistics,
            seed=0,
        )

    def masks(self, groups: int, ratio: float = 0.3) -> Tensor:
        projection = self.trainer.spliced.target_module
        return random_masks(
            (projection.out_features, projection.in_features), shards=groups, ratio=ratio, seed=1
        )

    def fit(self, examples: Examples, mask: Tensor, progress: EditsDone = silent, **changes: Any) -> Fit:
        return self.fitting(examples, mask, **changes).run(progress)

    def fitting(self, examples: Examples, mask: Tensor, **changes: Any) -> Fitting:
        given = {"start": torch.zeros(mask.shape), "mask": mask, "group": examples.slot}
        given |= {"scale": self.statistics.scale, "config": self.config}
        return Fitting(self.trainer.spliced, examples, **given | changes)


def bench(config: wise.WiseConfig) -> Bench:
    model = tiny_model("llama", hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    wrapped = wise.wrap(model, tiny_tokenizer(), config)
    assert isinstance(wrapped.trainer.writer, MaskedDenseWriter)
    return Bench(wrapped=wrapped, statistics=wrapped.trainer.writer.statistics, config=config)


@pytest.fixture(scope="module")
def base() -> Bench:
    return bench(CONFIG)


def decoded(base: Bench, examples: Examples, row: int, weight: Tensor) -> list[int]:
    """Greedy over the whole model, token by token, with the weight acting where the edit must speak."""
    example = examples.bare.select(torch.tensor([row]))
    ids = base.trainer.encoder.prompt(edit(row).prompt)
    speaking = examples.speaking[row].tolist()
    out: list[int] = []
    first = len(ids) - 1

    def add(_module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        delta = args[0] @ weight.T
        for place in range(output.shape[1]):
            if place < first or not speaking[place - first]:
                delta[:, place] = 0
        return output + delta

    handle = base.wrapped.layer.base_module.register_forward_hook(add)
    try:
        for _ in range(int((example.labels != -100).sum())):
            logits = base.wrapped.model(torch.tensor([[*ids, *out]]), use_cache=False).logits
            out.append(int(logits[0, -1].argmax()))
    finally:
        handle.remove()
    return out


def test_what_is_fitted_is_what_greedy_decodes(base: Bench) -> None:
    edits = [edit(i) for i in range(4)]
    examples = base.examples(edits)
    done = base.fit(examples, base.masks(1))
    assert done.fitted == [True] * 4
    for row, wanted in enumerate(edits):
        target = base.trainer.encoder.target(wanted.prompt, wanted.target)
        assert decoded(base, examples, row, done.weights[0]) == target
        assert decoded(base, examples, row, torch.zeros_like(done.weights[0])) != target


def test_fitted_edits_reach_the_margin_and_silent_tokens_stay_under_them(base: Bench) -> None:
    examples = base.examples([edit(i) for i in range(4)])
    done = base.fit(examples, base.masks(1))
    scale = base.statistics.scale
    spoken = examples.bare.activations[examples.speaking] @ done.weights[0].T
    silent = examples.negatives[0] @ done.weights[0].T
    lowest = float(spoken.norm(dim=-1).min()) / scale
    assert lowest >= MARGIN_KEPT * BETA - 1e-4
    assert float(silent.norm(dim=-1).max()) / scale <= QUIET * lowest + 1e-4


def test_nothing_outside_the_masks_moves(base: Bench) -> None:
    mask = base.masks(2, ratio=0.2)
    done = base.fit(base.examples([edit(0), edit(1)], [edit(2)]), mask)
    assert (done.weights[~mask] == 0).all()
    for group in range(2):
        assert (done.weights[group][mask[group]] != 0).float().mean() > 0.9


def test_groups_fitted_together_are_as_they_are_alone(base: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they take different numbers of steps, and one has longer rows than the other."""
    # Else a group waits to be checked beside another.
    monkeypatch.setattr("wise.training.writers.masked_dense_fitting.RECHECK", 1)
    slots = [[edit(0), edit(1)], [replace(edit(2), target=text([70, 71, 72, 73, 74])), edit(3)]]
    mask = base.masks(2)
    together = base.fit(base.examples(*slots), mask)
    steps = []
    for group, edits in enumerate(slots):
        alone = base.fit(base.examples(edits), mask[group : group + 1])
        torch.testing.assert_close(together.weights[group], alone.weights[0], atol=1e-4, rtol=0)
        assert together.fitted[2 * group : 2 * group + 2] == alone.fitted
        assert together.steps[2 * group : 2 * group + 2] == alone.steps
        steps.append(max(alone.steps))
    assert steps[0] != steps[1]
    other = base.fit(base.examples(slots[0]), mask[1:])
    assert not torch.allclose(together.weights[0], other.weights[0], atol=1e-2)


def test_an_edit_without_variations_is_fitted_the_same_beside_one_that_has_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wise.training.writers.masked_dense_fitting.RECHECK", 1)
    plain = bench(replace(CONFIG, prefixes=0))
    slots = [[edit(0)], [edit(1, paraphrases=(text([80, 81, 82, 31]),))]]
    mask = plain.masks(2)
    together = plain.fit(plain.examples(*slots), mask)
    alone = plain.fit(plain.examples(slots[0]), mask[:1])
    assert together.steps[0] == alone.steps[0]
    torch.testing.assert_close(together.weights[0], alone.weights[0], atol=1e-4, rtol=0)


def test_a_group_that_is_done_no_longer_moves(base: Bench) -> None:
    fitting = base.fitting(base.examples([edit(0)], [edit(1)]), base.masks(2))
    fitting.check()
    fitting.step(0)  # so that Adam has momentum to move it by
    before = [w.detach().clone() for w in fitting.weights]
    fitting.fitted[0] = fitting.quiet[0] = True
    fitting.fitted[1] = fitting.quiet[1] = False
    for step in range(1, 4):
        fitting.step(step)
    assert torch.equal(fitting.weights[0], before[0])
    assert not torch.equal(fitting.weights[1], before[1])
    assert fitting.steps.tolist() == [1, 4]
    fitting.quiet[0] = False  # fitted but loud: it is worked on again
    fitting.step(4)
    assert not torch.equal(fitting.weights[0], before[0])


def test_an_impossible_edit_is_not_called_fitted(base: Bench) -> None:
    examples = base.examples([edit(i) for i in range(3)])
    hasty = base.fit(examples, base.masks(1), config=replace(CONFIG, max_steps=1))
    assert hasty.fitted == [False] * 3 and hasty.steps == [1] * 3
    assert all(loss > 1 for loss in hasty.loss)
    assert base.fit(examples, base.masks(1)).fitted == [True] * 3


def test_two_edits_that_contradict_each_other_are_not_both_fitted(base: Bench) -> None:
    contrary = replace(edit(0), id="other", target=text([80]))
    done = base.fit(base.examples([edit(0), contrary]), base.masks(1), config=replace(CONFIG, max_steps=20))
    assert sum(done.fitted) < 2


def test_what_is_already_fitted_takes_no_step(base: Bench) -> None:
    examples = base.examples([edit(0), edit(1)])
    done = base.fit(examples, base.masks(1))
    again = base.fit(examples, base.masks(1), start=done.weights)
    assert again.steps == [0, 0] and torch.equal(again.weights, done.weights) and again.fitted == [True, True]


def test_progress_tells_how_many_are_fitted(base: Bench) -> None:
    told: list[int] = []
    base.fit(base.examples([edit(0), edit(1)]), base.masks(1), progress=told.append)
    assert told[0] == 0 and told[-1] == 2


def test_silent_tokens_are_a_slots_own(base: Bench) -> None:
    """Each slot keeps silent on the base's text, its own contexts and its own locality prompts."""
    near = edit(0, locality=(text([80, 81, 82]),))
    both, alone = base.examples([near], [edit(1)]), base.examples([near])
    assert torch.allclose(both.negatives[0], alone.negatives[0], atol=1e-5)
    without = base.examples([edit(0)])
    assert len(alone.negatives[0]) == len(without.negatives[0]) + 3
    assert len(without.negatives[0]) > len(base.statistics.activations)
