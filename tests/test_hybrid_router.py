"""The hybrid router opens where both kinds of evidence reach their floor, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BATCH, put, route_of, same_tensors, tiny_model, tiny_tokenizer, wrap_tiny
from torch.nn.functional import linear, normalize

import wise
from wise.errors import ConfigError
from wise.memory.key_space import APART, HIGHEST, of_whom
from wise.memory.slot import ValueSlot
from wise.memory.state import MemoryState
from wise.reading import read_rows
from wise.router.hybrid import HybridRouter, choose
from wise.router.screen import name_screen, screen


def beside(values, t, seen, projection):  # noqa: ANN001, ANN201
    """Token t alone, and where the projection takes it behind the one before, if that is seen."""
    if projection.shape[1] == values.shape[1]:
        return [values[t]]
    nothing = torch.zeros_like(values[t])
    return [torch.cat([values[t], each]) for each in [nothing, *([values[t - 1]] if t and seen[t - 1] else [])]]


def by_hand(relation, values, mask, projection, shift, keys, floors, subject_floor):  # noqa: ANN001, ANN201
    """Token by token and edit by edit: (open, key) of those that open."""
    width, found = len(relation) // len(values), []
    for n in range(len(relation)):
        row, place = divmod(n, width)
        scores = {}
        for e in range(len(keys)):
            seen = mask[row, 0, place].tolist()
            near = [
                max(
                    (
                        float(torch.dot(normalize(linear(vector, projection, shift), dim=-1), part))
                        for t in range(len(seen))
                        if seen[t]
                        for vector in beside(values[row], t, seen, projection)
                    ),
                    default=-2.0,
                )
                for part in keys[e].view(-1, 3)
            ]
            pairs = zip(near[::2], near[1::2], strict=True) if len(near) > 1 else [(near[0], near[0])]
            subject = max(beginning / 3 + 2 * end / 3 for beginning, end in pairs)
            if float(relation[n, e]) >= float(floors[e]) and subject >= float(subject_floor):
                scores[e] = float(relation[n, e]) + subject
        found.append(max(scores, key=lambda e: scores[e]) if scores else None)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([-0.5, 0.0, 0.4]),
    st.sampled_from([-0.5, 0.2, 0.6]),
    st.booleans(),
    st.sampled_from([1, 2, 6]),
)
def test_it_chooses_as_a_search_by_hand_does(
    seed: int, relation_floor: float, subject_floor: float, before: bool, parts: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    query, asked = (normalize(torch.randn(n, 3, generator=g), dim=-1) for n in (6, 4))
    values, keys = torch.randn(2, 5, 3, generator=g), normalize(torch.randn(4, parts, 3, generator=g), dim=-1)
    keys = keys.flatten(1)
    mask = torch.rand(2, 1, 3, 5, generator=g) < 0.5
    projection, shift = torch.randn(3, 6 if before else 3, generator=g), torch.randn(3, generator=g)
    floors = abs(relation_floor) + 0.05 + 0.3 * torch.rand(4, generator=g)
    subject = torch.tensor(abs(subject_floor) + 0.05)
    heads = values.view(2, 5, 3, 1).transpose(1, 2)
    asks, gated = torch.rand(6, generator=g), torch.rand(4, generator=g) < 0.7
    counted = (query @ asked.T) * torch.where(gated, asks[:, None], 1)
    wanted = by_hand(counted, values, mask, projection, shift, keys, floors, subject)
    least = torch.where(gated, floors, 9).min()
    screens = [part for own in (gated, ~gated) for part in screen(asked[own], floors[own])]
    names = name_screen(keys, parts, subject)
    for everywhere in (False, True):
        found = (query, asks, torch.arange(6), 3, least, *screens, gated, asked, floors)
        key, value = choose(*found, heads, mask, projection, shift, keys, *names, subject, parts, everywhere)
        assert [int(k) if v >= 1 else None for k, v in zip(key, value, strict=True)] == wanted
        for n in range(6):  # what is told of a token, also where nothing opens, is told of it alone
            one = (query[n : n + 1], asks[n : n + 1], torch.tensor([n]), 3, least, *screens, gated, asked, floors)
            alone = choose(*one, heads, mask, projection, shift, keys, *names, subject, parts, everywhere)
            assert int(alone[0]) == int(key[n]) and float(alone[1]) == pytest.approx(float(value[n]), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 1500), st.floats(0.0, 1.0))
def test_what_the_screen_holds_back_reaches_no_key(seed: int, count: int, spread: float) -> None:
    g = torch.Generator().manual_seed(seed)
    hubs = torch.randn(5, 8, generator=g)
    noise = spread * torch.randn(count, 8, generator=g)
    keys = normalize(hubs[torch.randint(5, (count,), generator=g)] + noise, dim=-1)
    floors = 0.1 + 0.9 * torch.rand(count, generator=g)
    near = keys[:50] + 0.3 * torch.randn(len(keys[:50]), 8, generator=g)
    query = normalize(torch.cat([torch.randn(300, 8, generator=g), keys[:50], near]), dim=-1)
    centres, bounds = screen(keys, floors)
    passes = (query @ centres.T >= bounds).any(-1)
    assert not bool(((query @ keys.T >= floors).any(-1) & ~passes).any())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 6]), st.floats(0.0, 1.0), st.floats(-0.9, 0.99))
def test_what_the_middle_of_a_name_rules_out_is_below_its_floor(
    seed: int, parts: int, spread: float, floor: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    hubs = torch.randn(50, 1, 8, generator=g) + spread * torch.randn(50, parts, 8, generator=g)
    keys = normalize(hubs, dim=-1)
    tokens = normalize(torch.cat([torch.randn(200, 8, generator=g), keys[:, -1] + 0.2 * keys[:, 0]]), dim=-1)
    middles, bounds = name_screen(keys.flatten(1), parts, torch.tensor(floor))
    cosines = tokens @ keys.flatten(0, 1).T
    # At its best for a token that stands for the end of a name, whose beginning was found as it is in the key.
    cosines = cosines.view(-1, 50, parts)
    cosines[..., 0::2] = cosines[..., 0::2] if parts == 1 else 1.0
    ruled_out = tokens @ middles.T < bounds
    assert not bool((ruled_out & (of_whom(cosines.flatten(1), parts) >= floor)).any())
    if spread < 0.1 and floor > 0.5:
        assert float(ruled_out.float().mean()) > 0.3


def test_the_screen_holds_back_most_of_what_is_far_from_all_keys() -> None:
    g = torch.Generator().manual_seed(0)
    hubs = torch.randn(20, 64, generator=g)
    keys = normalize(hubs.repeat(100, 1) + 0.05 * torch.randn(2000, 64, generator=g), dim=-1)
    centres, bounds = screen(keys, torch.full((2000,), 0.6))
    query = normalize(torch.randn(1000, 64, generator=g), dim=-1)
    assert len(centres) < 300 and float((query @ centres.T >= bounds).any(-1).float().mean()) < 0.2
    assert bool((keys @ centres.T >= bounds).any(-1).all())


def test_either_kind_of_evidence_alone_opens_nothing() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=1)
    state = wrapped.state
    assert state.key_space is not None and state.subject_space is not None
    lax = replace(state.key_space, floors=(0.01,)), replace(state.subject_space, floors=(0.01,))
    strict = replace(state.key_space, floors=(1.0,)), replace(state.subject_space, floors=(1.0,))
    opened = []
    for relation, subject in (lax, (lax[0], strict[1]), (strict[0], lax[1])):
        put(wrapped, replace(state, key_space=relation, subject_space=subject))
        opened.append(sum(int(route_of(wrapped, row).open.sum()) for row in BATCH))
    assert opened[0] > 0 and opened[1:] == [0, 0]


def test_a_gated_key_opens_only_where_a_question_ends_and_another_anywhere() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=1)
    state, space = wrapped.state, wrapped.state.key_space
    assert space is not None
    rows = torch.randint(4, 96, (20, 8), generator=torch.Generator().manual_seed(1)).tolist()
    asks = space.asks(read_rows(wrapped.model, wrapped.layer, rows).flatten(0, 1))
    opened = {}
    for gated in (True, False):
        slots = tuple(replace(slot, gated=torch.tensor([gated])) for slot in state.slots)
        put(wrapped, replace(state, slots=slots))
        opened[gated] = torch.cat([route_of(wrapped, row).open for row in rows])
    assert bool(opened[False][opened[True]].all()) and bool(opened[True].any())
    unasked = asks < space.floor(3)
    assert not bool((opened[True] & unasked).any()) and int((opened[False] & unasked).sum()) > 3
    put(wrapped, replace(state, slots=slots, key_space=replace(space, gate=None)))
    assert torch.equal(torch.cat([route_of(wrapped, row).open for row in rows]), opened[False])


def test_a_key_that_no_gate_holds_back_lies_above_running_text() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=1)
    state, space = wrapped.state, wrapped.state.key_space
    assert space is not None
    row = [*BATCH[0], *BATCH[2]]
    opened = {}
    for gated in (True, False):
        slots = tuple(replace(slot, gated=torch.tensor([gated])) for slot in state.slots)
        for name in ("silent", "text"):
            put(wrapped, replace(state, slots=slots, key_space=replace(space, gate=None, text=None)))
            read = wrapped.layer.memory.router
            heard = read_rows(wrapped.model, wrapped.layer, [row])[0].float()
            spoken = read.relation(read.reader.beside(heard, torch.arange(len(row)), space.recent))
            if name == "text":
                put(wrapped, replace(state, slots=slots, key_space=replace(space, gate=None, text=spoken)))
            opened[gated, name] = route_of(wrapped, row).open
            keys, floors = (getattr(wrapped.layer.memory.router, part) for part in ("relation_keys", "relation_floors"))
            above = (spoken @ keys.T).amax(0) + APART
            if (gated, name) == (False, "text"):
                torch.testing.assert_close(floors, above.clamp(floors.min(), HIGHEST))
    assert int(opened[False, "silent"].sum()) > 3 and not bool(opened[False, "text"].any())
    assert torch.equal(opened[True, "silent"], opened[True, "text"]), "a gate is enough"


@pytest.mark.parametrize("mode", ["hybrid", "hybrid rank-one"])
def test_looking_where_something_may_open_finds_what_looking_everywhere_does(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=1)
    memory = wrapped.layer.memory
    assert isinstance(memory.router, HybridRouter)
    assert bool(memory.router.gated.all()) == (mode != "hybrid")
    activation = read_rows(wrapped.model, wrapped.layer, [[*BATCH[0], *BATCH[2], *BATCH[1]]])[0]
    route, (key, value) = memory.route(activation), memory.router._in_float32(activation, everywhere=True)
    assert torch.equal(route.open, value >= 1) and bool(route.open.any()) and not bool(route.open.all())
    torch.testing.assert_close(route.score[route.open], value[route.open])
    assert torch.equal(route.slot[route.open], memory.router.key_slots[key][route.open])


@pytest.mark.parametrize("mode", ["hybrid", "hybrid rank-one"])
def test_what_a_token_scores_does_not_depend_on_what_opens_beside_it(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=1)
    rows = torch.randint(4, 96, (30, 4), generator=torch.Generator().manual_seed(2)).tolist()
    together = wrapped.route(torch.tensor(rows))
    assert together is not None
    scores, alone = together.score.view(30, 4), [route_of(wrapped, row) for row in rows]
    shut = [route.delta is None for route in alone]
    assert 3 < sum(shut) < 27 and any(float(route.score.max()) > 0 for route in alone if route.delta is None)
    for score, route in zip(scores, alone, strict=True):
        torch.testing.assert_close(route.score, score, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_is_passed_over_would_have_opened_no_gate(dtype: torch.dtype) -> None:
    wrapped = wrap_tiny("llama", "hybrid rank-one", layer=1)
    wrapped.model.to(dtype)
    space = wrapped.state.key_space
    assert space is not None
    put(wrapped, replace(wrapped.state, key_space=replace(space, floors=(0.3,))))
    memory = wrapped.layer.memory
    rows = torch.randint(4, 96, (60, 1), generator=torch.Generator().manual_seed(3))
    passed, spoke, needed = [], [], memory.router.needed
    for row in rows[:, None]:
        activation = read_rows(wrapped.model, wrapped.layer, row.tolist())
        silent, opened = memory.router.silent(activation), bool(memory.route(activation).open.any())
        assert not (silent and opened)
        passed.append(silent)
        spoke.append(opened)
        output = memory(activation, activation.new_zeros(1, 1, wrapped.projection.out_features))
        memory.router.needed = -torch.inf
        assert torch.equal(output, memory(activation, torch.zeros_like(output))) and bool(output.any()) == opened
        memory.router.needed = needed
    assert 3 < sum(passed) < 57 and 0 < sum(spoke)
    some = wrap_tiny("llama", "hybrid", layer=1)  # one of its keys is compared at every token
    activation = read_rows(some.model, some.layer, rows.tolist())
    assert not any(some.layer.memory.router.silent(one) for one in activation)


def test_evidence_is_the_gate_everywhere() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=1)
    memory = wrapped.layer.memory
    seen = []
    handle = wrapped.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        wrapped(torch.tensor([BATCH[0]]))
    handle.remove()
    route, evidence = memory.route(seen[0]), memory.evidence(seen[0])
    assert torch.equal(route.open, evidence.value >= 1)
    assert torch.equal(route.slot[route.open], evidence.slot[route.open])
    assert bool(route.open.any()) and not bool(route.open.all())


def test_what_is_deleted_was_never_there() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=1)
    state = wrapped.state
    left = state.without(["e1"])
    afresh = MemoryState(
        edits=(state.edits[0], state.edits[2]),
        slots=(state.slots[0], replace(state.slots[2], id=1)),
        keys={i: state.keys[i] for i in ("e0", "e2")},
        key_space=state.key_space,
        subject_space=state.subject_space,
    )
    assert left.edits == afresh.edits and [s.id for s in left.slots] == [0, 1]
    assert all(same_tensors(a.tensors(), b.tensors()) for a, b in zip(left.slots, afresh.slots, strict=True))
    logits = []
    for one in (left, afresh, state):
        put(wrapped, one)
        with torch.no_grad():
            logits.append(wrapped(torch.tensor([BATCH[0]])).logits)
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_with_nothing_left_it_is_the_base_bit_for_bit_and_unwrap_takes_the_reader_away() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        plain = model(torch.tensor([BATCH[0]])).logits
        wrapped = wrap_tiny(model, "hybrid", layer=1)
        assert not torch.equal(wrapped(torch.tensor([BATCH[0]])).logits, plain)
        put(wrapped, wrapped.state.without(["e0", "e1", "e2"]))
        assert wrapped.state.slots == () and torch.equal(wrapped(torch.tensor([BATCH[0]])).logits, plain)
        attention = model.model.layers[0].self_attn
        assert len(attention._forward_pre_hooks) == 1
        wrapped.unwrap()
    assert not attention._forward_pre_hooks


def test_a_value_slot_adds_its_value_and_refuses_other_widths() -> None:
    fields = {"values": torch.arange(6.0).view(2, 3), "places": torch.tensor([0, 2])}
    fields["gated"] = torch.tensor([True, False])
    slot = ValueSlot(id=0, edit_ids=("a",), scores=(1.0,), features=4, **fields)
    assert torch.equal(slot.delta(torch.zeros(2, 5, 4)), torch.arange(3.0).expand(2, 5, 3))
    with pytest.raises(RuntimeError, match="5 features, 4 expected"):
        slot.delta(torch.zeros(2, 5))


def test_tokens_that_attention_did_not_see_are_refused() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=1)
    with pytest.raises(ConfigError, match="7 tokens reach the side memory and attention saw 1 rows|run the model"):
        wrapped.reader.recorded = torch.zeros(2, 2, 3, 8)
        wrapped.layer.memory.route(torch.zeros(7, 64))


def test_a_router_is_for_hybrid_alone() -> None:
    with pytest.raises(ConfigError, match="mode='retrieve' has no trained router"):
        wise.wrap(tiny_model("llama"), tiny_tokenizer(), wise.WiseConfig(mode="retrieve"), router="router.safetensors")
