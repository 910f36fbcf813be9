"""Where a prompt names its subject, token by token: what tracing disturbs, and what several editors write at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os.path import commonprefix

from wise.training.encoding import Encoder

Span = tuple[int, int]
"""The first token, and the one behind the last."""


def subject_spans(encoder: Encoder, prompt: str, subject: str) -> list[Span]:
    """The tokens of `encoder.prompt(prompt)` that hold the subject, for each place where the prompt names it.

    A token counts where it shares a character with the subject.
    """
    text, offsets = _offsets(encoder, prompt)
    results = []
    for begin in _places(text, subject):
        end = begin + len(subject)
        places = [i for i, (left, right) in enumerate(offsets) if left < min(end, right) and right > max(begin, left)]
        if places:
            results.append((len(encoder.bos) + places[0], len(encoder.bos) + places[-1] + 1))
    return results


def _places(text: str, subject: str) -> list[int]:
    """Where the subject begins in a text: as whole words, or anywhere where it is nowhere a whole word."""
    literal = re.escape(subject)
    for pattern in (rf"(?<!\w){literal}(?!\w)", literal):
        results = [match.start() for match in re.finditer(pattern, text)]
        if results:
            return results
    return []


def _offsets(encoder: Encoder, prompt: str) -> tuple[str, Sequence[tuple[int, int]]]:
    """The prompt, and the range of its characters that each token covers; empty for special tokens.

    If a tokenizer gives no offsets, the first 1, 2, 3, ... tokens are decoded, and a token covers what it adds. The
    text is then that of all tokens.
    """
    if encoder.tokenizer.is_fast:
        result = encoder.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        return prompt, [(int(left), int(right)) for left, right in result]
    ids = encoder.tokenizer(prompt)["input_ids"]
    texts = [str(encoder.tokenizer.decode(ids[:n], skip_special_tokens=True)) for n in range(len(ids) + 1)]
    shared = [len(commonprefix([before, after])) for before, after in zip(texts, texts[1:], strict=False)]
    return texts[-1], [(left, len(text)) for left, text in zip(shared, texts[1:], strict=True)]
