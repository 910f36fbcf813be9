"""ROME: the value is reached exactly, no smaller change reaches it, and what the search for a value promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from editing_contexts import tiny_context, tiny_edits, way_round
from tiny import tiny_model

from wise.edits import Edit
from wise.errors import ConfigError, EditError
from wise.lab.editors import values
from wise.lab.editors.context import target_losses
from wise.lab.editors.registry import make_baseline
from wise.lab.editors.rome import Rome, RomeSettings
from wise.lab.editors.statistics import prepared_moments
from wise.lab.editors.values import (
    ValueSettings,
    contexts_of,
    read,
    sampled_prefixes,
    search,
    subject_place,
)
from wise.training.splice import SplicedModel

QUICK = {"layer": 1, "tokens": 256, "length": 16, "steps": 4, "prefixes": 2, "prefix_tokens": 3}
each = pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])


def opened(model_type: str = "llama", **changes) -> Rome:
    return Rome(tiny_context(model_type), RomeSettings(**(QUICK | changes)))


def written(editor: Rome, edit: Edit) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Applies one edit: the change `[d, f]`, k*, v* - W k*, and C; float64 all."""
    editor.prepare()
    contexts = [contexts_of(editor.context, edit, editor.prefixes)]
    key = read(editor.context, contexts, keys=[editor.projection.path])[0][editor.projection.path][0]
    place = editor.projection
    offset = search(editor.context, contexts, place.layer, place.path, editor.settings).offset[0]
    moment = prepared_moments(editor.context, [editor.projection.layer], editor.settings)[0]
    before = way_round(editor.projection, editor.weights[editor.name])
    editor.edit(edit)
    return way_round(editor.projection, editor.weights[editor.name]) - before, key.double(), offset.double(), moment


@each
def test_the_value_is_reached_exactly_and_at_the_least_cost(model_type):
    editor = opened(model_type)
    change, key, offset, moment = written(editor, tiny_edits(1)[0])
    assert offset.norm() > 0.1
    torch.testing.assert_close(change @ key, offset, rtol=1e-3, atol=1e-4)  # eq. 2: W_hat k* = v*

    def cost(delta):
        return torch.trace(delta @ moment @ delta.T)

    generator = torch.Generator().manual_seed(0)
    onto = torch.eye(len(key), dtype=torch.float64) - torch.outer(key, key) / key.dot(key)
    for _ in range(20):
        other = torch.randn(change.shape, generator=generator, dtype=torch.float64) @ onto
        other *= change.norm() / other.norm()
        torch.testing.assert_close((change + other) @ key, offset, rtol=1e-3, atol=1e-4)  # as feasible
        assert cost(change + other) > cost(change) and cost(change - other) > cost(change)
        slope = torch.trace(change @ moment @ other.T)
        assert slope.abs() < 1e-3 * (cost(change) * cost(other)).sqrt()
    plain = torch.outer(offset, key) / key.dot(key)  # the least change to the weight is not the least to what it does
    assert cost(plain) > 1.05 * cost(change)


@each
def test_every_context_mean_output_moves_by_the_offset(model_type):
    editor = opened(model_type)
    editor.prepare()
    (edit,) = tiny_edits(1)
    contexts = contexts_of(editor.context, edit, editor.prefixes)
    module = editor.model.get_submodule(editor.projection.path)

    def mean():
        seen = []
        with torch.no_grad():
            for (ids, _), place in zip(contexts.rows, contexts.places, strict=True):
                handle = module.register_forward_hook(
                    lambda _, __, out, at=place: seen.append(out.reshape(-1, out.shape[-1])[at])
                )
                editor.model(torch.tensor([ids]), use_cache=False)
                handle.remove()
        return torch.stack(seen).mean(0)

    before = mean()
    editor.edit(edit)
    assert len(contexts.rows) == 3
    torch.testing.assert_close(mean() - before, editor.right[0], rtol=1e-3, atol=1e-3)


def test_later_edits_start_from_the_edited_model_and_two_vectors_make_each_again():
    first, second = tiny_edits(2)
    editor = opened()
    editor.edit(first)
    once = editor.weights[editor.name].clone()
    change, key, offset, _ = written(editor, second)
    torch.testing.assert_close(change @ key, offset, rtol=1e-3, atol=1e-4)
    f, d = editor.projection.in_features, editor.projection.out_features
    assert editor.memory_bytes == 2 * (f + d) * 4 < f * d * 4
    left, right = editor.left, editor.right
    torch.testing.assert_close(editor.weights[editor.name], editor.original[editor.name] + right.T @ left)
    torch.testing.assert_close(once, editor.original[editor.name] + right[:1].T @ left[:1])


def test_the_layer_follows_the_depth_and_must_be_there():
    assert make_baseline("rome", tiny_context(), {}).projection.layer == int(RomeSettings().layer_fraction * 3)
    with pytest.raises(ConfigError, match="layer=3: this model has 3 blocks"):
        opened(layer=3)


def test_a_key_that_is_nought_is_refused():
    editor = opened()
    editor.prepare()
    with pytest.raises(EditError, match="nothing is active"):
        editor._direction(torch.zeros(editor.projection.in_features), tiny_edits(1)[0])


def test_a_subject_that_no_token_holds_is_refused_before_anything_is_computed(monkeypatch):
    editor = opened()
    monkeypatch.setattr(values, "subject_spans", lambda *args: [])
    with pytest.raises(EditError, match=r"field 'subject': no token .*e0"):
        editor.edit(tiny_edits(1))
    assert not editor._prepared


# -- the search for a value -----------------------------------------------------------------------


def test_of_a_subject_named_twice_the_last_is_written_at():
    encoder = tiny_context().encoder
    edit = Edit(prompt="w9 w5 w9 w7", subject="w9", target="w30")
    assert subject_place(encoder, edit) == 3  # behind the beginning of sequence


def test_prefixes_are_the_bases_own_and_stay_in_its_context():
    context = tiny_context()
    settings = ValueSettings(prefixes=3, prefix_tokens=4)
    prefixes = sampled_prefixes(context, settings)
    assert len(set(prefixes)) == 3 and prefixes == sampled_prefixes(tiny_context(), settings)
    assert prefixes != sampled_prefixes(context, replace(settings, seed=1))
    assert sampled_prefixes(context, replace(settings, prefixes=0)) == ()
    (edit,) = tiny_edits(1)
    contexts = contexts_of(context, edit, prefixes)
    assert contexts.rows[0] == context.row(edit) and len(contexts.rows) == 4
    for (ids, target), place in zip(contexts.rows, contexts.places, strict=True):
        assert ids[place] == 40 and target == contexts.rows[0][1]
    long = Edit(prompt=f"w10 w40 {'w7 ' * 120}", subject="w10 w40", target="w30")
    assert len(contexts_of(context, long, prefixes).rows) == 1


@each
@pytest.mark.parametrize("block", [False, True])
def test_the_offset_makes_the_target_likely_where_it_is_put(model_type, block):
    context = tiny_context(model_type)
    projection = context.projection(1)
    path = f"{projection.blocks}.1" if block else projection.path
    settings = ValueSettings(steps=15, prefixes=2, prefix_tokens=3, clamp=2.0)
    edits = tiny_edits(3)
    contexts = [contexts_of(context, edit, sampled_prefixes(context, settings)) for edit in edits]
    before = target_losses(context, [c.rows[0] for c in contexts])
    found = search(context, contexts, 1, path, settings)
    spliced = SplicedModel(context.model, projection)
    assert bool((found.offset.norm(dim=-1) <= 2.0 * found.start.norm(dim=-1) * (1 + 1e-5)).all())
    assert all(1 <= n <= 15 for n in found.steps)
    for i, (edit, behind) in enumerate(zip(edits, contexts, strict=True)):
        ids, target = context.row(edit)
        row = torch.tensor([[*ids, *target[:-1]]])

        def moved(_, __, out, sign, row=row, at=behind.places[0], offset=found.offset[i]):
            tensor = out[0] if isinstance(out, tuple) else out
            whole = tensor.reshape(*row.shape, -1).clone()
            whole[0, at] += sign * offset
            whole = whole.view(tensor.shape)
            return (whole, *out[1:]) if isinstance(out, tuple) else whole

        def loss(sign, row=row, ids=ids, target=target, moved=moved):
            handle = context.model.get_submodule(path).register_forward_hook(
                lambda module, args, out: moved(module, args, out, sign)
            )
            with torch.no_grad():
                logits = context.model(row, use_cache=False).logits[0, len(ids) - 1 :]
            handle.remove()
            return float(torch.nn.functional.cross_entropy(logits, torch.tensor(target)))

        assert abs(loss(0) - before[i]) < 1e-4
        alone = replace(settings, essence_weight=0.0, weight_decay=0.0)
        looking = values._Search(context, spliced, [contexts_of(context, edit, ())], path, alone)
        start, expected = looking._before()
        torch.testing.assert_close(start[0], found.start[i], rtol=1e-4, atol=1e-5)
        seen = looking._objective(found.offset[i : i + 1], torch.ones(1, 1), expected, torch.tensor([True]))
        assert abs(float(seen.detach()) - loss(1)) < 1e-4  # what is run in part says what the whole model says
        assert loss(1) < before[i] - 0.2
        assert loss(-1) > loss(1)


def test_edits_that_are_searched_for_together_do_not_see_each_other():
    context = tiny_context()
    settings = ValueSettings(steps=5, prefixes=1, prefix_tokens=3)
    contexts = [contexts_of(context, edit, sampled_prefixes(context, settings)) for edit in tiny_edits(3)]
    path = context.projection(1).path
    together = search(context, contexts, 1, path, settings)
    for i, behind in enumerate(contexts):
        alone = search(context, [behind], 1, path, settings)
        torch.testing.assert_close(alone.offset[0], together.offset[i], rtol=1e-2, atol=1e-3)


def test_what_is_good_enough_is_left_and_essence_holds_back():
    context = tiny_context()
    settings = ValueSettings(steps=20, prefixes=0, weight_decay=0.0, clamp=4.0)
    contexts = [contexts_of(context, edit, ()) for edit in tiny_edits(2)]
    path = context.projection(1).path
    idle = search(context, contexts, 1, path, replace(settings, enough=1e3))
    assert idle.steps == [0, 0] and not idle.offset.any()

    def drift(weight):
        found = search(context, contexts, 1, path, replace(settings, essence_weight=weight, enough=0.0))
        looking = values._Search(context, SplicedModel(context.model, context.projection(1)), contexts, path, settings)
        _, before = looking._before()
        on = torch.ones_like(looking.owners, dtype=torch.bool)
        with torch.no_grad():
            now = looking._essence(looking._logits(on, found.offset[looking.owners]), on)
        return float((now.exp() * (now - before)).sum(-1).mean())

    assert drift(10.0) < 0.5 * drift(0.0)


def test_the_bases_parameters_are_left_alone():
    model = tiny_model("llama")
    context = replace(tiny_context(), model=model)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    contexts = [contexts_of(context, edit, ()) for edit in tiny_edits(1)]
    search(context, contexts, 1, context.projection(1).path, ValueSettings(steps=2, prefixes=0))
    for name, p in model.named_parameters():
        assert p.data_ptr() == before[name][0] and torch.equal(p, before[name][1])
        assert p.grad is None and p.requires_grad
