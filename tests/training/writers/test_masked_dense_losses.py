"""The objective: what each of its terms is, where it is zero, and which way it pushes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import log_softmax

from wise.training.writers.masked_dense_fitting import edit_loss, margin_loss, score

MARGINS = {"low": 0.25, "high": 1.0, "gap": 0.5}


def test_edit_loss_is_each_rows_own_mean_whatever_pads_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 11, generator=generator)
    labels = torch.randint(0, 11, (4, 5), generator=generator)
    for row, length in enumerate((5, 3, 1, 4)):
        labels[row, length:] = -100
    naive = [
        sum(-log_softmax(logits[r, t], -1)[labels[r, t]].item() for t in range(5) if labels[r, t] >= 0)
        / int((labels[r] >= 0).sum())
        for r in range(4)
    ]
    torch.testing.assert_close(edit_loss(logits, labels), torch.tensor(naive))
    # What stands at a padded place does not count, and a mean over all places is another number.
    noise = logits.clone()
    noise[labels == -100] = 100 * torch.randn(int((labels == -100).sum()), 11, generator=generator)
    assert torch.equal(edit_loss(noise, labels), edit_loss(logits, labels))
    assert not torch.allclose(edit_loss(logits, labels), edit_loss(logits, labels.clamp(min=0)))


def test_edit_loss_is_taken_in_float32() -> None:
    logits = torch.tensor([[[3.0, 1.0, 0.5]]], dtype=torch.bfloat16)
    assert edit_loss(logits, torch.tensor([[0]])).dtype == torch.float32


def test_margin_loss_is_zero_inside_the_margins_and_not_outside() -> None:
    assert margin_loss(torch.tensor([1.0, 1.3]), torch.tensor([0.0, 0.25]), **MARGINS) == 0
    loud = margin_loss(torch.tensor([1.0, 1.3]), torch.tensor([0.05, 0.35]), **MARGINS)
    assert loud == pytest.approx(0.05)  # the first term alone: half of 0.1
    quiet = margin_loss(torch.tensor([0.8, 1.3]), torch.tensor([0.0, 0.25]), **MARGINS)
    assert quiet == pytest.approx(0.1)  # the second alone: half of 0.2
    near = margin_loss(torch.tensor([1.0]), torch.tensor([0.25, 0.0]), **MARGINS | {"gap": 1.0})
    assert near == pytest.approx(0.25)  # the third alone: 1 - (1 - 0.25)


def test_the_gap_is_to_the_loudest_unrelated_token_and_not_to_their_mean() -> None:
    edited, unrelated = torch.tensor([1.0, 1.5]), torch.tensor([0.9] + [0.0] * 99)
    loss = margin_loss(edited, unrelated, **MARGINS)
    assert loss == pytest.approx(0.65 / 100 + (0.4 + 0.0) / 2)
    assert (edited - unrelated.mean() > MARGINS["gap"]).all()


def test_descent_raises_edited_scores_and_lowers_unrelated_ones() -> None:
    edited = torch.tensor([0.2, 2.0], requires_grad=True)
    unrelated = torch.tensor([0.9, 0.1, 0.3], requires_grad=True)
    margin_loss(edited, unrelated, **MARGINS).backward()
    assert edited.grad is not None and unrelated.grad is not None
    assert edited.grad[0] < 0 and edited.grad[1] == 0
    assert unrelated.grad[0] > unrelated.grad[2] > 0 and unrelated.grad[1] == 0


def test_score_is_the_norm_with_a_finite_gradient_at_zero() -> None:
    delta = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = score(delta)
    torch.testing.assert_close(found, torch.tensor([5.0, 0.0]), atol=1e-5, rtol=0)
    found.sum().backward()
    assert delta.grad is not None
    torch.testing.assert_close(delta.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    root = torch.zeros(2, requires_grad=True)
    root.square().sum().sqrt().backward()
    assert root.grad is not None and math.isnan(root.grad[0])  # what the small constant is for
