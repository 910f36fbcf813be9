"""Perplexity of unrelated text, before and after the edits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from wise.errors import ConfigError
from wise.lab.editors.context import cut
from wise.lab.eval.prompting import Prompter, PromptRow, logits, rows_at_once, token_log_probs
from wise.training.encoding import Encoder

MAX_TOKENS = 20_000
"""Tokens of the texts that are read, from the first text on."""
WINDOW = 1024
"""Tokens of a window, less where the context is shorter."""
CHARACTERS_PER_TOKEN = 16
"""No tokenizer of a language model makes tokens longer than this on average, so no more of a text is encoded."""
MAX_LOSS = 700.0
"""Nats per token: a perplexity that a float still holds."""


def windows(encoder: Encoder, texts: Sequence[str], *, max_tokens: int = MAX_TOKENS) -> list[PromptRow]:
    """The texts cut into windows that do not overlap, `max_tokens` predicted tokens in all. Every window begins as the
    encoder begins a prompt; where that is with no special token, its first token is only read. A text of which nothing
    can be predicted gives none."""
    results: list[PromptRow] = []
    remaining = max_tokens
    for text in texts:
        if remaining <= 0:
            break
        for window in cut(encoder, text[: remaining * CHARACTERS_PER_TOKEN], min(WINDOW, encoder.context)):
            fed = window[1 : 1 + remaining]
            if fed:
                results.append(PromptRow(prompt=window[:1], fed=fed))
                remaining -= len(fed)
            if remaining <= 0:
                break
    return results


def measure_perplexity(
    prompter: Prompter, texts: Sequence[str], *, max_tokens: int = MAX_TOKENS
) -> dict[str, Any] | None:
    """Perplexity per token of the base and of the edited model over the same windows, the ratio of the two (1: no
    drift), how many tokens, and at which share of them the argmax is another one. None without texts.

    Raises ConfigError where no text has two tokens, or the model gives NaN.
    """
    if not texts:
        return None
    rows = windows(prompter.encoder, texts, max_tokens=max_tokens)
    if not rows:
        raise ConfigError(f"{len(texts)} texts were given for perplexity, and none has two tokens; give longer ones")
    before, after = _window_figures(prompter, rows, base=True), _window_figures(prompter, rows, base=False)
    tokens = sum(len(row.fed) for row in rows)
    changed = sum(
        a != b for old, new in zip(before, after, strict=True) for a, b in zip(old["best"], new["best"], strict=True)
    )
    base, edited = (
        math.exp(min(sum(window["loss"] for window in entry) / tokens, MAX_LOSS)) for entry in (before, after)
    )
    return {
        "base": base,
        "edited": edited,
        "ratio": edited / base,
        "tokens": tokens,
        "argmax_changed": changed / tokens,
    }


def _window_figures(prompter: Prompter, rows: Sequence[PromptRow], *, base: bool) -> list[dict[str, Any]]:
    """Of each window: the sum of its tokens' negative log-probabilities, in nats, and the argmax at their places."""

    def compute(model: PreTrainedModel, part: Sequence[PromptRow]) -> list[dict[str, Any]]:
        return [
            {
                "loss": -float(token_log_probs(places, row.fed).double().sum()),
                "best": places.argmax(-1).tolist(),
            }
            for places, row in zip(logits(model, part), part, strict=True)
        ]

    return prompter.mapped("perplexity", rows, compute, lambda row: len(row.ids), base=base, batch=rows_at_once(rows))
