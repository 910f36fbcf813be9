"""Subjects found among tokens, with and without a tokenizer's offsets, and the role of every token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import BOS, tiny_tokenizer
from transformers import AutoTokenizer

from wise.demo import model_path
from wise.demo.facts import load_facts, train_prompts
from wise.lab.locate.roles import (
    FIRST_SUBJECT,
    FIRST_SUBSEQUENT,
    FURTHER,
    LAST,
    LAST_SUBJECT,
    MIDDLE_SUBJECT,
    ROLES,
    subject_span,
    token_roles,
)
from wise.training.encoding import Encoder


def encoder_of(tokenizer: Any, bos: tuple[int, ...] = ()) -> Encoder:
    return Encoder(tokenizer=tokenizer, bos=bos, terminator=(2,), stops=frozenset([2]), context=64)


class Slow:
    """A tokenizer that knows no offsets."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> Any:
        return {"input_ids": self.tokenizer(text)["input_ids"]}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> Any:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    """Byte-level: words in several tokens, characters in several tokens."""
    return AutoTokenizer.from_pretrained(model_path())


@pytest.mark.parametrize(
    ("tokens", "span", "wanted"),
    [
        (8, (1, 4), [None, FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_SUBSEQUENT, FURTHER, FURTHER, LAST]),
        (4, (0, 2), [FIRST_SUBJECT, LAST_SUBJECT, FIRST_SUBSEQUENT, LAST]),
        (4, (0, 1), [LAST_SUBJECT, FIRST_SUBSEQUENT, FURTHER, LAST]),
        (3, (0, 2), [FIRST_SUBJECT, LAST_SUBJECT, LAST]),
        (5, (2, 3), [None, None, LAST_SUBJECT, FIRST_SUBSEQUENT, LAST]),
        (2, (0, 1), [LAST_SUBJECT, LAST]),
        (3, (1, 3), [None, FIRST_SUBJECT, LAST_SUBJECT]),
    ],
)
def test_each_token_has_one_role(tokens: int, span: tuple[int, int], wanted: list[str | None]) -> None:
    assert token_roles(tokens, span) == wanted
    assert set(wanted) <= {None, *ROLES}


@pytest.mark.parametrize("kind", ["fast", "slow"])
@pytest.mark.parametrize(
    ("prompt", "subject", "span"),
    [
        ("w4 w5 w6 w7", "w5 w6", (1, 3)),
        ("w4 w5 w6 w7", "w4", (0, 1)),
        ("w4 w5 w6 w7", "w7", (3, 4)),
        ("w4 w5 w50 w7", "w5", (1, 2)),  # not the beginning of another word
        ("w40 w50 w7", "w5", (1, 2)),  # within a word, where it is nowhere a whole one
        ("w4 w5 w6", "w9", None),
        ("w4 w5 w4", "w4", None),
    ],
)
def test_a_subject_is_found_once_or_not_at_all(
    kind: str, prompt: str, subject: str, span: tuple[int, int] | None
) -> None:
    tokenizer = tiny_tokenizer() if kind == "fast" else Slow(tiny_tokenizer())
    assert subject_span(encoder_of(tokenizer), prompt, subject) == span
    shifted = span and (span[0] + 1, span[1] + 1)
    assert subject_span(encoder_of(tokenizer, (BOS,)), prompt, subject) == shifted


def test_the_tokens_of_the_span_read_as_the_subject(bytes_tokenizer: Any) -> None:
    fast = encoder_of(bytes_tokenizer)
    slow = replace(fast, tokenizer=Slow(bytes_tokenizer))
    cases = [(train_prompts(fact)[1], fact.subject) for fact in load_facts("train")[::97]]
    cases += [("The tower of Łódź–Süd is in", "Łódź–Süd"), ("Ask 李白 about it: he is", "李白"), ("(A.B.) is", "A.B.")]
    several = 0
    for prompt, subject in cases:
        span = subject_span(fast, prompt, subject)
        assert span is not None
        ids = fast.prompt(prompt)[slice(*span)]
        said = bytes_tokenizer.decode(ids)
        assert subject in said
        for shorter in (ids[1:], ids[:-1]):
            assert subject not in bytes_tokenizer.decode(shorter)
        assert subject_span(slow, prompt, subject) == span
        several += len(ids) > 1
    assert several > 5
