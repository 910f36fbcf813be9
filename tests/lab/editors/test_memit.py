"""MEMIT: the normal equations of its ridge regression, and how what is missing is spread over blocks."""

from __future__ import annotations

import pytest
import torch
from editing_contexts import tiny_context, tiny_edits, way_round

from wise.errors import ConfigError
from wise.lab.editors.memit import Memit, MemitSettings
from wise.lab.editors.statistics import prepared_moments
from wise.lab.editors.values import contexts_of, read, search

QUICK = {"layers": (0, 1), "tokens": 256, "length": 16, "steps": 4, "prefixes": 2, "prefix_tokens": 3}
each = pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])


def opened(model_type: str = "llama", **changes) -> Memit:
    return Memit(tiny_context(model_type), MemitSettings(**(QUICK | changes)))


def change_of(editor: Memit, place: int) -> torch.Tensor:
    """What was added to a block's weight, as `[d, f]`, float64."""
    name = f"{editor.paths[place]}.weight"
    return way_round(editor.context.projection(editor.layers[place]), editor.weights[name] - editor.original[name])


@pytest.mark.parametrize("count", [1, 5, 200])
def test_the_change_solves_the_normal_equations(count):
    editor = opened(moment_weight=0.3)
    editor.prepare()
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(count, 64, generator=generator, dtype=torch.float64)
    residual = torch.randn(count, 32, generator=generator, dtype=torch.float64)
    moment = prepared_moments(editor.context, [1], editor.settings)[0]
    change = editor._change(1, keys, residual)
    penalty = 0.3 * 64 * moment
    torch.testing.assert_close(change @ (penalty + keys.T @ keys), residual.T @ keys)

    def cost(delta):
        return (delta @ keys.T - residual.T).square().sum() + torch.trace(delta @ penalty @ delta.T)

    for _ in range(10):
        other = 0.01 * torch.randn(change.shape, generator=generator, dtype=torch.float64)
        assert cost(change + other) > cost(change)
    least = residual.T @ torch.linalg.pinv(keys.T)  # without the base's usual inputs it is another one
    assert cost(least) > cost(change)


@each
def test_what_is_served_at_one_block_is_that_change(model_type):
    editor = opened(model_type, layers=(1,))
    editor.prepare()
    edits = tiny_edits(3)
    contexts = [contexts_of(editor.context, edit, editor.prefixes) for edit in edits]
    keys = read(editor.context, contexts, keys=editor.paths)[0][editor.paths[0]].double()
    offset = search(editor.context, contexts, editor.layers[-1], editor.last, editor.settings).offset.double()
    whole = keys.shape[1] * prepared_moments(editor.context, [1], editor.settings)[0] + keys.T @ keys
    editor.edit(edits)
    wanted = offset.T @ keys
    assert (change_of(editor, 0) @ whole - wanted).norm() < 1e-3 * wanted.norm()
    editor.unwrap()


@each
def test_what_is_missing_of_one_edit_shrinks_and_more_so_where_the_base_counts_less(model_type):
    def missing(weight, layers):
        editor = opened(model_type, moment_weight=weight, layers=layers)
        editor.prepare()
        (edit,) = tiny_edits(1)
        contexts = [contexts_of(editor.context, edit, ())]
        editor.prefixes = ()
        found = search(editor.context, contexts, editor.layers[-1], editor.last, editor.settings)
        editor.edit(edit)
        now = read(editor.context, contexts, out=[editor.last])[1][editor.last]
        return float((found.start + found.offset - now).norm() / found.offset.norm())

    heavy, light, none = (missing(weight, (1,)) for weight in (10.0, 0.1, 1e-6))
    assert none < 0.01 < light < heavy < 1.0
    assert missing(1e-6, (0, 1)) < 0.6  # two blocks, each writing its part


def test_each_block_takes_its_part_of_what_is_then_missing(monkeypatch):
    editor = opened()
    editor.prepare()
    given = []
    change = editor._change
    monkeypatch.setattr(editor, "_change", lambda *args: given.append(args) or change(*args))
    edits = tiny_edits(2)
    contexts = [contexts_of(editor.context, edit, editor.prefixes) for edit in edits]
    found = search(editor.context, contexts, editor.layers[-1], editor.last, editor.settings)
    editor.edit(edits)
    assert [place for place, _, _ in given] == [0, 1]
    torch.testing.assert_close(given[0][2].float(), found.offset / 2, rtol=1e-3, atol=1e-3)
    name = f"{editor.paths[1]}.weight"
    editor.put({name: editor.original[name]})  # as it was when the second block's turn came
    now = read(editor.context, contexts, out=[editor.last])[1][editor.last]
    torch.testing.assert_close(given[1][2].float(), found.start + found.offset - now, rtol=1e-3, atol=1e-3)


def test_one_call_with_many_is_not_many_calls_and_calls_add_up():
    edits = tiny_edits(3)
    mass, one_by_one = opened(), opened()
    mass.edit(edits)
    for edit in edits:
        before = dict(one_by_one.weights)
        one_by_one.edit(edit)
        assert all(not torch.equal(one_by_one.weights[name], before[name]) for name in before)
    assert any(not torch.allclose(mass.weights[name], one_by_one.weights[name]) for name in mass.weights)
    assert mass.memory_bytes == one_by_one.memory_bytes == 2 * 32 * 64 * 4


def test_the_blocks_follow_the_depth_and_must_be_there():
    assert opened(layers=None, window=(0.0, 0.7)).layers == (0, 1, 2)
    assert opened(layers=None, window=(0.4, 0.4)).layers == (1,)
    with pytest.raises(ConfigError, match="layer=3: this model has 3 blocks"):
        opened(layers=(1, 3))
    for wrong in (
        {"layers": ()},
        {"layers": (1, 0)},
        {"layers": (1, 1)},
        {"layers": (-1,)},
        {"window": (0.5, 0.2)},
        {"window": (0.0, 1.0)},
        {"window": (0.1,)},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MemitSettings(**wrong)
    assert MemitSettings.of({"layers": [0, 1], "window": [0.0, 0.5]}).layers == (0, 1)
