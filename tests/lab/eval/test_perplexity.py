"""Perplexity over windows is what single tokens give; nothing drifts in the unedited control."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from tiny import BOS, text, wrap_tiny

from wise.errors import ConfigError
from wise.lab.eval.perplexity import measure_perplexity, windows
from wise.lab.eval.prompting import Prompter
from wise.lab.eval.quality import measure_quality

CONTEXT = 128


def words(count: int, seed: int = 0) -> str:
    return text(random.Random(seed).choices(range(4, 96), k=count))


TEXTS = (words(300), words(40, 1), words(1, 2), words(130, 3))


def prompter(model_type: str = "llama", mode: str | None = "retrieve") -> Prompter:
    return Prompter(wrap_tiny(model_type, mode))


def by_hand(model: Any, encoder: Any) -> tuple[float, list[int]]:
    """Perplexity and argmaxes of all windows, one at a time."""
    losses, best = [], []
    for passage in TEXTS:
        ids = [int(word[1:]) for word in passage.split()]
        size = encoder.context - len(encoder.bos)
        for start in range(0, len(ids), size):
            window = [*encoder.bos, *ids[start : start + size]]
            if len(window) < 2:
                continue
            logits = model(torch.tensor([window]), use_cache=False).logits[0].double()
            for place, token in enumerate(window[1:]):
                losses.append(-float(logits[place].log_softmax(-1)[token]))
                best.append(int(logits[place].argmax()))
    return math.exp(sum(losses) / len(losses)), best


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bloom", "opt"])
@torch.no_grad()
def test_figures_are_those_of_single_windows(model_type: str) -> None:
    asked = prompter(model_type)
    found = measure_perplexity(asked, TEXTS)
    assert found is not None
    with asked.model.disabled() as base:
        before, said = by_hand(base, asked.encoder)
    after, says = by_hand(asked.model, asked.encoder)
    assert found["base"] == pytest.approx(before, rel=1e-4)
    assert found["edited"] == pytest.approx(after, rel=1e-4)
    assert found["ratio"] == pytest.approx(after / before, rel=1e-4)
    assert found["tokens"] == len(said)
    assert found["argmax_changed"] == pytest.approx(sum(a != b for a, b in zip(said, says, strict=True)) / len(said))
    assert found["argmax_changed"] > 0 and found["ratio"] != 1


def test_nothing_drifts_where_nothing_is_edited() -> None:
    found = measure_perplexity(prompter(mode=None), TEXTS)
    assert found is not None
    assert found["ratio"] == 1 and found["argmax_changed"] == 0
    assert found["base"] == found["edited"] > 1


@pytest.mark.parametrize("bos", [False, True])
def test_windows_begin_as_prompts_do_and_no_token_is_predicted_twice(bos: bool) -> None:
    wrapped = wrap_tiny("llama")
    object.__setattr__(wrapped.encoder, "bos", (BOS,) if bos else ())
    rows = windows(wrapped.encoder, TEXTS)
    assert all(len(row.ids) <= CONTEXT and len(row.prompt) == 1 for row in rows)
    assert all((row.prompt == [BOS]) == bos for row in rows)
    read = [token for row in rows for token in (row.fed if bos else row.ids)]
    whole = [int(word[1:]) for passage in TEXTS for word in passage.split() if bos or passage != TEXTS[2]]
    assert read == whole


def test_no_more_is_read_than_asked_for() -> None:
    asked = prompter()
    for most in (1, 100, 127, 128, 200):
        assert sum(len(row.fed) for row in windows(asked.encoder, TEXTS, max_tokens=most)) == most
    found = measure_perplexity(asked, TEXTS, max_tokens=100)
    assert found is not None and found["tokens"] == 100


def test_without_text_there_is_no_figure_and_without_tokens_an_error() -> None:
    assert measure_perplexity(prompter(), ()) is None
    asked = prompter()
    object.__setattr__(asked.encoder, "bos", ())
    with pytest.raises(ConfigError, match="none has two tokens"):
        measure_perplexity(asked, ["w5"])


def test_nan_is_said() -> None:
    asked = prompter(mode=None)
    assert asked.encoder
    with torch.no_grad():
        asked.model.model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(ConfigError, match="NaN"):
        measure_perplexity(asked, TEXTS)


def test_it_is_part_of_quality() -> None:
    assert measure_quality(wrap_tiny("llama"), [], texts=TEXTS).perplexity == measure_perplexity(prompter(), TEXTS)
    assert measure_quality(wrap_tiny("llama"), []).perplexity is None
