"""Knowledge neurons: what attributions sum to, which neurons are kept, what is written into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from statistics import fmean

import pytest
import torch
from editing_contexts import demo_context, records, tiny_context, tiny_edits
from tiny import ARCHITECTURES, BOS, tiny_model
from torch import Tensor

from wise.edits import Edit
from wise.errors import UnsupportedModelError
from wise.lab.editors.context import EditingContext
from wise.lab.editors.neurons import (
    KnowledgeNeurons,
    KnowledgeNeuronsSettings,
    Neuron,
    activations,
    attributions,
    columns,
    next_token,
    refined,
    replaced,
    weight_name,
)
from wise.lab.editors.registry import make_baseline

ROW = [BOS, 5, 10, 40, 7]
SOME = ["llama", "gpt2", "opt", "gpt_neox"]


NORMED = {"gemma2", "gemma3_text"}
"""What the value projection puts out is normalised, so that the scale of all activations together hardly counts."""


@pytest.mark.parametrize("row", [ROW, [7]])
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_attributions_of_a_block_sum_to_what_it_adds(model_type: str, row: list[int]) -> None:
    """Completeness: the sum over steps comes near the integral, and one step does not."""
    context = tiny_context(model_type)
    token = int(next_token(context, row).argmax())
    full = float(next_token(context, row)[token])
    sums = [attributions(context, row, token, steps).sum(1) for steps in (200, 1)]
    added = []
    for layer in range(context.depth):
        with replaced(context, layer, torch.zeros_like, rows=1):
            added.append(full - float(next_token(context, row)[token]))
    errors = [float((found - torch.tensor(added)).abs().max()) for found in sums]
    if model_type in NORMED:
        assert float(sums[0].abs().max()) < 0.01 < max(map(abs, added))
    else:
        assert errors[0] < 0.01 and errors[0] < errors[1] / 5


@contextmanager
def modulated(context: EditingContext, neurons: Sequence[Neuron], factor: float) -> Iterator[None]:
    """The activations of neurons at the last token of a row, multiplied."""

    def multiplied(chosen: list[int], x: Tensor) -> Tensor:
        return x.index_copy(-1, torch.tensor(chosen), x[..., chosen] * factor)

    with ExitStack() as stack:
        for layer in {layer for layer, _ in neurons}:
            chosen = sorted({i for at, i in neurons if at == layer})
            stack.enter_context(replaced(context, layer, partial(multiplied, chosen), rows=1))
        yield


def scores(*rows: dict[Neuron, float]) -> list[Tensor]:
    found = []
    for row in rows:
        found.append(torch.full((2, 8), -0.1))
        for at, value in row.items():
            found[-1][at] = value
    return found


def test_neurons_are_kept_that_are_large_in_enough_prompts() -> None:
    settings = KnowledgeNeuronsSettings(threshold=0.5, share=0.7, fewest=1, most=2)
    own, theirs, small = (0, 1), (1, 2), (1, 7)
    three = scores(
        {own: 1.0, theirs: 0.6, small: 0.4}, {own: 0.2, small: 0.05}, {own: 0.5, theirs: 0.1, small: 0.2}
    )
    assert refined(three, settings) == [own]
    assert refined(three[:1], settings) == [own, theirs]  # one prompt has nothing to share with
    # The share falls until there are enough, but never to what one prompt alone has.
    assert refined(three, replace(settings, fewest=2)) == [own]
    two_of_four = scores({own: 1.0, theirs: 1.0}, {own: 1.0, theirs: 1.0}, {own: 1.0}, {own: 1.0})
    assert refined(two_of_four, settings) == [own]
    assert refined(two_of_four, replace(settings, fewest=2)) == [own, theirs]
    # It rises while there are too many, and of those that then still are the largest stay.
    three_of_four = scores({own: 1.0, theirs: 1.0}, {own: 1.0, theirs: 1.0}, {own: 1.0, theirs: 1.0}, {own: 1.0})
    assert refined(three_of_four, replace(settings, most=1)) == [own]
    everywhere = scores(*[{own: 0.9, theirs: 1.0, small: 0.8}] * 4)
    assert refined(everywhere, settings) == [theirs, own]
    assert refined(scores({}, {}), settings) == []


@pytest.mark.parametrize("model_type", SOME)
def test_the_change_is_the_one_of_the_paper(model_type: str) -> None:
    context = tiny_context(model_type)
    editor = make_baseline("kn", context, {"prefixes": 0, "old_scale": 2.0, "new_scale": 3.0})
    assert isinstance(editor, KnowledgeNeurons)
    head = context.model.get_output_embeddings().weight.detach()
    step = 3 * head[30] / head[30].norm() - 2 * head[20] / head[20].norm()
    for _ in range(2):  # a second edit of the same neurons adds as much again
        active, before = activations(context, ROW), dict(editor.weights)
        editor._update([(0, 3), (2, 1), (2, 5)], ROW, 20, 30)
        for layer in range(context.depth):
            name = weight_name(context, layer)
            now, last, own = (columns(context, layer, w[name]) for w in (editor.weights, before, editor.original))
            chosen = {0: [3], 2: [1, 5]}.get(layer, [])
            for i in chosen:
                wanted = active[layer][i].sign() * own[:, i].norm() * step
                assert torch.allclose(now[:, i] - last[:, i], wanted, atol=1e-4)
            rest = [i for i in range(own.shape[1]) if i not in chosen]
            assert torch.equal(now[:, rest], own[:, rest])
    assert sum(w is not editor.original[name] for name, w in editor.weights.items()) == 2


@pytest.mark.parametrize("model_type", SOME)
def test_the_new_answer_becomes_likelier_and_the_old_one_less(model_type: str) -> None:
    context = tiny_context(model_type)
    editor = make_baseline("kn", context, {"prefixes": 0, "new_scale": 8.0})
    (edit,) = tiny_edits(1)
    prompt, target = context.row(edit)
    before = next_token(context, prompt)
    old = int(before.argmax())
    editor.edit(edit)
    after = next_token(context, prompt)
    assert float(after[target[0]]) > float(before[target[0]]) and float(after[old]) < float(before[old])
    editor.unwrap()
    assert torch.equal(next_token(context, prompt), before)


def test_what_the_model_says_already_is_left_alone() -> None:
    context = tiny_context()
    said = int(next_token(context, context.encoder.prompt("w5 w6")).argmax())
    editor = make_baseline("kn", context, {"prefixes": 0})
    assert isinstance(editor, KnowledgeNeurons)
    written: list[int] = []
    editor._update = lambda neurons, row, old, new: written.append(new)  # type: ignore[method-assign]
    edit = Edit(prompt="w5 w6", target=f"w{said}")
    editor._write(edit)
    assert said not in written
    editor._write(Edit(prompt="w5 w6", target=f"w{said + 1}"))
    assert said + 1 in written


def test_a_fact_is_asked_in_several_ways() -> None:
    context = tiny_context()
    editor = make_baseline("kn", context, {"prefixes": 3})
    assert isinstance(editor, KnowledgeNeurons)
    editor.prepare()
    edit = Edit(prompt="w5 w6", target="w7", paraphrases=("w8 w6",))
    words = editor.wordings(edit)
    assert len(words) == 4 and words[0] == "w8 w6" and all(w.endswith("w5 w6") for w in words[1:])
    long = Edit(prompt="w5 " * 60, target="w7", paraphrases=("w8 " * 300,))
    assert all(len(context.encoder.prompt(text)) < context.encoder.context for text in editor.wordings(long))


def test_a_model_whose_embeddings_do_not_fit_its_blocks_is_refused() -> None:
    context = replace(tiny_context("opt"), model=tiny_model("opt", word_embed_proj_dim=16))
    with pytest.raises(UnsupportedModelError, match="width 32 expected.*16 found"):
        make_baseline("kn", context, {})


def test_the_neurons_of_a_fact_of_the_shipped_model_carry_it() -> None:
    """Suppressed they make the answer less likely and amplified likelier, unlike as many others."""
    context = demo_context()
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"suppressed": [], "amplified": [], "others": []}
    for record in records(6):
        row = context.encoder.prompt(record.edit.prompt)
        token = int(next_token(context, row).argmax())
        neurons = refined([attributions(context, row, token, 20)], KnowledgeNeuronsSettings())
        width = context.projection(0).in_features
        others = [(layer, int(torch.randint(width, (1,), generator=generator))) for layer, _ in neurons]
        plain = float(next_token(context, row)[token].log())
        for name, chosen, factor in (
            ("suppressed", neurons, 0.0), ("amplified", neurons, 2.0), ("others", others, 0.0),
        ):
            with modulated(context, chosen, factor):
                found[name].append(float(next_token(context, row)[token].log()) - plain)
    assert fmean(found["suppressed"]) < 0 < fmean(found["amplified"])
    assert fmean(found["suppressed"]) < 4 * min(0.0, fmean(found["others"]))
