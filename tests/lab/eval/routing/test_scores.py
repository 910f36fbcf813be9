"""Evidence: it says what the gate does, it is its formula, and no row's depends on another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import BATCH, VOCABULARY, nearest_keys, put, route_of, text, wrap_tiny
from torch import Tensor

import wise
from wise.errors import ConfigError
from wise.lab.eval.routing.scores import gate_ratios, prompt_ids, score_prompts, score_rows
from wise.memory.key_space import KeySpace
from wise.memory.side_memory import NO_SLOT, Router, SlotBank
from wise.router.activation import ActivationRouter, RetrievalRouter

TEXTS = [text(row) for row in BATCH]
MODES = ("merge", "retrieve")


def random_memory(
    mode: str, *, key_threshold: float = 0.3, dtype: torch.dtype = torch.float32
) -> tuple[SlotBank, Router]:
    generator = torch.Generator().manual_seed(3)
    count = 1 if mode == "merge" else 3
    bank = SlotBank(torch.randn(count, 5, 7, generator=generator).to(dtype))
    thresholds = torch.tensor([5.0, 6.0, 7.0])[:count]
    if mode == "merge":
        return bank, ActivationRouter(thresholds)
    keys = torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=-1)
    router = RetrievalRouter(
        thresholds=thresholds,
        keys=keys,
        key_slots=torch.arange(9) % 3,
        space=KeySpace(
            projection=torch.randn(4, 7, generator=generator), mean=torch.randn(7, generator=generator)
        ),
        key_threshold=key_threshold,
    )
    return bank, router


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_threshold", [-1.0, -0.2, 0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_evidence_is_at_least_one_exactly_where_the_gate_opens(
    mode: str, key_threshold: float, dtype: torch.dtype
) -> None:
    bank, router = random_memory(mode, key_threshold=key_threshold, dtype=dtype)
    activation = torch.cat([tokens(200), torch.zeros(1, 7), 1e-30 * tokens(5), 1e12 * tokens(5)])
    route = router(activation, bank)
    # Thresholds at the very scores of tokens and a step beside them: there division rounds to the wrong side.
    places = range(0, 200, 20)
    for score in route.score[list(places)].tolist():
        for limit in (score, torch.tensor(score).nextafter(torch.tensor(torch.inf)).item(), 0.0, torch.inf):
            name = "threshold" if mode == "merge" else "thresholds"
            setattr(router, name, torch.full_like(getattr(router, name), limit))
            found = router.evidence(activation, bank)
            assert torch.equal(found.value >= 1, router(activation, bank).open)
            assert found.value.isfinite().all() and found.value.dtype == torch.float32


def test_evidence_is_its_formula() -> None:
    bank, router = random_memory("retrieve", key_threshold=0.8)
    assert isinstance(router, RetrievalRouter)
    activation = tokens(300)
    found = router.evidence(activation, bank)
    for place, a in enumerate(activation.double()):
        query = router.projection.double() @ a + router.shift.double()
        cosines = [float(key.double() @ query / query.norm()) for key in router.keys]
        nearest = max(range(9), key=lambda key: cosines[key])
        slot = nearest % 3
        size = float((bank.weights[slot].double() @ a).norm())
        expected = min(cosines[nearest] / 0.8, size / float(router.thresholds[slot]))
        assert (found.key[place], found.slot[place]) == (nearest, slot)
        assert found.value[place].item() == pytest.approx(expected, rel=1e-4)
    # Under the threshold too there is a slot, and a score of it: the route itself has neither.
    far = router(activation, bank).slot == -1
    assert 10 < int(far.sum()) < 290 and (found.value[far] != 0).all()
    merge_bank, merge = random_memory("merge")
    merged = merge.evidence(activation, merge_bank)
    assert merged.value == pytest.approx((activation @ merge_bank.weights[0].T).norm(dim=-1) / 5, rel=1e-4)
    assert (merged.key == -1).all() and (merged.slot == 0).all()


def test_keys_are_named_as_the_index_names_them() -> None:
    wrapped = wrap_tiny("llama")
    state = wrapped.state
    # Ids that sort otherwise than the slots, and unlike numbers of keys.
    names = {"e0": "z", "e1": "a", "e2": "m"}
    generator = torch.Generator().manual_seed(5)
    extra = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    keys = {names[i]: torch.cat([k, extra]) if i == "e1" else k for i, k in state.keys.items()}
    put(
        wrapped,
        replace(
            state,
            edits=tuple(replace(edit, id=names[edit.id]) for edit in state.edits),
            slots=tuple(replace(slot, edit_ids=tuple(names[i] for i in slot.edit_ids)) for slot in state.slots),
            keys=keys,
        ),
    )
    assert sorted(set(wrapped.state.key_owners)) == ["a", "m", "z"]
    own, slots = wrapped.state.key_matrix()
    assert torch.equal(own, torch.cat([keys[edit_id] for edit_id in ("a", "m", "z")]))
    assert [state.slots[slot].edit_ids for slot in slots.tolist()] == [
        (next(old for old, new in names.items() if new == owner),) for owner in wrapped.state.key_owners
    ]
    rows = torch.randint(4, VOCABULARY, (40, 6), generator=generator).tolist()
    seen: list[Tensor] = []
    handle = wrapped.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    scored = score_rows(wrapped, rows)
    handle.remove()
    _, nearest, ids = nearest_keys(wrapped.state, seen[0].reshape(-1, seen[0].shape[-1]))
    assert [edit for row in scored for edit in row.edits] == ids
    assert [slot for row in scored for slot in row.slots] == nearest.tolist()
    assert len({edit for row in scored for edit in row.edits}) == 3


@pytest.mark.parametrize("mode", [*MODES, "hybrid"])
def test_a_row_is_scored_as_it_is_alone(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode)
    together = score_prompts(wrapped, TEXTS, name="x", every_token=True)
    last = score_prompts(wrapped, TEXTS, name="x")
    for ids, all_tokens, one in zip(map(wrapped.encoder.prompt, TEXTS), together, last, strict=True):
        route = route_of(wrapped, ids)
        alone = score_rows(wrapped, [ids])[0]
        assert len(all_tokens.values) == len(ids) and len(one.values) == len(one.slots) == len(one.edits) == 1
        assert all_tokens.values == pytest.approx(alone.values, rel=1e-4)
        assert one.values[0] == all_tokens.values[-1] and one.slots[0] == all_tokens.slots[-1]
        pairs = zip(route.slot.tolist(), route.open.tolist(), strict=True)
        assert list(all_tokens.speakers) == [slot if opened else None for slot, opened in pairs]
    assert {value >= 1 for row in together for value in row.values} == {True, False}


def test_a_slot_of_one_edit_names_it_and_where_none_is_looked_at_there_is_no_evidence() -> None:
    wrapped = wrap_tiny("llama", "hybrid")
    owners = {slot.id: slot.edit_ids[0] for slot in wrapped.state.slots}
    scored = score_rows(wrapped, [*BATCH, [90, 91, 92]])
    for row in scored:
        assert row.edits == tuple(owners.get(slot) for slot in row.slots)
        assert all(value == 0 for value, slot in zip(row.values, row.slots, strict=True) if slot == NO_SLOT)
    assert [row.edits[-1] for row in scored] == ["e0", "e1", "e2", None]


@pytest.mark.parametrize("model_type", ["bloom", "falcon", "gemma3_text", "gpt2", "opt", "qwen3"])
def test_other_architectures_are_scored_as_they_are_routed(model_type: str) -> None:
    wrapped = wrap_tiny(model_type)
    for ids, row in zip(BATCH, score_rows(wrapped, BATCH), strict=True):
        assert [value >= 1 for value in row.values] == route_of(wrapped, ids).open.tolist()


def test_gate_ratios_open_from_one_and_are_nought_without_edits() -> None:
    wrapped = wrap_tiny("llama")
    ratios = gate_ratios(wrapped, TEXTS)
    rows = [wrapped.encoder.prompt(prompt) for prompt in TEXTS]
    assert (ratios >= 1).tolist() == [bool(route_of(wrapped, ids).open[-1]) for ids in rows]
    assert gate_ratios(wrap_tiny("llama", None), TEXTS).tolist() == [0, 0, 0]


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ConfigError, match="no edit is live"):
        score_prompts(wrap_tiny("llama", None), TEXTS, name="x")
    wrapped = wrap_tiny("llama")
    wrapped.encoder = replace(wrapped.encoder, bos=())
    with pytest.raises(ConfigError, match="129 tokens, from 1 to 128"):
        score_prompts(wrapped, [*TEXTS, text([9] * 129)], name="x")
    with pytest.raises(ConfigError, match="0 tokens"):
        prompt_ids(wrapped, "")
    assert len(prompt_ids(wrapped, text([9] * 128))) == 128
    with pytest.raises(ConfigError, match="from 1 to 127"):
        prompt_ids(wrapped, text([9] * 128), room=1)


def test_nan_is_refused() -> None:
    wrapped = wrap_tiny("llama")
    with torch.no_grad():
        wrapped.model.get_input_embeddings().weight[BATCH[0][0]] = torch.nan
    assert isinstance(wrapped, wise.WiseModel)
    with pytest.raises(ConfigError, match="NaN"):
        score_rows(wrapped, BATCH)
    assert score_rows(wrapped, BATCH[1:])
