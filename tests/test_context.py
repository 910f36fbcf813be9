"""What the reader sees is what attention sees, and reading changes nothing."""

from __future__ import annotations

import inspect

import pytest
import torch
from tiny import ARCHITECTURES, BATCH, padded, tiny_model, tiny_tokenizer
from torch import nn

import wise
from wise.architectures import ATTENTION_OUTPUTS, locate, locate_attention
from wise.config import WiseConfig
from wise.errors import UnsupportedModelError
from wise.memory.context import ContextReader, recent, visible

each = pytest.mark.parametrize("model_type", ARCHITECTURES)


def attention_of(model: nn.Module, model_type: str) -> nn.Module:
    return model.get_submodule(ATTENTION_OUTPUTS[model_type].rpartition(".")[0].format(i=1))


@each
@torch.no_grad()
def test_reading_changes_no_bit_and_ends_with_remove(model_type: str) -> None:
    model = tiny_model(model_type)
    plain = [model(**padded(BATCH), use_cache=cached).logits for cached in (True, False)]
    reader = ContextReader(attention_of(model, model_type))
    for cached, expected in zip((True, False), plain, strict=True):
        reader.recorded = None
        assert torch.equal(model(**padded(BATCH), use_cache=cached).logits, expected)
        assert reader.values is not None and reader.values.shape[:2] == padded(BATCH)["input_ids"].shape
    reader.remove()
    reader.recorded = None
    model(**padded(BATCH))
    assert reader.values is None


@each
@torch.no_grad()
def test_a_token_sees_the_same_alone_padded_and_from_a_cache(model_type: str) -> None:
    model = tiny_model(model_type)
    reader = ContextReader(attention_of(model, model_type))

    def seen(row: int, width: int) -> torch.Tensor:
        """What the row's last token sees."""
        assert reader.values is not None
        places = torch.tensor([width - 1])
        return reader.values[row][visible(reader.mask, row, places, width, reader.values.shape[1])[0]]

    batch = padded(BATCH, 3)
    if "position_ids" in inspect.signature(model.forward).parameters:
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    model(**batch, use_cache=False)
    width = batch["input_ids"].shape[1]
    together = [seen(row, width) for row in range(len(BATCH))]
    for row, ids in enumerate(BATCH):
        alone = torch.tensor([ids])
        model(alone, use_cache=False)
        torch.testing.assert_close(seen(0, len(ids)), together[row], rtol=1e-4, atol=1e-5)
        first = model(alone[:, :-1], use_cache=True)
        past = first.cache if "cache" in first else first.past_key_values
        name = "cache" if "cache" in first else "past_key_values"
        model(alone[:, -1:], use_cache=True, attention_mask=torch.ones_like(alone), **{name: past})
        torch.testing.assert_close(seen(0, 1), together[row], rtol=1e-4, atol=1e-5)
    assert len({len(part) for part in together}) > 1, "rows of unlike length: the mask was never needed"


@each
@torch.no_grad()
def test_what_stands_beside_a_token_is_what_attention_keeps_of_the_last_that_it_sees(model_type: str) -> None:
    model = tiny_model(model_type)
    reader = ContextReader(attention_of(model, model_type))
    batch = padded(BATCH, 3)
    if "position_ids" in inspect.signature(model.forward).parameters:
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    model(**batch, use_cache=False)
    rows, width = batch["input_ids"].shape
    longest = 3  # windows are longer
    own = torch.arange(rows * width, dtype=torch.float32)[:, None]
    together = reader.beside(own, torch.arange(rows * width), longest).view(rows, width, -1)
    size = (together.shape[-1] - 1) // longest
    for row, ids in enumerate(BATCH):
        model(torch.tensor([ids]), use_cache=False)
        assert reader.values is not None
        alone = reader.values[0]
        for place in range(len(ids)):
            token = width - len(ids) + place
            found = together[row, token]
            assert float(found[0]) == row * width + token
            wanted = [alone[place - n] if n <= place else torch.zeros(size) for n in range(longest)]
            torch.testing.assert_close(found[1:], torch.cat(wanted), rtol=1e-4, atol=1e-5)
    assert reader.beside(own[: len(ids)], torch.tensor([1]), 0).tolist() == [[1.0]]


def test_of_tokens_that_are_not_seen_nothing_is_read() -> None:
    values = torch.arange(1.0, 7).view(1, 1, 6, 1)
    mask = torch.tensor([True, False, True, True, False, False]).view(1, 1, 1, 6)  # a hole, and room left in the cache
    assert recent(values, mask, torch.tensor([0]), 1, 4).tolist() == [[4, 3, 1, 0]]
    assert recent(values, None, torch.tensor([1]), 2, 2).tolist() == [[6, 5]]
    values[0, 0, 1] = torch.nan  # what is padded may hold anything
    assert recent(values, mask, torch.tensor([0]), 1, 4).tolist() == [[4, 3, 1, 0]]


def test_without_a_mask_a_token_sees_those_before_it() -> None:
    assert visible(None, 0, torch.tensor([0, 1]), 2, 4).tolist() == [[True] * 3 + [False], [True] * 4]


def test_masks_are_read_by_row_of_either_kind() -> None:
    bools = torch.tensor([[[[True, False]]], [[[False, True]]]])
    added = torch.where(bools, 0.0, torch.finfo(torch.float32).min)
    for mask in (bools, added):
        rows = [visible(mask, row, torch.tensor([0]), 1, 2)[0].tolist() for row in (0, 1)]
        assert rows == [[True, False], [False, True]]
    assert visible(bools[:1], 1, torch.tensor([0]), 1, 2)[0].tolist() == [True, False]


def test_attention_that_takes_no_cache_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="a cache .* and an attention_mask were expected"):
        ContextReader(nn.Linear(2, 2))


@pytest.mark.parametrize("layer,fraction,block", [(2, 0.0, 0), (2, 0.7, 2), (1, 0.99, 1), (0, 0.5, 0)])
def test_subjects_are_looked_for_at_a_depth_but_not_above_the_edited_block(
    layer: int, fraction: float, block: int
) -> None:
    model = tiny_model("llama")
    found = locate_attention(model, locate(model, WiseConfig(layer=layer)), fraction)
    assert found is model.model.layers[block].self_attn


def test_an_architecture_whose_attention_is_not_known_is_refused() -> None:
    model = tiny_model("llama")
    projection = locate(model, WiseConfig(layer=1))
    model.config.model_type = "stranger"
    with pytest.raises(UnsupportedModelError, match="'stranger' is not in the table of attention layers"):
        locate_attention(model, projection, 0.2)
    before = model.get_submodule(projection.path)
    config = WiseConfig(mode="hybrid", layer=1, value_projection="model.layers.{i}.mlp.down_proj")
    with pytest.raises(UnsupportedModelError, match="use mode='retrieve'"):
        wise.wrap(model, tiny_tokenizer(), config)
    assert model.get_submodule(projection.path) is before, "what is refused leaves the model as it was"
