"""MEMOIR: masks of k columns, edits that touch no others, a memory that is silent for other prompts, rows apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from editing_contexts import tiny_context, tiny_edits
from tiny import BATCH, padded
from torch import Tensor

from wise.edits import Edit
from wise.errors import ConfigError
from wise.lab.editors.memoir import SILENT, Memoir, MemoirSettings, TopHash, prompt_means
from wise.training.generation import greedy, left_pad

ARCHITECTURES = ("llama", "gpt2", "opt")
FAST: dict[str, Any] = {"layer": 1, "contexts": 2, "steps": 4, "learning_rate": 3.0, "tau": 0.9}


def memoir(model_type: str = "llama", **settings: Any) -> Memoir:
    return Memoir(tiny_context(model_type, texts=TEXTS), MemoirSettings(**{**FAST, **settings}))


TEXTS = tuple(" ".join(f"w{4 + (7 * i + 5 * j) % 90}" for j in range(15)) for i in range(110))


def logits(editor: Memoir, rows: list[list[int]], **more: Any) -> Tensor:
    with torch.no_grad():
        return editor.model(**padded(rows), use_cache=False, **more).logits


def asked(editor: Memoir, count: int) -> list[list[int]]:
    return [editor.encoder.prompt(edit.prompt) for edit in tiny_edits(count)]


def test_masks_have_k_ones_and_are_the_same_ones_each_time() -> None:
    features = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    masks = TopHash(40, 12, seed=3).masks(features)
    assert masks.sum(-1).tolist() == [12] * 5
    assert torch.equal(masks, TopHash(40, 12, seed=3).masks(features))
    assert torch.equal(masks, TopHash(40, 12, seed=3).masks(-2 * features))  # how far, not which way
    assert not torch.equal(masks, TopHash(40, 12, seed=4).masks(features))
    assert TopHash(40, 12, seed=3).masks(torch.zeros(1, 40)).sum() == 12  # ties


def test_columns_are_a_permutation_of_the_features_that_stand_out() -> None:
    hashed = TopHash(40, 2, seed=0)
    features = torch.zeros(1, 40)
    features[0, 7], features[0, 21], features[0, 30] = 3.0, -4.0, 1.0
    assert hashed.masks(features)[0].nonzero().flatten().tolist() == sorted(hashed.permutation[[7, 21]].tolist())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_edit_changes_its_own_columns_only(model_type: str) -> None:
    editor = memoir(model_type, active=0.25)
    first, second = tiny_edits(2)
    editor.edit([first])
    before = editor.layer.memory
    changed = before.any(0)
    assert changed.any() and not (changed & ~editor.layer.masks[0]).any()
    editor.edit([second])
    moved = (editor.layer.memory != before).any(0)
    assert moved.any() and not (moved & ~editor.layer.masks[1]).any()
    assert editor.layer.masks.sum(-1).tolist() == [editor.layer.in_features // 4] * 2


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_output_is_the_base_and_the_masked_memory(model_type: str) -> None:
    editor = memoir(model_type)
    editor.edit(tiny_edits(2))
    layer, prompt = editor.layer, asked(editor, 2)[1]
    activation, output = layer.layer_io(editor.model, prompt)
    layer.prompts = torch.ones(1, len(prompt), dtype=torch.bool)
    shaped = activation if model_type == "opt" else activation[None]
    expected = output + (activation * layer.masks[1]) @ layer.memory.T
    with torch.no_grad():
        found = layer(shaped).view(expected.shape)
    torch.testing.assert_close(found, expected)
    unmasked = output + activation @ layer.memory.T  # the control
    assert not torch.allclose(found, unmasked, atol=1e-3)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_memory_is_silent_below_tau(model_type: str) -> None:
    editor = memoir(model_type)
    before = logits(editor, BATCH)
    prompt = asked(editor, 1)
    unedited = logits(editor, prompt)
    editor.edit(tiny_edits(1))
    shared = editor.layer.hash.masks(torch.cat([editor._mean(row) for row in BATCH]) - editor.layer.usual)
    ratios = (shared & editor.layer.masks[0]).sum(-1) / editor.layer.hash.count
    assert ratios.max() < 0.9
    assert torch.equal(logits(editor, BATCH), before)
    assert not torch.equal(logits(editor, prompt), unedited)
    editor.layer.tau = float(ratios.min())  # the control: all of them reach it
    assert not torch.equal(logits(editor, BATCH), before)


def test_another_wording_reads_with_the_mask_of_its_edit() -> None:
    editor = memoir(tau=0.3)
    editor.edit(tiny_edits(1))
    other = asked(editor, 1)[0][:-1]
    logits(editor, [other])
    assert editor.layer.matched is not None and editor.layer.matched.tolist() == [0]
    own = editor.layer.hash.masks(editor._mean(other) - editor.layer.usual)
    assert not torch.equal(own[0], editor.layer.masks[0])
    activation, output = editor.layer.layer_io(editor.model, other)
    expected = output + (activation * editor.layer.masks[0]) @ editor.layer.memory.T
    editor.layer.prompts = torch.ones(1, len(other), dtype=torch.bool)
    torch.testing.assert_close(editor.layer(activation[None])[0].detach(), expected)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_rows_do_not_depend_on_each_other_nor_on_caches(model_type: str) -> None:
    editor = memoir(model_type)
    editor.edit(tiny_edits(2))
    prompts = [*asked(editor, 2), *BATCH]
    stops = editor.encoder.stops
    together = greedy(editor.model, prompts, stops=stops, max_new_tokens=6)  # left-padded, cached
    for prompt, said in zip(prompts, together, strict=True):
        assert greedy(editor.model, [prompt], stops=stops, max_new_tokens=6) == [said]
        with editor.reading([len(prompt)]):
            best = logits(editor, [[*prompt, *said[:-1]]])[0, len(prompt) - 1 :].argmax(-1)
        assert best.tolist() == said
    with editor.disabled():
        assert greedy(editor.model, prompts[:2], stops=stops, max_new_tokens=6) != together[:2]
        assert greedy(editor.model, BATCH, stops=stops, max_new_tokens=6) == together[2:]


@torch.no_grad()
def test_decoding_goes_on_with_the_masks_of_the_prompts() -> None:
    editor = memoir()
    editor.edit(tiny_edits(2))
    prompts = [asked(editor, 2)[1], BATCH[1], asked(editor, 2)[0]]
    ids, mask = left_pad(prompts, device=torch.device("cpu"))
    out = editor.model(ids, attention_mask=mask, use_cache=True)
    assert editor.layer.matched.tolist() == [1, SILENT, 0]  # type: ignore[union-attr]
    mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
    editor.model(torch.tensor([[50], [51], [52]]), attention_mask=mask, cache=out.cache, use_cache=True)
    assert editor.layer.matched.tolist() == [1, SILENT, 0]  # type: ignore[union-attr]


def test_reading_says_where_prompts_end() -> None:
    editor = memoir()
    editor.edit(tiny_edits(1))
    prompt = asked(editor, 1)[0]
    rows = torch.tensor([[*prompt, *range(60, 70)], [*range(60, 70), *prompt]])
    with torch.no_grad():
        with editor.reading([len(prompt), 10]):
            editor.model(rows, use_cache=False)
        assert editor.layer.matched.tolist() == [0, SILENT]  # type: ignore[union-attr]
        editor.model(rows, use_cache=False)  # the control: whole rows are other prompts
        assert editor.layer.matched.tolist() == [SILENT, SILENT]  # type: ignore[union-attr]
        with editor.reading([3]), pytest.raises(ConfigError, match="1 lengths, and 2 rows"):
            editor.model(rows, use_cache=False)


def test_cache_of_prompts_that_were_not_seen_is_refused() -> None:
    editor = memoir()
    editor.edit(tiny_edits(1))
    ids = torch.tensor([asked(editor, 1)[0]])
    with torch.no_grad():
        with editor.disabled():
            cache = editor.model(ids, use_cache=True).cache
        with pytest.raises(ConfigError, match="did not see"):
            editor.model(torch.tensor([[50]]), cache=cache, use_cache=True)


def test_means_leave_out_what_is_no_prompt() -> None:
    rows = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([[False, False, True, True, True], [True, True, False, False, False]])
    found = prompt_means(rows, kept)
    torch.testing.assert_close(found, torch.stack([rows[0, 2:].double().mean(0), rows[1, :2].double().mean(0)]))
    assert torch.equal(found, prompt_means(rows.flatten(0, 1), kept))


def test_prompt_edited_anew_keeps_one_mask() -> None:
    editor = memoir()
    edit = tiny_edits(1)[0]
    editor.edit([edit])
    editor.edit([type(edit)(prompt=edit.prompt, target="w33", id="anew")])
    assert len(editor.layer.masks) == 1


def test_memory_masks_and_usual_activations_are_what_is_kept() -> None:
    editor = memoir()
    assert editor.memory_bytes == 0
    editor.edit(tiny_edits(2))
    assert editor.memory_bytes == 4 * 32 * 64 + 2 * 64 + 8 * 64


def test_unwrapped_model_has_no_hook_left() -> None:
    editor = memoir()
    model = editor.model
    assert model._forward_pre_hooks
    assert not editor.unwrap()._forward_pre_hooks


def test_prompts_of_one_form_do_not_all_match() -> None:
    """In a chat all prompts begin and end alike. Beside texts of another form that stands out, and they matched."""
    frame = "w20 w21 w22 w23 w24 w25 w26 w27 {} w28 w29 w30 w31 w32 w33"
    edit = Edit(prompt=frame.format("w50 w51"), target="w70")
    others = [frame.format(f"w{60 + i} w{80 + i}") for i in range(6)]
    matched = {}
    for unrelated in ((), tuple(frame.format(f"w{40 + i} w{4 + i}") for i in range(10))):
        context = tiny_context(texts=TEXTS, unrelated=unrelated)
        editor = Memoir(context, MemoirSettings(**{**FAST, "tau": 0.7}))
        editor.edit([edit])
        rows = [editor.encoder.prompt(text) for text in (edit.prompt, *others)]
        logits(editor, rows)
        matched[bool(unrelated)] = editor.layer.matched.tolist()  # type: ignore[union-attr]
    assert matched[True] == [0] + [SILENT] * 6
    assert matched[False][0] == 0 and 0 in matched[False][1:]  # the control
