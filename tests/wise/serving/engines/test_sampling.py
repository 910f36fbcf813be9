"""One sequence's tokens are drawn by vLLM's parameters, with the right probabilities."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from wise.serving.engines import EngineError, GenerationRequest, MemoryHandle, sampling
from wise.serving.engines.sampling import Sampler, logprobs

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
HANDLE = MemoryHandle(version=0, namespace=None)


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": (4,), "handle": HANDLE, "max_new_tokens": 9, "temperature": 1.0} | fields)


def drawn(logits: torch.Tensor, count: int = 400, **fields: Any) -> Counter[int]:
    """First tokens of answers, each under another seed."""
    best = int(logits.argmax())
    return Counter(Sampler(request(seed=seed, **fields)).draw(logits, best) for seed in range(count))


def in_a_row(count: int, **fields: Any) -> list[int]:
    sampler = Sampler(request(**fields))
    return [sampler.draw(LOGITS, 0) for _ in range(count)]


def test_a_row_draws_by_its_own_seed() -> None:
    assert in_a_row(30, seed=1) == in_a_row(30, seed=1) != in_a_row(30, seed=2)
    assert in_a_row(30) != in_a_row(30)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    counts, chances = drawn(LOGITS, 2000), torch.softmax(LOGITS, -1)
    for token, chance in enumerate(chances.tolist()):
        assert counts[token] / 2000 == pytest.approx(chance, abs=4 * math.sqrt(chance / 2000))
    hot = drawn(LOGITS, 2000, temperature=2.0)
    assert hot[4] > counts[4] and hot[0] < counts[0]


@pytest.mark.parametrize("temperature", [0.0, -0.0, 5e-324, 1e-310, 1e-6])
def test_a_temperature_near_nothing_takes_the_likeliest(temperature: float) -> None:
    assert set(drawn(LOGITS, 20, temperature=temperature)) == {0}
    assert set(drawn(LOGITS, 20, temperature=1e-5)) == {0}  # which is drawn


@pytest.mark.parametrize(
    ("fields", "candidates"),
    [
        ({"top_p": 0.0}, {0}),
        ({"top_p": 5e-324}, {0}),
        ({"top_p": 0.7}, {0, 1}),  # .59 + .22
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.3}, {0, 1}),  # of the likeliest: 1, .37, .22
        ({"min_p": 1.0}, {0}),
        ({"top_k": 2, "top_p": 0.7}, {0}),  # .73 of what top_k keeps
        ({"logit_bias": {4: 100.0}}, {4}),
        ({"logit_bias": {0: -100.0, 1: -100.0}}, {2, 3, 4}),
        ({}, {0, 1, 2, 3, 4}),
    ],
)
def test_what_is_cut_off_is_not_drawn(fields: dict[str, Any], candidates: set[int]) -> None:
    assert set(drawn(LOGITS, 600, **fields)) == candidates


@pytest.mark.parametrize("sorted_at_first", [1, 2, 5])
def test_the_likeliest_are_enough_for_top_p_or_all_are_sorted(
    sorted_at_first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [drawn(LOGITS, 300, top_p=share) for share in (0.7, 0.9, 0.999)]
    monkeypatch.setattr(sampling, "LIKELIEST", sorted_at_first)
    counts = [drawn(LOGITS, 300, top_p=share) for share in (0.7, 0.9, 0.999)]
    assert counts == whole and [set(tokens) for tokens in counts[:2]] == [{0, 1}, {0, 1, 2}]


def test_penalties_are_of_what_was_said() -> None:
    assert in_a_row(4, temperature=0) == [0, 0, 0, 0]
    assert in_a_row(4, temperature=0, presence_penalty=1.2) == [0, 1, 0, 0]  # .8 and 1; .8 and -.2
    assert in_a_row(4, temperature=0, frequency_penalty=1.2) == [0, 1, 0, 2]  # .8; -.4 and -.2 and .5
    assert in_a_row(3, temperature=0, presence_penalty=-1.0, logit_bias={1: 0.9}) == [0, 0, 0]
    assert in_a_row(3, temperature=0, repetition_penalty=4.0) == [0, 1, 0]  # .5 < 1; .5 > .25
    assert in_a_row(1, temperature=0, repetition_penalty=4.0, prompt=(0, 1)) == [0]  # .5 and .25, .5: the first
    assert in_a_row(1, temperature=0, repetition_penalty=5.0, prompt=(0, 1)) == [2]


def test_logits_are_not_changed_for_others() -> None:
    before = LOGITS.clone()
    in_a_row(5, presence_penalty=1.0, logit_bias={1: 5.0}, repetition_penalty=2.0, top_k=2, top_p=0.5, min_p=0.1)
    assert torch.equal(LOGITS, before)


@pytest.mark.parametrize("logits", [[math.nan, 1.0], [-math.inf, -math.inf], [math.inf, 1.0]])
def test_what_cannot_be_drawn_from_is_an_error(logits: list[float]) -> None:
    with pytest.raises(EngineError, match="not finite"):
        drawn(torch.tensor(logits), 1)


def test_logprobs_are_of_the_logits_themselves() -> None:
    [first, second] = logprobs(torch.stack([LOGITS, -LOGITS]), [3, 0], 2)
    assert first.token == 3 and first.logprob == pytest.approx(float(torch.log_softmax(LOGITS, -1)[3]))
    assert [token for token, _ in first.top] == [0, 1] and [token for token, _ in second.top] == [4, 3]
    assert logprobs(LOGITS[None], [0], 0)[0].top == ()
