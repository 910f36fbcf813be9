"""MEND: gradients as factors, the identity it begins as, what training gives it, and the file it is kept in."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
import torch
from editing_contexts import by_autograd, tiny_context, tiny_edits, tiny_records
from torch.func import functional_call

from wise.lab.editors.context import EditingContext, as_weight, mean_loss, padded_rows
from wise.lab.editors.factors import dense_matrix, divergence, sizes, weight_gradients, with_update
from wise.lab.editors.mend import SMALL, Mend, MendSettings, Moments

ARCHITECTURES = ("llama", "gpt2", "opt", "bloom")


def mend(context: EditingContext, **settings: Any) -> Mend:
    return Mend(context, MendSettings(**settings))


def untrained(editor: Mend, rate: float) -> Mend:
    """As training begins, with the moments it begins with: the identity."""
    editor.network = editor.untrained()
    editor._prepared = True
    with torch.no_grad():
        editor.network.alpha.fill_(rate)
    return editor


# -- gradients as factors ---------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_outer_products_of_what_was_taken_sum_to_the_gradient(model_type: str) -> None:
    editor = mend(tiny_context(model_type), blocks=2)
    rows = [editor.context.row(edit, prompt) for edit, prompt in zip(tiny_edits(2), ("w5 w6", None), strict=True)]
    gradients, _ = weight_gradients(editor.model, editor.linears, rows, editor.context.device)
    wanted = by_autograd(editor, rows)
    assert len(wanted) == len(editor.linears) > 2
    for path, module in editor.linears.items():
        found = as_weight(module, dense_matrix(*gradients[path]))
        torch.testing.assert_close(found, wanted[f"{path}.weight"], atol=1e-6, rtol=1e-4)
        backwards = as_weight(module, dense_matrix(gradients[path][0].flip(1), gradients[path][1]))
        assert not torch.allclose(backwards, wanted[f"{path}.weight"], atol=1e-4)  # each u has its own delta
    assert all(parameter.grad is None for parameter in editor.model.parameters())


def test_gradients_are_taken_of_a_frozen_base_too() -> None:
    free, frozen = mend(tiny_context()), mend(tiny_context())
    frozen.model.requires_grad_(False)
    rows = [free.context.row(edit) for edit in tiny_edits(2)]
    for path, (u, delta) in free.gradients(free.queries(tiny_edits(2)))[0].items():
        found = weight_gradients(frozen.model, frozen.linears, rows, frozen.context.device)[0][path]
        assert torch.equal(u, found[0]) and torch.equal(delta, found[1]) and delta.any()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_row_goes_through_the_weights_plus_its_own_update(model_type: str) -> None:
    editor = mend(tiny_context(model_type), blocks=2)
    generator = torch.Generator().manual_seed(0)
    gradients, _ = editor.gradients(editor.queries(tiny_edits(2)))
    update = {
        path: tuple(0.1 * torch.randn(t.shape, generator=generator) for t in pair) for path, pair in gradients.items()
    }
    ids, mask, _ = padded_rows([editor.context.row(edit) for edit in tiny_edits(2)], editor.context.device)
    given = {"attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        base = editor.model(ids, **given).logits
        with with_update(editor.linears, update):  # type: ignore[arg-type]
            found = editor.model(ids, **given).logits
        for i in range(2):
            weights = {
                f"{path}.weight": editor.weights[f"{path}.weight"]
                + as_weight(module, dense_matrix(*(t[i : i + 1] for t in update[path])))
                for path, module in editor.linears.items()
            }
            wanted = functional_call(editor.model, weights, (ids,), given).logits
            torch.testing.assert_close(found[i], wanted[i], atol=1e-4, rtol=1e-4)
            assert not torch.allclose(found[1 - i], wanted[1 - i], atol=1e-2)
        assert torch.equal(editor.model(ids, **given).logits, base)


def test_losses_are_means_over_the_places_that_predict() -> None:
    generator = torch.Generator().manual_seed(0)
    own, edited = torch.randn(2, 3, 4, 7, generator=generator)
    labels = torch.tensor([[-100, 2, 5, -100], [1, -100, -100, -100], [-100, -100, -100, 6]])
    log = own.log_softmax(-1)
    wanted = -torch.stack([(log[0, 1, 2] + log[0, 2, 5]) / 2, log[1, 0, 1], log[2, 3, 6]])
    torch.testing.assert_close(mean_loss(own, labels), wanted)
    found = divergence(own, edited, labels)
    p, q = own.softmax(-1), edited.softmax(-1)
    each = (p * (p.log() - q.log())).sum(-1)
    torch.testing.assert_close(found, torch.stack([each[0, 1:3].mean(), each[1, 0], each[2, 3]]))
    assert not divergence(own, own, labels).any()


# -- the identity it begins as ----------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_it_begins_as_a_gradient_step(model_type: str) -> None:
    editor = untrained(mend(tiny_context(model_type)), rate=0.03)
    edits = tiny_edits(2)
    before = dict(editor.weights)
    gradients = by_autograd(editor, [editor.context.row(edit) for edit in edits])
    editor.edit(edits)  # both at the same weights: one step along the sum
    for name, gradient in gradients.items():
        step = editor.weights[name] - before[name]
        torch.testing.assert_close(step, -0.03 * gradient, atol=1e-6, rtol=1e-3)
        assert step.abs().max() > 1e-4


def test_edits_one_by_one_are_made_at_the_weights_that_the_last_left() -> None:
    together, apart = (untrained(mend(tiny_context()), rate=0.3) for _ in range(2))
    edits = tiny_edits(2)
    together.edit(edits)
    apart.edit(edits[0])
    left = dict(apart.weights)
    gradients = by_autograd(apart, [apart.context.row(edits[1])])
    apart.edit(edits[1])
    for name, gradient in gradients.items():
        torch.testing.assert_close(apart.weights[name], left[name] - 0.3 * gradient, atol=1e-6, rtol=1e-3)
    assert any(not torch.allclose(together.weights[name], apart.weights[name], atol=1e-4) for name in left)


def test_the_transform_is_the_one_of_the_paper() -> None:
    editor = untrained(mend(tiny_context(), rank=5), rate=1.0)
    transform = editor.network.transforms["64x32"]  # of the value projections
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        z = torch.randn(4, 96, generator=generator)
        for layer in (0, 2):
            h = z
            for i in (0, 1):
                inner = h @ (transform.u[i] @ transform.v[i]).T + transform.bias[i]
                h = h + torch.relu(transform.scale[layer, i] * inner + transform.offset[layer, i])
            torch.testing.assert_close(transform(z, layer), h, atol=1e-3, rtol=1e-4)
            assert not torch.allclose(transform(z, 1), h, atol=0.1)


def test_layers_of_one_shape_share_a_transform() -> None:
    editor = untrained(mend(tiny_context("llama")), rate=1.0)
    assert sorted(editor.network.transforms) == ["32x64", "64x32"]  # gate and up; down
    assert [len(t.scale) for t in editor.network.transforms.values()] == [6, 3]
    alone = untrained(mend(tiny_context("llama"), whole_ffn=False, blocks=1), rate=1.0)
    assert list(alone.linears) == ["model.layers.2.mlp.down_proj"]


def test_pads_change_nothing() -> None:
    """A pad has no gradient, but the normalised pair of a pad is not 0."""
    editor = mend(tiny_context(training=tiny_records(6)), steps=1, batch=2, rank=4)
    editor.prepare()
    short, long = editor.queries(tiny_edits(1)), editor.queries([tiny_edits(1)[0], tiny_edits(9)[8]])
    long[1].row[0].extend(range(4, 12))
    alone, padded = editor.update(short), editor.update(long)
    for path in editor.linears:
        first = dense_matrix(*(t[:1] for t in padded[path]))
        torch.testing.assert_close(dense_matrix(*alone[path]), first, atol=1e-6, rtol=1e-3)


# -- training ---------------------------------------------------------------------------------------


def test_training_leaves_the_base_and_the_random_state_alone() -> None:
    context = tiny_context(training=tiny_records(8))
    before = {name: p.clone() for name, p in context.model.named_parameters()}
    state = torch.get_rng_state()
    shown: list[tuple[str, int, int]] = []
    object.__setattr__(context, "progress", lambda *what: shown.append(what))
    editor = mend(context, steps=3, batch=2, rank=4)
    editor.prepare()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in context.model.named_parameters())
    assert shown == [("mend: hypernetwork", i, 3) for i in (1, 2, 3)]
    twin = mend(tiny_context(training=tiny_records(8)), steps=3, batch=2, rank=4)
    twin.prepare()
    ours, theirs = editor.network.state_dict(), twin.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_best_weights_of_a_run_are_kept() -> None:
    """At a rate that ruins it, nothing better than the beginning is found, and patience ends the run."""
    context = tiny_context(training=tiny_records(8))
    shown: list[int] = []
    object.__setattr__(context, "progress", lambda name, done, total: shown.append(done))
    editor = mend(context, steps=300, batch=1, rank=4, learning_rate=1e3, rate_rate=1e3, patience=2)
    editor.prepare()
    assert shown[-1] == 40
    assert torch.equal(editor.network.alpha, torch.full_like(editor.network.alpha, 1e-4))


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_it_trains_on_other_architectures(model_type: str) -> None:
    context = tiny_context(model_type, training=tiny_records(10))
    editor = mend(context, steps=20, batch=4, rank=8, edit_weight=1.0, rate_rate=1e-3, held_out=0.2)
    examples = editor.examples()
    samples = [editor._sample(examples, [e], random.Random(0)) for e in examples]
    before = untrained(mend(context), 0.0).measured(samples)
    editor.prepare()
    assert editor.merit(*editor.measured(samples)) < editor.merit(*before)


def test_in_half_precision() -> None:
    editor = mend(tiny_context(dtype=torch.bfloat16, training=tiny_records(6)), steps=2, batch=2, rank=4)
    editor.edit(tiny_edits(2, first=20))
    assert all(weight.dtype == torch.bfloat16 for weight in editor.weights.values())
    assert all(p.dtype == torch.float32 for p in editor.network.parameters())


def test_moments_are_those_of_all_pairs_of_which_few_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of a thousand records are many gigabytes on a large base."""
    editor = mend(tiny_context(training=tiny_records(40)), blocks=1, whole_ffn=False)
    editor.network = editor.untrained()
    [(path, module)] = editor.linears.items()
    examples, size = editor.examples(), sum(sizes(module))
    held: list[int] = []
    fit = Moments.fit

    def counted(self: Moments, *given: Any) -> None:
        gc.collect()
        tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.ndim == 2 and t.shape[1] == size]
        held.append(max((len(t) for t in tensors), default=0))
        fit(self, *given)

    monkeypatch.setattr(Moments, "fit", counted)
    editor._begin(examples)
    pairs = [editor.gradients([example.query]) for example in examples]
    z = torch.cat([torch.cat(factors[path], -1)[mask.bool()] for factors, mask in pairs])
    moments = editor.network.moments[0]
    torch.testing.assert_close(moments.mean, z.mean(0), atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(moments.deviation, z.std(0) + SMALL, atol=1e-7, rtol=1e-4)
    assert held[0] <= len(z) / 2
    everything = z.clone()  # the control: what is held is seen
    counted(Moments(size), everything.double().sum(0), everything.double().square().sum(0), len(z))
    assert held[1] == len(z)
