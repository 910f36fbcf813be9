"""GRACE: values within balls, the base bit for bit outside, and the rules by which entries come in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from editing_contexts import tiny_context, tiny_edits
from tiny import BATCH, padded, text
from torch import Tensor

from wise.edits import Edit
from wise.lab.editors.grace import Codebook, Grace, GraceSettings
from wise.training.generation import greedy

ARCHITECTURES = ("llama", "gpt2", "opt")


def grace(model_type: str = "llama", **settings: Any) -> Grace:
    return Grace(tiny_context(model_type), GraceSettings(**{"layer": 1, "epsilon": 0.3, **settings}))


def logits(editor: Grace, rows: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return editor.model(**padded(rows), use_cache=False).logits


def book(*entries: tuple[float, float, int]) -> Codebook:
    """Of (key, radius, label) on a line."""
    keys, radii, labels = zip(*entries, strict=True)
    return Codebook(
        keys=torch.tensor(keys)[:, None],
        values=torch.arange(len(keys)).float()[:, None],
        radii=torch.tensor(radii),
        labels=tuple((label,) for label in labels),
    )


def written(old: Codebook, key: float, label: int, radius: float) -> tuple[Codebook, int]:
    return old.inserted(torch.tensor([key]), (label,), torch.tensor([-1.0]), torch.tensor(radius))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_value_inside_and_base_bit_for_bit_outside(model_type: str) -> None:
    editor = grace(model_type, steps=3)
    activations = torch.randn(2, 3, editor.layer.in_features, generator=torch.Generator().manual_seed(0))
    if model_type == "opt":
        activations = activations.flatten(0, 1)
    base = editor.layer.base_module(activations)
    assert torch.equal(editor.layer(activations), base)
    key = activations.reshape(6, -1)[4]
    near = activations + 0.01
    value = torch.full((editor.layer.out_features,), 7.0)
    radius = 0.02 * key.norm()
    editor.layer.codebook, _ = editor.layer.codebook.inserted(key, (1,), value, radius)
    assert (near.reshape(6, -1)[4] - key).norm() < radius
    for given in (activations, near):
        expected = editor.layer.base_module(given).reshape(6, -1).clone()
        expected[4] = value
        assert torch.equal(editor.layer(given).reshape(6, -1), expected)
    far = activations + 1.0  # the control: beyond the radius
    assert torch.equal(editor.layer(far), editor.layer.base_module(far))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_edits_are_spoken_alike_alone_in_a_batch_and_without_cache(model_type: str) -> None:
    editor = grace(model_type, layer=0, steps=20)
    edits = tiny_edits(2)
    prompts = [editor.encoder.prompt(edit.prompt) for edit in edits] + BATCH[:1]
    unedited = greedy(editor.model, prompts, stops=editor.encoder.stops, max_new_tokens=4)
    editor.edit(edits)
    together = greedy(editor.model, prompts, stops=editor.encoder.stops, max_new_tokens=4)  # left-padded, cached
    assert [answer[0] for answer in together[:2]] == [30, 31] and together[2] == unedited[2]
    assert [answer[0] for answer in unedited[:2]] != [30, 31]
    for prompt, said in zip(prompts, together, strict=True):
        assert greedy(editor.model, [prompt], stops=editor.encoder.stops, max_new_tokens=4) == [said]
        assert logits(editor, [[*prompt, *said[:-1]]])[0, len(prompt) - 1 :].argmax(-1).tolist() == said


def test_later_tokens_read_the_value_through_the_blocks_above() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    for layer, reaches in ((1, True), (2, False)):  # the control: at the last block nothing is above
        editor = grace(layer=layer, epsilon=1e-3)
        with torch.no_grad():
            before = editor.model(ids, use_cache=False).logits[0]
            key, start = (tokens[2] for tokens in editor.layer.layer_io(editor.model, [5, 6, 7, 8, 9]))
            editor.layer.codebook, _ = editor.layer.codebook.inserted(key, (1,), start + 5, 1e-3 * key.norm())
            after = editor.model(ids, use_cache=False).logits[0]
        assert torch.equal(before[:2], after[:2]) and not torch.equal(before[2], after[2])
        assert torch.equal(before[3:], after[3:]) != reaches


def test_prompts_that_hit_no_ball_are_read_by_the_base() -> None:
    editor = grace(epsilon=0.05, steps=5)
    before = logits(editor, BATCH)
    edit = tiny_edits(1)[0]
    asked = [editor.encoder.prompt(edit.prompt)]
    without = logits(editor, asked)
    editor.edit([edit])
    assert torch.equal(logits(editor, BATCH), before)
    assert not torch.equal(logits(editor, asked)[:, -1], without[:, -1])
    with editor.disabled():
        assert torch.equal(logits(editor, asked), without)


def test_far_key_makes_an_entry() -> None:
    new, entry = written(book((0.0, 1.0, 5)), 2.5, 5, 1.0)
    assert entry == 1 and len(new) == 2
    assert new.radii.tolist() == [1.0, 1.0] and new.values[1].item() == -1.0


def test_same_label_expands_just_so_far() -> None:
    new, entry = written(book((0.0, 1.0, 5)), 1.5, 5, 1.0)
    assert entry == 0 and len(new) == 1 and new.radii.tolist() == [1.5]
    new, _ = written(book((0.0, 1.0, 5)), 0.5, 5, 1.0)
    assert new.radii.tolist() == [1.0]  # inside already


def test_other_label_splits_into_balls_that_do_not_overlap() -> None:
    new, entry = written(book((0.0, 1.0, 5)), 1.5, 6, 1.0)
    assert entry == 1 and new.labels == ((5,), (6,))
    assert new.radii.tolist() == [0.75, 0.75]
    small, _ = written(book((0.0, 0.2, 5)), 1.0, 6, 1.0)
    assert small.radii.tolist() == pytest.approx([0.2, 0.5])  # never enlarged


def test_labels_of_equal_mean_are_different_labels() -> None:
    old = Codebook(
        keys=torch.zeros(1, 1), values=torch.zeros(1, 1), radii=torch.ones(1), labels=((10, 20),)
    )
    new, _ = old.inserted(torch.tensor([1.5]), (14, 16), torch.zeros(1), torch.tensor(1.0))
    assert len(new) == 2 and new.radii.tolist() == [0.75, 0.75]


def test_nearest_key_decides_and_not_the_first_that_reaches() -> None:
    both = book((0.0, 3.0, 5), (2.0, 1.5, 6))
    distance, entry = both.nearest(torch.tensor([[1.5]]))
    assert entry.item() == 1 and distance.item() == pytest.approx(0.5)


def test_prompt_edited_anew_takes_its_entry_over() -> None:
    editor = grace(steps=10)
    old = Edit(prompt="w5 w10 w40 w7", target=text([30]), id="old")
    new = Edit(prompt="w5 w10 w40 w7", target=text([31]), id="new")
    editor.edit([old])
    report = editor.edit([new])
    assert report.outcomes[0].answer.startswith("w31") and report.replaced == ("old",)
    assert len(editor.layer.codebook) == 1 and editor.layer.codebook.radii[0] > 0


def test_base_parameters_take_part_in_nothing() -> None:
    editor = grace(steps=3)
    before = {name: p.clone() for name, p in editor.model.named_parameters()}
    editor.edit(tiny_edits(1))
    for name, parameter in editor.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
        assert parameter.requires_grad


def test_values_in_half_precision_models_are_float32() -> None:
    editor = Grace(tiny_context(dtype=torch.bfloat16), GraceSettings(layer=1, steps=3))
    editor.edit(tiny_edits(1))
    assert editor.layer.codebook.values.dtype == torch.float32
    assert logits(editor, BATCH).dtype == torch.bfloat16


def test_keys_values_and_radii_are_what_is_kept() -> None:
    editor = grace(steps=2)
    assert editor.memory_bytes == 0
    editor.edit(tiny_edits(2))
    assert editor.memory_bytes == 2 * 4 * (64 + 32 + 1)
