"""Tokens that can end a name: each that does is among them, and most others are not."""

from __future__ import annotations

import numpy as np
import pytest
from chats import TEMPLATE
from followed import answer_router, answer_state
from tiny import EOS
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from wise.demo import model_path
from wise.edits import Edit
from wise.lab.eval.routing.texts import shipped_passages
from wise.memory.side_memory import NO_SLOT
from wise.router.course import Course
from wise.router.endings import endings
from wise.router.subjects import SubjectIndex, words

NAMES = ("Umberto Eco", "O'Brien", "C++", "Sri Lanka", "Škoda", "Rhône", "東京", "Bill & Ted", "the box", "Los Angeles",
         "Simpsons")  # fmt: skip
TEXTS = (
    "Umberto Eco's books, and Umberto Ecos. ", "Was it O'Brien’s, or O’Brien? ", "He writes C++ in Sri Lanka. ",
    "A SKODA on the rhone; Škodas too. ", "東京 and Bill & Ted. ", "(Los Angeles)\nAngeles of Los Angeles",
    "Who are the Simpsons?",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


def test_a_token_that_ends_a_name_is_among_them(tokenizer: PreTrainedTokenizerBase) -> None:
    index = SubjectIndex((name, name) for name in NAMES)
    ending, count = endings(tokenizer).of(index.ends), 0
    for text in TEXTS:
        ids, before = tokenizer(text)["input_ids"], set()
        for end in range(1, len(ids) + 1):
            now = {(mention.name, mention.start) for mention in index.mentions(tokenizer.decode(ids[:end]))}
            count += bool(now - before)
            assert ending[ids[end - 1]] or not now - before, (text, end)
            before = now
    assert count >= len(TEXTS)


def test_most_tokens_end_none(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [i for text in shipped_passages() for i in tokenizer(text)["input_ids"]]
    found = endings(tokenizer)
    some, none = (found.of(SubjectIndex((name, 0) for name in names).ends)[ids].mean() for names in (NAMES, ()))
    assert none < some < 0.3


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_text_is_searched_only_where_it_may_come_to_ask(template: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    router = answer_router(answer_state(), template)
    searched, begins = [], router.begins
    monkeypatch.setattr(router, "begins", lambda ids, first: searched.append(first) or begins(ids, first))
    course, ids = Course(router), [33, 34]
    course.read(np.array(ids), 0)
    for token in (9, 33, 72):  # none of them ends a name
        ids.append(token)
        course.read(np.array(ids), len(ids) - 1)
    assert searched == [0]
    course.read(np.array(ids), len(ids) - 1)
    assert searched == [0, len(ids) - 1], "what is read again is searched again, as where a draft was refused"
    said: list[int] = []
    for token in (EOS, 50, 51, 52):
        ids.append(token)
        said += [place for place, _, value in course.read(np.array(ids), len(ids) - 1) if value != NO_SLOT]
    assert said == [len(ids) - 1] and len(searched) > 2


@pytest.mark.parametrize("subject", ["Par", "New Par", "東"])
def test_a_name_within_a_word_is_seen_however_much_is_read_at_once(
    subject: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    edit = Edit(id="e", prompt=f"The mayor of {subject}", target="Ann", subject=subject)
    router = answer_router(answer_state([edit]), None, tokenizer)
    parts = [f"The mayor of {subject}", "isian is here"]
    ids = [token for part in parts for token in tokenizer(part, add_special_tokens=False)["input_ids"]]
    asked = len(tokenizer(parts[0], add_special_tokens=False)["input_ids"]) - 1
    assert asked in router.active(ids[: asked + 1])
    for end in range(len(ids)):
        assert (end in router.active(ids)) == (end in router.active(ids[: end + 1])), end
    index = SubjectIndex([(subject, 0)])
    assert not index.cut_among(words("Harp, and a new harp")), "no word of it begins as the name does"
