"""Elastic weight consolidation: the Fisher information, the penalty, and what it holds in place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from editing_contexts import tiny_context, tiny_edits
from tiny import BOS, text
from torch import Tensor

from wise.lab.editors.elastic import FineTuningEWC
from wise.lab.editors.fine_tuning import logits_with
from wise.lab.editors.registry import make_baseline

ARCHITECTURES = ["llama", "gpt2", "opt"]
FEW = {"fisher_tokens": 128, "fisher_length": 8, "layer": 1}


def prepared(model_type: str = "llama", **settings: object) -> FineTuningEWC:
    editor = make_baseline("ft-ewc", tiny_context(model_type), FEW | settings)
    assert isinstance(editor, FineTuningEWC)
    editor.prepare()
    return editor


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_fisher_information_is_the_expected_square_of_the_gradient(model_type: str) -> None:
    """Exactly computed over the whole vocabulary, after the beginning of a text alone."""
    editor = prepared(model_type, fisher_tokens=300, fisher_length=2)
    leaves = {name: w.clone().requires_grad_() for name, w in editor.original.items()}
    ids = torch.tensor([[BOS]])
    logs = logits_with(editor.model, leaves, ids, torch.ones_like(ids))[0, -1].log_softmax(-1)
    exact = {name: torch.zeros_like(w) for name, w in editor.original.items()}
    for log in logs:
        gradients = torch.autograd.grad(log, list(leaves.values()), retain_graph=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            exact[name] += log.detach().exp() * gradient.square()
    for name, fisher in editor.fisher.items():
        assert fisher.shape == editor.original[name].shape and float(fisher.min()) >= 0
        assert correlation(fisher, exact[name]) > 0.8
        assert float(fisher.mean()) == pytest.approx(float(exact[name].mean()), rel=0.2)
    weight = next(iter(exact))
    other = prepared(model_type, fisher_tokens=300, fisher_length=8).fisher[weight]  # behind other texts
    assert correlation(other, exact[weight]) < correlation(editor.fisher[weight], exact[weight])


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_penalty_is_the_quadratic_of_equation_3(model_type: str) -> None:
    editor = prepared(model_type, strength=50.0)
    base = {name: w.clone() for name, w in editor.original.items()}
    assert float(editor.penalty(base, base)) == 0
    generator = torch.Generator().manual_seed(0)
    moved = {name: torch.randn(w.shape, generator=generator) for name, w in base.items()}
    expected = sum(25.0 * float((editor.fisher[n] * m**2).sum()) for n, m in moved.items())
    assert expected > 0
    away = {name: w + moved[name] for name, w in base.items()}
    assert float(editor.penalty(away, base)) == pytest.approx(expected, rel=1e-4)
    leaves = {name: w.clone().requires_grad_() for name, w in away.items()}
    gradients = torch.autograd.grad(editor.penalty(leaves, base), list(leaves.values()))
    for (name, m), gradient in zip(moved.items(), gradients, strict=True):
        assert torch.allclose(gradient, 50.0 * editor.fisher[name] * m, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_large_penalty_keeps_the_weights_that_matter(model_type: str) -> None:
    moved = {}
    for strength in (0.0, 1e5):
        editor = prepared(model_type, strength=strength, steps=20, enough=0.0)
        name = next(iter(editor.original))
        editor.edit(tiny_edits(1))
        moved[strength] = (editor.weights[name] - editor.original[name]).abs().flatten()
        order = editor.fisher[name].flatten().argsort()
        editor.unwrap()
    low, high = order[: len(order) // 20], order[-len(order) // 20 :]
    held = float(moved[1e5][high].mean() / moved[0.0][high].mean())
    free = float(moved[1e5][low].mean() / moved[0.0][low].mean())
    assert held < 0.3 and held < free / 2


def test_an_unpenalised_edit_is_ft_m() -> None:
    settings = {"layer": 1, "steps": 5, "learning_rate": 1e-3}
    plain = make_baseline("ft-m", tiny_context(), settings)
    plain.edit(tiny_edits(2))
    without = prepared(**settings, strength=0.0)
    without.edit(tiny_edits(2))
    with_it = prepared(**settings, strength=1e3)
    with_it.edit(tiny_edits(2))
    for name, weight in plain.weights.items():
        assert torch.equal(weight, without.weights[name])
        assert not torch.equal(weight, with_it.weights[name])


def test_the_penalty_stands_against_the_sum_over_the_edits() -> None:
    """As many of one kind count as one of them does against the penalty divided by their number."""
    settings = {"layer": 1, "steps": 3, "learning_rate": 1e-3, "enough": 0.0}
    (edit,) = tiny_edits(1)
    moved = []
    for strength, copies in ((1e3, 2), (5e2, 1), (1e3, 1)):
        editor = prepared(**settings, strength=strength)
        editor._apply([edit] * copies, lambda done: None)
        moved.append(next(iter(editor.weights.values())))
    assert torch.allclose(moved[0], moved[1], atol=1e-5)
    assert not torch.allclose(moved[0], moved[2], atol=1e-4)


def test_the_fisher_information_is_kept_and_its_making_is_shown(tmp_path: Path) -> None:
    shown: list[tuple[str, int, int]] = []
    texts = tuple(text(range(5 + i, 60 + i)) for i in range(8))

    def made(**changes: object) -> FineTuningEWC:
        context = tiny_context(cache=tmp_path, progress=lambda *a: shown.append(a), texts=texts)
        editor = make_baseline("ft-ewc", context, FEW | changes)
        assert isinstance(editor, FineTuningEWC)
        editor.prepare()
        return editor

    first = made()
    assert shown[-1] == ("fisher", 128, 128)
    count = len(shown)
    again = made()
    assert len(shown) == count and all(torch.equal(f, again.fisher[n]) for n, f in first.fisher.items())
    for changed in ({"layer": 0}, {"fisher_tokens": 64}, {"seed": 1}):
        count = len(shown)
        made(**changed)
        assert len(shown) > count
