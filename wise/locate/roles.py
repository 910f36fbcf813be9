"""Which tokens of a prompt are its subject, and what part every token plays: the rows of a trace's heat maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os.path import commonprefix

from wise.training.encoding import Encoder

FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_SUBSEQUENT, FURTHER, LAST = ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


def subject_span(encoder: Encoder, prompt: str, subject: str) -> tuple[int, int] | None:
    """The tokens of `encoder.prompt(prompt)` that hold the subject: the first, and the one behind the last.

    A token counts where it shares a character with the subject. None where the subject does not stand in the
    prompt, or does so more than once: noise on one of two leaves the fact readable.
    """
    text, offsets = _offsets(encoder, prompt)
    where = _places(text, subject)
    if len(where) != 1:
        return None
    begin, end = where[0], where[0] + len(subject)
    held = [i for i, (left, right) in enumerate(offsets) if left < min(end, right) and right > max(begin, left)]
    if not held:
        return None
    return len(encoder.bos) + held[0], len(encoder.bos) + held[-1] + 1


def token_roles(tokens: int, span: tuple[int, int]) -> list[str | None]:
    """The role of each of `tokens` tokens, one of `ROLES`; None before the subject, which noise does not reach.

    Each token has one role. A subject of one token is its last subject token; a single token behind the subject is
    the last token.

    >>> token_roles(4, (1, 2))
    [None, 'last subject token', 'first subsequent token', 'last token']
    """
    begin, end = span
    roles: list[str | None] = [None] * begin + [MIDDLE_SUBJECT] * (end - begin) + [FURTHER] * (tokens - end)
    roles[begin] = FIRST_SUBJECT
    roles[end - 1] = LAST_SUBJECT
    if end < tokens:
        roles[end] = FIRST_SUBSEQUENT
        roles[-1] = LAST
    return roles


def _places(text: str, subject: str) -> list[int]:
    """Where the subject begins in a text: as whole words, or anywhere where it is nowhere a whole word."""
    literal = re.escape(subject)
    for pattern in (rf"(?<!\w){literal}(?!\w)", literal):
        found = [match.start() for match in re.finditer(pattern, text)]
        if found:
            return found
    return []


def _offsets(encoder: Encoder, prompt: str) -> tuple[str, Sequence[tuple[int, int]]]:
    """A text, and the range of its characters that each token of the prompt covers; empty for special tokens.

    The text is the prompt. A tokenizer that gives no offsets is asked for what every number of its tokens reads as;
    the text is then what all of them read as.
    """
    if encoder.tokenizer.is_fast:
        found = encoder.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        return prompt, [(int(left), int(right)) for left, right in found]
    ids = encoder.tokenizer(prompt)["input_ids"]
    texts = [str(encoder.tokenizer.decode(ids[:n], skip_special_tokens=True)) for n in range(len(ids) + 1)]
    shared = [len(commonprefix([before, after])) for before, after in zip(texts, texts[1:], strict=False)]
    return texts[-1], [(left, len(text)) for left, text in zip(shared, texts[1:], strict=True)]
