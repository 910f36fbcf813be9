"""Fine-tuning editors: the constraint on the weights, what the two losses read, when training stops."""

from __future__ import annotations

import pytest
import torch
from editing_contexts import tiny_context, tiny_edits
from torch import Tensor
from torch.nn.functional import log_softmax

from wise.edits import Edit
from wise.lab.editors.context import target_losses
from wise.lab.editors.fine_tuning import BATCH, FineTuning, FineTuningL, FineTuningM
from wise.lab.editors.registry import make_baseline
from wise.training.report import VERIFIED

ARCHITECTURES = ["llama", "gpt2", "opt", "gpt_neox"]
ROUNDING = 1e-6


def change(editor: FineTuning) -> float:
    """The largest change of any weight from the base's."""
    return max(float((editor.weights[n].detach() - w).abs().max()) for n, w in editor.original.items())


@pytest.mark.parametrize("name", ["ft-l", "ft-m"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_constraint_bounds_every_weight(model_type: str, name: str) -> None:
    settings = {"norm_constraint": 3e-3, "learning_rate": 2e-3, "steps": 8, "enough": 0.0}
    editor = make_baseline(name, tiny_context(model_type), settings)
    editor.edit(tiny_edits(2))
    assert change(editor) == pytest.approx(3e-3, abs=ROUNDING)  # reached, and not exceeded
    free = make_baseline(name, tiny_context(model_type), settings | {"norm_constraint": None})
    free.edit(tiny_edits(2))
    assert change(free) > 2 * 3e-3


def test_the_constraint_counts_from_the_weights_before_the_call() -> None:
    settings = {"norm_constraint": 1e-3, "learning_rate": 2e-3, "steps": 4, "enough": 0.0}
    editor = make_baseline("ft-l", tiny_context(), settings)
    for edit in tiny_edits(3):
        before = dict(editor.weights)
        editor.edit(edit)
        moved = max(float((editor.weights[n] - w).abs().max()) for n, w in before.items())
        assert moved <= 1e-3 + ROUNDING
    assert 1e-3 < change(editor) <= 3e-3 + ROUNDING


def by_hand(editor: FineTuning, edit: Edit) -> tuple[Tensor, list[int], list[int]]:
    """Log-probabilities `[seq, vocabulary]` over the prompt and target of an edit, and these."""
    prompt, target = editor.context.row(edit)
    with torch.no_grad():
        logits = editor.model(input_ids=torch.tensor([[*prompt, *target]]), use_cache=False).logits[0]
    return log_softmax(logits.float(), -1), prompt, target


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_losses_read_the_target_and_nothing_of_the_prompt(model_type: str) -> None:
    edits = [Edit(prompt="w5 w6 w7", target="w20 w21 w22"), Edit(prompt="w9", target="w30")]
    masked = make_baseline("ft-m", tiny_context(model_type), {})
    last = make_baseline("ft-l", tiny_context(model_type), {})
    assert isinstance(masked, FineTuningM) and isinstance(last, FineTuningL)
    found = [editor.losses(editor.weights, [editor.row(e) for e in edits]).tolist() for editor in (masked, last)]
    for i, edit in enumerate(edits):
        logs, prompt, target = by_hand(masked, edit)
        whole = [*prompt, *target]
        each = [-float(logs[place - 1, whole[place]]) for place in range(1, len(whole))]
        behind = each[len(prompt) - 1 :]
        assert found[0][i] == pytest.approx(sum(behind) / len(behind), abs=1e-4)
        assert found[0][i] != pytest.approx(sum(each) / len(each), abs=1e-3)  # the prompt would count
        at_once = -logs[len(prompt) - 1, target[:-1]].mean()  # all tokens at one place, the ending not among them
        assert found[1][i] == pytest.approx(float(at_once), abs=1e-4)
    assert found[1][0] != pytest.approx(found[0][0], abs=1e-2)


def test_ft_l_cannot_learn_two_tokens_and_ft_m_can() -> None:
    edit = Edit(prompt="w5 w6 w7", target="w20 w21")
    settings = {"steps": 80, "learning_rate": 1e-2, "norm_constraint": None, "layer": 1}
    masked, last = (make_baseline(name, tiny_context(), settings) for name in ("ft-m", "ft-l"))
    assert masked.edit(edit).outcomes[0].status == VERIFIED
    outcome = last.edit(edit).outcomes[0]
    assert outcome.status != VERIFIED and outcome.steps == 80
    asked = last.losses(last.weights, [last.row(edit)])
    assert 0.6931 < float(asked) < 0.9  # log 2: no model can give both the same place


def test_training_stops_when_the_loss_is_small_enough() -> None:
    editor = make_baseline("ft-m", tiny_context(), {"steps": 100, "learning_rate": 1e-2, "enough": 0.1, "layer": 1})
    first, second = tiny_edits(2)
    report = editor.edit(first).outcomes[0]
    assert 0 < report.steps < 100 and report.loss is not None and report.loss < 0.1
    again = Edit(prompt=first.prompt, target=first.target, subject=first.subject, id="again")
    served = dict(editor.weights)
    assert editor.edit(again).outcomes[0].steps == 0  # known already
    assert all(torch.equal(editor.weights[n], w) for n, w in served.items())
    assert editor.edit(second).outcomes[0].steps > 0


def test_a_call_trains_its_edits_jointly() -> None:
    """Also where they are more than share a step; the loss that is told is each edit's own."""
    editor = make_baseline("ft-m", tiny_context(), {"steps": 2, "layer": 1})
    shown: list[int] = []
    edits = [Edit(prompt=f"w{i} w{j}", target="w30") for i in range(10, 20) for j in range(50, 57)]
    report = editor.edit(edits, progress=shown.append)
    assert len(edits) > BATCH and shown[-1] == len(edits)
    losses = target_losses(editor.context, [editor.context.row(edit) for edit in edits])
    assert [outcome.loss for outcome in report.outcomes] == losses
    other = make_baseline("ft-m", tiny_context(), {"steps": 2, "layer": 1})
    other.edit(list(edits[:1]))
    assert any(not torch.equal(editor.weights[n], other.weights[n]) for n in editor.weights)


@pytest.mark.parametrize("model_type,count", [("llama", 1), ("gpt2", 2), ("opt", 2)])
def test_what_is_trained_is_one_projection_with_its_bias(model_type: str, count: int) -> None:
    editor = make_baseline("ft-m", tiny_context(model_type), {"layer": 1, "steps": 1})
    path = editor.context.projection(1).path
    assert len(editor.parameters) == count and all(name.startswith(path) for name in editor.parameters)
    editor.edit(tiny_edits(1))
    assert all(not torch.equal(editor.weights[n], w) for n, w in editor.original.items())
    assert all(p.grad is None for p in editor.model.parameters())


def test_half_precision_is_trained_in_float32() -> None:
    """Steps far below what bfloat16 resolves add up."""
    editor = make_baseline("ft-m", tiny_context(dtype=torch.bfloat16), {"steps": 40, "learning_rate": 2e-4, "layer": 1})
    before = target_losses(editor.context, [editor.context.row(tiny_edits(1)[0])])[0]
    outcome = editor.edit(tiny_edits(1)).outcomes[0]
    assert outcome.loss is not None and outcome.loss < before - 0.1
    assert all(w.dtype == torch.bfloat16 for w in editor.weights.values())
