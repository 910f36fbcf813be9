"""Free text: drawn alone as in a batch, its entropy as independent counts give it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from tiny import EOS, text, wrap_tiny

import wise
from wise.errors import ConfigError
from wise.lab.eval.fluency import TOKENS, TOP_K, TopK, entropy, measure_fluency, openings, sampled
from wise.lab.eval.prompting import Prompter, select
from wise.lab.eval.quality import measure_quality
from wise.model import WiseModel


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wise.lab.eval.fluency.TOKENS", 24)


def record(start: int, *prompts: str, target: str = "w40") -> wise.Record:
    edit = wise.Edit(id=f"r{start}", prompt=text([start, start + 1]), target=target)
    return wise.Record(edit=edit, generation_prompts=prompts)


RECORDS = [record(20, "w20 w60", "w20"), record(30, "w30 w31 w61", "w62 w30"), record(50, "w50 w51 w52 w53")]


def asked_of(wrapped: WiseModel, records: list[wise.Record]) -> tuple[Prompter, list[Any]]:
    prompter = Prompter(wrapped)
    return prompter, openings(prompter, select(wrapped, records).tested)


def texts_of(wrapped: WiseModel, records: list[wise.Record], *, seed: int = 0, base: bool = False) -> list[str]:
    return sampled(*asked_of(wrapped, records), seed=seed, base=base)


# -- entropy ----------------------------------------------------------------------------------


def by_hand(words: list[str]) -> float:
    """Bits, n-gram by n-gram."""
    total = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        total += weight * sum(-math.log2(Counter(grams)[gram] / len(grams)) / len(grams) for gram in grams)
    return total / 2


@pytest.mark.parametrize("words", ["a b c d e f g", "a b a b a b", "the cat and the dog and the cat", "a b", "a a a a"])
def test_entropy_is_that_of_weighted_pairs_and_triples(words: str) -> None:
    assert entropy(words) == pytest.approx(by_hand(words.split()))


def test_repetition_is_low_and_no_text_is_nothing() -> None:
    assert entropy("") == entropy("one") == entropy("a a a a") == 0
    assert entropy("a b a b a b a b") < 1 < entropy("a b c d e f g h")
    assert entropy("Yes, it's.") == pytest.approx(by_hand(["Yes", ",", "it", "'", "s", "."]))


# -- what is drawn ----------------------------------------------------------------------------


def test_a_text_is_the_same_alone_and_beside_others_and_for_the_same_seed() -> None:
    wrapped = wrap_tiny("llama")
    together = texts_of(wrapped, RECORDS)
    alone = [passage for each in RECORDS for passage in texts_of(wrapped, [each])]
    assert together == alone == texts_of(wrapped, RECORDS)
    assert together != texts_of(wrapped, RECORDS, seed=1)
    assert len(set(together)) == 5


def ids_of(wrapped: WiseModel) -> list[list[int]]:
    """The texts of `RECORDS` token by token, special ones with them."""
    object.__setattr__(wrapped.encoder, "text", lambda ids: " ".join(map(str, ids)))
    return [[int(word) for word in passage.split()] for passage in texts_of(wrapped, RECORDS)]


def test_texts_begin_with_their_prompt_and_do_not_end_before_their_length() -> None:
    wrapped = wrap_tiny("llama")
    prompts = [wrapped.encoder.prompt(prompt) for each in RECORDS for prompt in each.generation_prompts]
    for prompt, ids in zip(prompts, ids_of(wrapped), strict=True):
        assert ids[: len(prompt)] == prompt and len(ids) == 24 and EOS not in ids


@torch.no_grad()
def test_every_token_is_among_the_likeliest() -> None:
    wrapped = wrap_tiny("gpt2", mode=None)
    prompts = [wrapped.encoder.prompt(prompt) for each in RECORDS for prompt in each.generation_prompts]
    ranks = []
    for prompt, ids in zip(prompts, ids_of(wrapped), strict=True):
        logits = wrapped(torch.tensor([ids]), use_cache=False).logits[0]
        logits[:, EOS] = -torch.inf
        for place in range(len(prompt), len(ids)):
            ranks.append(int((logits[place - 1] > logits[place - 1, ids[place]]).sum()))
    assert set(ranks) == set(range(TOP_K))


def test_draws_follow_the_model() -> None:
    logits = torch.tensor([3.0, 1.0, 2.5, 0.0, -1.0, 2.0, 1.5])
    rows = 4000
    out = TopK(range(rows))(torch.zeros(rows, 1), logits.expand(rows, -1))
    drawn = out.argmax(-1)
    assert ((out == 0).sum(-1) == 1).all() and out.isneginf().sum() == rows * (len(logits) - 1)
    likeliest = logits.topk(TOP_K)
    expected = torch.zeros_like(logits).scatter(0, likeliest.indices, likeliest.values.softmax(-1))
    found = torch.bincount(drawn, minlength=len(logits)) / rows
    assert torch.allclose(found, expected, atol=0.03)
    assert found[3] == found[4] == 0


def test_nan_is_said() -> None:
    wrapped = wrap_tiny("llama", mode=None)
    prompter, asked = asked_of(wrapped, RECORDS)
    with torch.no_grad():
        wrapped.model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(ConfigError, match="NaN"):
        measure_fluency(prompter, asked)


# -- the figures ------------------------------------------------------------------------------


def test_without_edits_text_is_that_of_the_base_and_a_memory_that_speaks_changes_it() -> None:
    plain = measure_quality(wrap_tiny("llama", mode=None), RECORDS).fluency
    assert plain is not None
    assert plain["entropy"] == plain["base_entropy"] > 0 and plain["n"] == 5
    wrapped = wrap_tiny("llama")
    edited = measure_quality(wrapped, RECORDS).fluency
    assert edited is not None and edited["base_entropy"] == plain["entropy"] != edited["entropy"]
    texts = texts_of(wrapped, RECORDS)
    found = [entropy(passage) for passage in texts]
    assert edited["entropy"] == pytest.approx(((found[0] + found[1]) / 2 + (found[2] + found[3]) / 2 + found[4]) / 3)


def test_without_room_or_prompts_there_is_no_figure() -> None:
    wrapped = wrap_tiny("llama")
    assert measure_quality(wrapped, [record(20)]).fluency is None
    assert measure_quality(wrapped, [record(20, text([60] * 24))]).fluency is None
    many = record(20, *(f"w6{i}" for i in range(7)))
    fluency = measure_quality(wrapped, [many, record(30, text([60] * 24), "w61")]).fluency
    assert fluency is not None and fluency["n"] == 2 + 1


def test_a_text_is_as_long_as_published() -> None:
    assert TOKENS == 100
