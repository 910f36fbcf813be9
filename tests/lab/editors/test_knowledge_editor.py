"""KnowledgeEditor: the form of its update, what it reads, and what training gives it."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from editing_contexts import by_autograd, tiny_context, tiny_edits, tiny_records
from torch import Tensor

from wise.edits import Edit
from wise.lab.editors.context import EditingContext, as_weight
from wise.lab.editors.knowledge_editor import KnowledgeEditor, KnowledgeEditorSettings

SMALL = {"condition": 8, "hidden": 8}


def knowledge_editor(context: EditingContext, **settings: Any) -> KnowledgeEditor:
    return KnowledgeEditor(context, KnowledgeEditorSettings(**settings))


def drawn(model_type: str, **settings: Any) -> KnowledgeEditor:
    """With a random hypernetwork in which every part counts."""
    editor = knowledge_editor(tiny_context(model_type), **SMALL | settings)
    editor.network = editor.untrained()
    editor._prepared = True
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in editor.network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return editor


def gradients(editor: KnowledgeEditor, edit: Edit) -> dict[str, Tensor]:
    """Of the edit's loss with respect to the edited weights, by autograd, each `[d, f]`."""
    found = by_autograd(editor, [editor.context.row(edit)])
    return {path: as_weight(module, found[f"{path}.weight"]) for path, module in editor.linears.items()}


# -- the update -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])
def test_the_update_is_a_gated_and_shifted_gradient(model_type: str) -> None:
    editor = drawn(model_type)
    (edit,) = tiny_edits(1)
    before = dict(editor.weights)
    with torch.no_grad():
        gates = editor.gates(editor.queries([edit]))
    gradient = gradients(editor, edit)
    editor.edit(edit)
    for path, module in editor.linears.items():
        gate = gates[path]
        d = gate.a.shape[-1]
        gated = torch.outer(0.1 * d * gate.a[0], gate.g[0])
        shift = torch.outer(gate.b[0], gate.h[0])
        wanted = gate.strength[0] * (gated * gradient[path] + shift)
        step = as_weight(module, editor.weights[f"{path}.weight"] - before[f"{path}.weight"])
        torch.testing.assert_close(step, wanted, atol=1e-6, rtol=1e-3)
        for other in (gate.strength[0] * gated * gradient[path], gate.strength[0] * shift):
            assert not torch.allclose(step, other, atol=1e-4)  # both parts are there


def test_gates_are_of_rank_one_with_shares_that_sum_to_one() -> None:
    editor = drawn("llama")
    with torch.no_grad():
        gates = editor.gates(editor.queries(tiny_edits(3)))
    for gate in gates.values():
        for share in (gate.a, gate.b):
            torch.testing.assert_close(share.sum(-1), torch.ones(3))
            assert (share > 0).all() and share.std() > 0
        assert ((gate.strength > 0) & (gate.strength < 1)).all() and (gate.g < 0).any() and (gate.g > 0).any()


def test_training_begins_about_at_a_gradient_step() -> None:
    editor = knowledge_editor(tiny_context(), **SMALL, rate=0.1)
    editor.network, editor._prepared = editor.untrained(), True
    (edit,) = tiny_edits(1)
    gradient = gradients(editor, edit)
    editor.edit(edit)
    for path in editor.linears:
        step = editor.weights[f"{path}.weight"] - editor.original[f"{path}.weight"]
        cosine = torch.nn.functional.cosine_similarity(step.flatten(), -gradient[path].flatten(), 0)
        assert cosine > 0.9 and 0.04 < step.norm() / gradient[path].norm() < 0.06


def test_edits_of_one_call_are_made_one_after_the_other() -> None:
    together, apart = drawn("llama"), drawn("llama")
    edits = tiny_edits(2)
    seen: list[int] = []
    together.edit(edits, progress=seen.append)
    for edit in edits:
        apart.edit(edit)
    assert seen == [1, 2]
    assert all(torch.equal(weight, apart.weights[name]) for name, weight in together.weights.items())


# -- what it reads ----------------------------------------------------------------------------------


def test_it_reads_the_prompt_the_old_answer_and_the_new() -> None:
    editor = drawn("llama")
    (queries,) = editor.queries(tiny_edits(1))
    (prompt, target), old = queries.row, queries.old
    assert old == editor._generate([prompt])[0]

    def said(prompt: list[int], old: list[int], target: list[int]) -> Tensor:
        with torch.no_grad():
            gates = editor.gates([type(queries)(row=(prompt, target), old=old)])
        return torch.cat([gate.g[0] for gate in gates.values()])

    own = said(prompt, old, target)
    assert torch.equal(own, said(prompt, [*old, *editor.encoder.stops], target))
    for other in (
        said([prompt[0], 90, *prompt[2:]], old, target),
        said(prompt, [90, *old[1:]], target),
        said(prompt, old, [90, *target[1:]]),
    ):
        assert not torch.allclose(own, other, atol=1e-5)


def test_edits_of_unlike_length_are_read_as_alone() -> None:
    editor = drawn("gpt2")
    short, long = tiny_edits(2)
    long = Edit(prompt=f"{long.prompt} w80 w81 w82", target=long.target)
    with torch.no_grad():
        alone, both = editor.gates(editor.queries([short])), editor.gates(editor.queries([short, long]))
    for path, gate in alone.items():
        torch.testing.assert_close(gate.g[0], both[path].g[0])
        assert not torch.allclose(both[path].g[0], both[path].g[1], atol=1e-4)


# -- training ---------------------------------------------------------------------------------------


def test_the_multiplier_rises_while_the_constraint_is_broken() -> None:
    editor = knowledge_editor(tiny_context(), margin=0.1, multiplier=1.0, multiplier_rate=0.5)
    edit, moved = torch.tensor(2.0), torch.tensor(0.5)
    assert float(editor._objective(edit, moved)) == pytest.approx(2.4)
    editor._stepped(0.5)
    assert editor.multiplier == pytest.approx(1.2)
    assert float(editor._objective(edit, moved)) == pytest.approx(2.48)
    editor._stepped(0.0)
    assert editor.multiplier == pytest.approx(1.15)
    editor.multiplier = 0.01
    editor._stepped(0.0)
    assert editor.multiplier == 0.0
    assert editor.merit(1.0, 0.05) == 1.0 and editor.merit(1.0, 0.2) == pytest.approx(2.0)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_training_moves_every_part_and_is_repeatable(model_type: str) -> None:
    editing_contexts = [tiny_context(model_type, training=tiny_records(8)) for _ in range(2)]
    state, networks = torch.get_rng_state(), []
    for context in editing_contexts:
        editor = knowledge_editor(context, **SMALL, steps=20, batch=2)
        begun = editor.untrained().state_dict()
        editor.merit = Mock(side_effect=[1.0, 0.0])  # type: ignore[method-assign]  # the last is the best
        editor.prepare()
        networks.append(editor.network.state_dict())
        assert all(p.grad is None for p in editor.model.parameters())
    assert all(not torch.equal(begun[name], tensor) for name, tensor in networks[0].items())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in begun)
    assert torch.equal(torch.get_rng_state(), state)
