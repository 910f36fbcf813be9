"""Finds the subject's tokens in a prompt, and gives every token its role in the heat maps of a trace."""

from __future__ import annotations

from wise.lab.editors.subject_spans import Span, subject_spans
from wise.training.encoding import Encoder

FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_SUBSEQUENT, FURTHER, LAST = ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


def subject_span(encoder: Encoder, prompt: str, subject: str) -> Span | None:
    """The tokens of `encoder.prompt(prompt)` that hold the subject: the first, and the one behind the last. None where
    the prompt does not name the subject, or more than once: noise on one of two leaves the fact readable."""
    spans = subject_spans(encoder, prompt, subject)
    return spans[0] if len(spans) == 1 else None


def token_roles(tokens: int, span: Span) -> list[str | None]:
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
