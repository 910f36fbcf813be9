"""Invariant 8: what is told of a route is the route that was taken, and no edit is told of that is not there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import BATCH, EOS, PAD, nearest_keys, padded, put, text, tiny_model, wrap_tiny
from torch import Tensor
from transformers import DynamicCache

import wise
from wise.errors import ConfigError
from wise.explain import generated_ids, read_rows
from wise.memory.side_memory import NO_SLOT, Route
from wise.memory.state import MemoryState
from wise.router.hybrid import HybridRouter

modes = pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])
architectures = pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gemma2"])
LAYER = 1
OPTIONS = {"max_new_tokens": 8, "pad_token_id": PAD}
SAMPLED = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2}


@contextmanager
def overheard(wrapped: wise.WiseModel) -> Iterator[list[tuple[Tensor, Route]]]:
    """What enters the side memory in each forward, and the route that it takes there."""
    heard: list[tuple[Tensor, Route]] = []
    memory = wrapped.layer.memory
    assert memory is not None
    handle = memory.register_forward_pre_hook(lambda _, args: heard.append((args[0], memory.route(args[0]))))
    try:
        yield heard
    finally:
        handle.remove()


def by_column(heard: Sequence[tuple[Tensor, Route]], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Open, slot and score of every column of the sequences, `[rows, columns]`."""
    parts = [(route.open, route.slot, route.score) for _, route in heard]
    opened, slots, scores = (torch.cat([p.view(rows, -1) for p in each], dim=1) for each in zip(*parts, strict=True))
    return opened, slots, scores


def agrees(told: wise.RowRoutes, opened: Tensor, slots: Tensor, scores: Tensor) -> None:
    for token in told.tokens:
        assert (token.fired is not None) == bool(opened[token.place])
        if token.fired is not None:
            assert token.slot == token.fired.slot == int(slots[token.place])
        assert token.score == pytest.approx(float(scores[token.place]), rel=1e-3, abs=1e-3)


def stepwise(wrapped: wise.WiseModel, ids: Sequence[int], prompt: int) -> tuple[Tensor, Tensor, Tensor]:
    """One row decoded as it is: the prompt in one forward, then token by token from the cache."""
    taken = inspect.signature(wrapped.model.forward).parameters
    cache = {"cache" if "cache" in taken else "past_key_values": DynamicCache()}  # before transformers 5.24
    with overheard(wrapped) as heard, torch.no_grad():
        for part in (ids[:prompt], *([token] for token in ids[prompt:])):
            wrapped(torch.tensor([part]), use_cache=True, **cache)
    opened, slots, scores = by_column(heard, 1)
    return opened[0], slots[0], scores[0]


# -- told is what was routed ------------------------------------------------------------------


@modes
@architectures
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_what_is_told_is_what_was_routed_in_generation(model_type: str, mode: str, way: str) -> None:
    wrapped = wrap_tiny(model_type, mode, layer=LAYER)
    options = OPTIONS | (SAMPLED if way == "sampled" else {"do_sample": False})
    torch.manual_seed(3)
    with overheard(wrapped) as heard:
        output, told = wrapped.generate(**padded(BATCH, extra=2), return_routes=True, **options)
    columns = by_column(heard[:-1], len(output))  # the last forward is the one in which all is read once more
    assert len(told) == len(output) == len(BATCH) * options.get("num_return_sequences", 1)
    for row, routes in enumerate(told):
        agrees(routes, *(each[row] for each in columns))
        prompt = BATCH[row // options.get("num_return_sequences", 1)]
        assert routes.prompt_tokens == len(prompt)
        read = [int(output[row, token.place]) for token in routes.tokens]
        assert read[: len(prompt)] == prompt and [f"w{i}" for i in read if i > 3] == [
            token.token for token, i in zip(routes.tokens, read, strict=True) if i > 3
        ]
    spoke = [token.fired is not None for routes in told for token in routes.tokens[routes.prompt_tokens :]]
    assert 0 < sum(spoke) < len(spoke)


@modes
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_of_beams_the_sequences_that_are_returned_are_told(model_type: str, mode: str) -> None:
    wrapped = wrap_tiny(model_type, mode, layer=LAYER)
    beams = OPTIONS | {"do_sample": False, "num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True}
    output, told = wrapped.generate(**padded(BATCH), return_routes=True, **beams)
    width = max(map(len, BATCH))
    assert len(told) == len(output.sequences) == 6
    for row, routes in enumerate(told):
        ids = [int(output.sequences[row, token.place]) for token in routes.tokens]
        first = routes.tokens[0].place
        assert first == width - len(BATCH[row // 2])
        agrees(routes, *(torch.cat([each[:1].expand(first), each]) for each in stepwise(wrapped, ids, len(ids) - 4)))
    assert len(set(told)) > 3


@modes
def test_what_is_told_of_another_memory_is_noticed(mode: str) -> None:
    """The control: the tests above fail where the memory told of is not the one that was asked."""
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    state = wrapped.state
    ids = [*BATCH[0], *BATCH[1]]
    columns = stepwise(wrapped, ids, 4)
    shut = tuple(slot.with_scores(dict.fromkeys(slot.edit_ids, 1e9)) for slot in state.slots)
    with wrapped.serving(replace(state, slots=shut)):
        _, (other,) = wrapped.generate(torch.tensor([ids]), return_routes=True, max_new_tokens=1, pad_token_id=PAD)
    with pytest.raises(AssertionError):
        agrees(other, *columns)
    _, (same,) = wrapped.generate(torch.tensor([ids]), return_routes=True, max_new_tokens=1, pad_token_id=PAD)
    agrees(same, *columns)


# -- which edit, and how near -----------------------------------------------------------------


def told_of(wrapped: wise.WiseModel, ids: Sequence[int]) -> wise.RowRoutes:
    _, (routes,) = wrapped.generate(torch.tensor([list(ids)]), return_routes=True, max_new_tokens=1, pad_token_id=PAD)
    return routes  # type: ignore[no-any-return]


@modes
@architectures
def test_evidence_is_measured_against_one(model_type: str, mode: str) -> None:
    wrapped = wrap_tiny(model_type, mode, layer=LAYER)
    for row in BATCH:
        routes = told_of(wrapped, row)
        assert len(routes.tokens) == len(row)
        for token in routes.tokens:
            assert (token.fired is not None) == (token.score >= token.threshold)
            if token.fired is not None:
                assert token.fired.evidence >= 1 and token.fired.missed_by == 0
                assert (token.missed.edit != token.fired.edit) if mode == "retrieve" else (token.missed is None)
            elif token.missed is None:  # no answer can begin there, or no edit could be meant
                assert (mode, token.score, token.threshold) == ("hybrid", 0.0, float("inf"))
            else:
                assert token.missed is not None and token.missed.evidence < 1
                assert token.missed.missed_by == pytest.approx(1 - token.missed.evidence)
        assert set(routes.fired) == {token.fired.edit for token in routes.tokens if token.fired is not None}


@modes
def test_the_edit_is_the_one_whose_key_is_nearest(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    state, owners = wrapped.state, {slot.id: slot.edit_ids[0] for slot in wrapped.state.slots}
    for row in BATCH:
        activation = read_rows(wrapped.model, wrapped.layer, [row])[0]
        tokens = told_of(wrapped, row).tokens
        if mode == "hybrid":
            assert all(owners[token.slot] == token.fired.edit for token in tokens if token.fired is not None)
        else:
            _, _, ids = nearest_keys(state, activation)
            assert [(token.fired or token.missed).edit for token in tokens] == ids


def test_the_second_is_who_would_have_been_looked_at_without_the_first() -> None:
    wrapped = wrap_tiny("llama", "retrieve", layer=LAYER)
    state, seconds = wrapped.state, 0
    rows = torch.randint(4, 96, (12, 8), generator=torch.Generator().manual_seed(1)).tolist()
    for row in rows:
        for place, token in enumerate(told_of(wrapped, row).tokens):
            if token.fired is None or token.missed is None:
                continue
            without = state.without([token.fired.edit])
            with wrapped.serving(without):
                memory = wrapped.layer.memory
                found = memory.evidence(read_rows(wrapped.model, wrapped.layer, [row]))
            assert without.key_owners[int(found.key[place])] == token.missed.edit
            assert token.missed.evidence == pytest.approx(float(found.value[place]), rel=1e-3, abs=1e-4)
            seconds += 1
    assert seconds > 10


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_in_hybrid_a_claim_is_what_was_decided_at_the_token(model_type: str) -> None:
    wrapped = wrap_tiny(model_type, "hybrid", layer=LAYER)
    memory, owners = wrapped.layer.memory, {slot.id: slot.edit_ids[0] for slot in wrapped.state.slots}
    assert memory is not None and isinstance(memory.router, HybridRouter)
    claims = []
    for row in (*BATCH, [*BATCH[1], *BATCH[2]], [90, *BATCH[0][:5], 91]):
        for place, token in enumerate(told_of(wrapped, row).tokens):
            decision = memory.router.decided(row[: place + 1])
            claim = token.fired or token.missed
            assert (claim is None) == (decision.slot == NO_SLOT) and (token.fired is not None) == decision.open
            if claim is None:
                continue
            assert (claim.edit, claim.slot) == (owners[decision.slot], decision.slot)
            assert (token.score, token.threshold) == pytest.approx((decision.score, decision.threshold))
            short, over = decision.score / decision.threshold, (decision.score - decision.threshold)
            wanted = 1 + over / (1 - decision.threshold) if decision.open else max(0.0, short)
            assert claim.evidence == pytest.approx(wanted, rel=1e-4)
            claims.append(claim)
    assert any(claim.evidence >= 1 for claim in claims) and any(claim.evidence < 1 for claim in claims)


@modes
def test_of_a_row_the_nearest_that_spoke_nowhere_is_told(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    found = [told_of(wrapped, row) for row in (*BATCH, BATCH[0][:1], BATCH[1][:1], [BATCH[0][0], 80, 81, 82])]
    for routes in found:
        seen = [c for token in routes.tokens if (c := token.missed) is not None and c.edit not in routes.fired]
        if routes.missed is None:
            assert not seen and (mode != "retrieve" or set(routes.fired) == set(wrapped.state.edit_ids))
            continue
        assert routes.missed.edit not in routes.fired
        assert routes.missed_at in {token.place for token in routes.tokens}
        # Looked for among all edits, and not only those that were nearest at some token.
        assert all(routes.missed.evidence >= claim.evidence - 1e-4 for claim in seen)
    assert any(routes.missed is not None for routes in found)


# -- what is not there is not told of ---------------------------------------------------------


def names(routes: wise.RowRoutes) -> set[str | None]:
    claims = [routes.missed, *(c for token in routes.tokens for c in (token.fired, token.missed))]
    return {claim.edit for claim in claims if claim is not None}


@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
def test_a_deleted_edit_is_never_told_of(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    before = {name for row in BATCH for name in names(told_of(wrapped, row))}
    assert before == {"e0", "e1", "e2"}
    wrapped.delete("e1")
    assert {name for row in BATCH for name in names(told_of(wrapped, row))} == {"e0", "e2"}
    wrapped.delete("e0")
    alone = [token for row in BATCH for token in told_of(wrapped, row).tokens]
    assert all(token.missed is None for token in alone if token.fired is not None)
    assert {token.missed.edit for token in alone if token.missed is not None} <= {"e2"}
    assert any(token.missed is not None or token.fired is not None for token in alone)


def test_without_edits_the_base_speaks_alone() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=LAYER)
    with wrapped.disabled():
        silent = told_of(wrapped, BATCH[0])
    assert len(silent.tokens) == len(BATCH[0]) and names(silent) == set() and silent.fired == ()
    assert {(token.score, token.threshold) for token in silent.tokens} == {(0.0, float("inf"))}
    assert names(told_of(wrapped, BATCH[0])) != set()
    wrapped.reset()
    assert told_of(wrapped, BATCH[0]) == silent


def test_a_memory_that_keeps_no_keys_names_no_edit() -> None:
    wrapped = wrap_tiny("llama", "merge", layer=LAYER)
    named = told_of(wrapped, BATCH[0])
    put(wrapped, MemoryState(edits=wrapped.state.edits, slots=wrapped.state.slots))
    routes = told_of(wrapped, BATCH[0])
    assert names(named) == {"e0"} and names(routes) == {None}
    assert [token.slot for token in routes.tokens] == [token.slot for token in named.tokens] != [None] * 9


# -- answers, and texts -----------------------------------------------------------------------


@modes
def test_answers_tell_the_same(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    for row, answer in zip(BATCH, wrapped.ask([text(row) for row in BATCH], max_new_tokens=8), strict=True):
        ids = torch.tensor([wrapped.encoder.prompt(text(row))])
        _, (told,) = wrapped.generate(ids, return_routes=True, do_sample=False, **OPTIONS)
        assert len(answer.tokens) == len(answer.routes.tokens) + 1 == len(answer.slots) + 1
        assert answer.prompt_tokens == answer.routes.prompt_tokens == told.prompt_tokens
        pairs = list(zip(answer.routes.tokens, told.tokens, strict=True))
        assert [(a.place, a.token, a.slot) for a, _ in pairs] == [(b.place, b.token, b.slot) for _, b in pairs]
        assert [a.score for a, _ in pairs] == pytest.approx([b.score for _, b in pairs], rel=1e-3, abs=1e-3)
        assert answer.routes.fired == told.fired


def test_pads_before_and_behind_a_text_are_not_told() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=LAYER)
    output = wrapped.generate(**padded(BATCH), do_sample=False, **OPTIONS)
    width, stop = max(map(len, BATCH)), int(output[0, -3])  # ends the first row early
    options = {"do_sample": False, "eos_token_id": [stop, EOS], **OPTIONS}
    output, told = wrapped.generate(**padded(BATCH), return_routes=True, **options)
    for row, routes in enumerate(told):
        new = output[row, width:].tolist()
        end = next((place for place, token in enumerate(new) if token in (stop, EOS)), len(new) - 1)
        assert [token.place for token in routes.tokens] == list(range(width - len(BATCH[row]), width + end))
    assert len({len(routes.tokens) - routes.prompt_tokens for routes in told}) > 1
    # Without a mask pads are what the tokenizer pads with, as transformers has it.
    _, unmasked = wrapped.generate(padded(BATCH)["input_ids"], return_routes=True, **options)
    assert unmasked == told


def test_a_row_that_words_have_ended_is_told_to_its_last_word() -> None:
    model, ids = tiny_model("llama"), torch.tensor([[5, 6]])
    output = torch.tensor([[5, 6, 7, 8, PAD, PAD], [5, 6, 7, EOS, PAD, PAD], [5, 6, 7, 8, 9, PAD]])
    texts = generated_ids(model, ids, {"stop_strings": ["w8"]}, output)
    assert [each.ids for each in texts] == [(5, 6, 7, 8), (5, 6, 7, EOS), (5, 6, 7, 8, 9)]
    kept = generated_ids(model, ids, {}, output)  # nothing but a stop ends a row: these are tokens like others
    assert [len(each.ids) for each in kept] == [6, 4, 6]


def test_routes_are_not_told_without_the_ids_of_the_prompts() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=LAYER)
    refused: list[dict[str, Any]] = [{"inputs_embeds": torch.zeros(1, 2, 32)}, {}, {"input_ids": torch.tensor([5, 6])}]
    for given in refused:
        with pytest.raises(ConfigError, match="needs the ids of the prompts"):
            wrapped.generate(**given, return_routes=True, **OPTIONS)
    assert isinstance(wrapped.generate(torch.tensor([[5, 6]]), **OPTIONS), Tensor)


def test_an_answer_and_its_routes_are_of_one_memory_while_others_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped, prompt = wrap_tiny("llama", "hybrid"), text(BATCH[0])
    [before], generate = wrapped.ask(prompt), wise.model.greedy
    calls = []

    def greedy(*given: Any, **more: Any) -> list[list[int]]:
        out = generate(*given, **more)
        calls.append(len(calls))
        if len(calls) == 1:  # it is deleted behind the answer and before its routes are read
            wrapped.reset()
        return out

    monkeypatch.setattr("wise.model.greedy", greedy)
    [after] = wrapped.ask(prompt)
    assert before.routes.fired == ("e0",) and not after.routes.fired and after.text != before.text and len(calls) == 2
