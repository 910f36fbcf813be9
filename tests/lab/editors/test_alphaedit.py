"""AlphaEdit: what the base's usual inputs are mapped to stays, and earlier edits hold later ones back."""

from __future__ import annotations

import pytest
import torch
from editing_contexts import tiny_context, tiny_edits, way_round

from wise.errors import ConfigError
from wise.lab.editors.alphaedit import AlphaEdit, AlphaEditSettings, free_directions
from wise.lab.editors.statistics import prepared_moments

QUICK = {
    "layers": (0, 1),
    "tokens": 256,
    "length": 16,
    "steps": 4,
    "prefixes": 2,
    "prefix_tokens": 3,
    "free_share": 0.3,
}
each = pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])


def opened(model_type: str = "llama", **changes) -> AlphaEdit:
    return AlphaEdit(tiny_context(model_type), AlphaEditSettings(**(QUICK | changes)))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_change_is_that_of_the_paper():
    editor = opened()
    editor.prepare()
    keys, residual, earlier = random(4, 64), random(4, 32, seed=1), random(6, 64, seed=2)
    editor._note_keys({path: earlier.float() for path in editor.paths})
    free = editor.free[1]
    project = free @ free.T
    torch.testing.assert_close(project @ project, project)
    damping = editor.settings.damping * editor.scales[1]
    gram = earlier.float().double().T @ earlier.float().double()
    # eq. 14, literally
    right = gram @ project + keys.T @ keys @ project + damping * torch.eye(64, dtype=torch.float64)
    literal = residual.T @ keys @ project @ torch.linalg.inv(right)
    torch.testing.assert_close(editor._change(1, keys, residual), literal, rtol=1e-4, atol=1e-6)


@each
def test_kept_inputs_are_mapped_as_before(model_type):
    editor = opened(model_type)
    moments = prepared_moments(editor.context, editor.layers, editor.settings)
    editor.edit(tiny_edits(2))
    editor.edit(tiny_edits(2, first=2))
    for place, path in enumerate(editor.paths):
        name = f"{path}.weight"
        projection = editor.context.projection(editor.layers[place])
        change = way_round(projection, editor.weights[name] - editor.original[name])
        f, count = editor.free[place].shape
        assert 0 < count < f
        vectors = torch.linalg.eigh(moments[place]).eigenvectors
        kept, free = random(50, f - count) @ vectors[:, count:].T, random(50, count) @ vectors[:, :count].T
        moved = (kept @ change.T).norm() / kept.norm()
        assert moved < 1e-4 * (free @ change.T).norm() / free.norm()
    editor.unwrap()


@each
def test_without_the_projection_kept_inputs_move(model_type):
    editor = opened(model_type)
    editor.prepare()
    free = editor.free[1]
    f = len(free)
    kept = random(50, f) @ (torch.eye(f, dtype=torch.float64) - free @ free.T)
    keys, residual = random(3, f, seed=1), random(3, 32, seed=2)

    def moves():
        return float((kept @ editor._change(1, keys, residual).T).norm())

    assert moves() < 1e-9
    editor.free[1] = torch.eye(f, dtype=torch.float64)
    assert moves() > 1e-3


def test_earlier_edits_are_moved_less_for_being_known():
    editor = opened()
    editor.prepare()
    earlier, residual = random(3, 64), random(3, 32, seed=1)
    keys = earlier + 0.5 * random(3, 64, seed=2)  # near enough to disturb them
    forgetting = (earlier @ editor._change(1, keys, residual).T).norm()
    editor._note_keys({path: earlier.float() for path in editor.paths})
    remembering = (earlier @ editor._change(1, keys, residual).T).norm()
    assert remembering < 0.8 * forgetting


def test_what_later_edits_need_is_counted_kept_and_taken_back():
    editor = opened()
    assert editor.memory_bytes == 0 and not editor.earlier
    first, second = tiny_edits(2)
    editor.edit(first)
    once, earlier = editor.state, editor.earlier
    assert editor.memory_bytes == 2 * (32 * 64 + 64 * 64) * 4
    editor.edit(second)
    twice, path = dict(editor.weights), editor.paths[0]
    assert torch.linalg.matrix_rank(earlier[path].double(), rtol=1e-5) == 1
    assert torch.linalg.matrix_rank(editor.earlier[path].double(), rtol=1e-5) == 2
    editor.restore(once)
    assert editor.earlier is earlier
    editor.edits = editor.edits[:1]
    editor.edit(second)  # goes on as if nothing had been between
    for name, weight in editor.weights.items():
        torch.testing.assert_close(weight, twice[name])


def test_free_directions_hold_no_more_than_their_share():
    moment = torch.diag(torch.tensor([4.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    free = free_directions(moment, 0.3)
    torch.testing.assert_close(free.T @ free, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(torch.trace(free.T @ moment @ free) / moment.trace(), torch.tensor(0.3).double())
    assert free_directions(moment, 0.29).shape[1] == 1
    with pytest.raises(ConfigError, match=r"free_share=0\.05: the smallest of 4 directions holds 0\.1"):
        free_directions(moment, 0.05)
