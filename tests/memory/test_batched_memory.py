"""Rows under memories of their own say what they say alone."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, BATCH, memory_by_hand, wrap_tiny

import wise
from wise.errors import ConfigError
from wise.memory.batched_memory import BatchedMemory
from wise.memory.side_memory import SideMemory
from wise.training.generation import left_pad

IDS, MASK = left_pad(BATCH, device=torch.device("cpu"))
MODES = ("merge", "retrieve", "hybrid")


def batched_for(wrapped: wise.WiseModel) -> BatchedMemory:
    return BatchedMemory(None if wrapped.inputs is None else wrapped.inputs.sequences)


def logits(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, attention_mask=mask, use_cache=False).logits * mask[..., None]  # pads say nothing


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_each_row_is_under_its_own_memory(model_type: str, mode: str) -> None:
    wrapped = wrap_tiny(model_type, mode)
    one = wrapped.layer.memory
    with wrapped.serving(memory_by_hand(wrapped, seed=7, strength=6.0)):
        two = wrapped.layer.memory
    assert one is not None and two is not None
    batched = batched_for(wrapped)

    def said(rows: list[SideMemory | None]) -> torch.Tensor:
        batched.rows = rows
        wrapped.layer.memory = batched
        return logits(wrapped, IDS, MASK)

    def whole(memory: SideMemory | None) -> torch.Tensor:
        wrapped.layer.memory = memory
        return logits(wrapped, IDS, MASK)

    alone = {name: whole(memory) for name, memory in (("one", one), ("two", two), ("base", None))}
    assert not torch.allclose(alone["one"], alone["two"], atol=1e-3)  # the memories can be told apart
    out = said([one, two, None])
    for row, name in enumerate(("one", "two", "base")):
        torch.testing.assert_close(out[row], alone[name][row], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(said([two, None, one])[2], alone["one"][2], atol=1e-5, rtol=1e-4)
    assert torch.equal(said([None, None, None]), alone["base"])


@pytest.mark.parametrize("mode", MODES)
def test_it_tells_which_memory_decided_what(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode)
    memory = wrapped.layer.memory
    assert memory is not None
    batched = batched_for(wrapped)
    wrapped.layer.memory = batched
    batched.rows = [None, memory, memory]
    logits(wrapped, IDS, MASK)
    (record,) = batched.records
    assert (record.rows, record.width, len(record.activation)) == ((1, 2), IDS.shape[1], 2 * IDS.shape[1])
    assert record.route.open.any() and not record.route.open.all()
    wrapped.layer.memory = memory
    alone = wrapped.route(IDS[1:2, 6:])
    assert alone is not None
    assert record.route.open.view(2, -1)[0, 6:].tolist() == alone.open.tolist()
    keys = record.keys()
    assert len(keys) == len(record.activation) and (min(keys) >= 0) == (mode == "retrieve")


def test_what_was_heard_can_be_asked_about_after_another_forward() -> None:
    wrapped = wrap_tiny("llama", "hybrid")
    memory, batched = wrapped.layer.memory, batched_for(wrapped)
    assert memory is not None and wrapped.inputs is not None
    wrapped.layer.memory = batched
    batched.rows = [None, memory, memory]
    logits(wrapped, IDS, MASK)
    (record,) = batched.records
    assert record.read is not None
    assert [ids.tolist() for ids in record.read.ids] == BATCH[1:]
    assert [len(places) for places in record.read.places] == [3, 6] and record.read.size == 2 * IDS.shape[1]
    batched.rows = [memory]
    wrapped(torch.tensor([[5, 6]]))
    later = wrapped.inputs.sequences.rows
    with record.reader.showing(record.read):  # type: ignore[union-attr]
        again = memory.route(record.activation)
    assert torch.equal(again.score, record.route.score) and len(record.keys()) == 2 * IDS.shape[1]
    assert wrapped.inputs.sequences.rows is later and [ids.tolist() for ids in later.ids] == [[5, 6]]


def test_a_batch_that_it_was_not_told_of_is_refused() -> None:
    wrapped = wrap_tiny("llama", None)
    batched = BatchedMemory(None)
    wrapped.layer.memory = batched
    with pytest.raises(ConfigError, match="0 memories"):
        logits(wrapped, IDS, MASK)
    batched.rows = [None] * 5
    with pytest.raises(ConfigError, match="5 memories"):
        logits(wrapped, IDS, MASK)


@pytest.mark.parametrize("mode", MODES)
def test_rows_under_one_memory_are_not_gathered(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode)
    memory, batched = wrapped.layer.memory, batched_for(wrapped)
    seen: list[torch.Tensor] = []
    batched.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    wrapped.layer.memory = batched
    for rows, gathered in (([memory] * 3, False), ([memory, None, memory], True)):
        batched.rows = rows
        logits(wrapped, IDS, MASK)
        [record] = batched.records
        assert (record.activation.data_ptr() != seen[-1].data_ptr()) == gathered
