"""Where an answer begins, and what it answers, is read off the ids alone."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from chats import TEMPLATE
from tiny import tiny_tokenizer

from wise.router.subjects import SubjectIndex
from wise.router.turns import NEVER, ChatTemplate, expects, is_question, names_subject, passage, refers_back, render


def chat_tokenizer() -> object:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_template_is_learned_and_its_questions_are_found() -> None:
    tokenizer = chat_tokenizer()
    template = ChatTemplate.learn(tokenizer)  # type: ignore[arg-type]
    assert template is not None
    turns = [user("w10 w11"), {"role": "assistant", "content": "w12"}, user("w13 w14 w15")]
    ids = np.array(render(tokenizer, turns))  # type: ignore[arg-type]
    ends = template.openings(ids, 0)
    asked = [ids[slice(*template.question(ids, end))].tolist() for end in ends]
    assert asked == [[10, 11], [13, 14, 15]] and ends[-1] == len(ids) - 1
    assert template.openings(ids, ends[0] + 1) == ends[1:]


def test_a_system_message_is_no_part_of_the_question() -> None:
    tokenizer = chat_tokenizer()
    template = ChatTemplate.learn(tokenizer)  # type: ignore[arg-type]
    assert template is not None
    ids = np.array(render(tokenizer, [{"role": "system", "content": "w30"}, user("w10")]))  # type: ignore[arg-type]
    (end,) = template.openings(ids, 0)
    assert ids[slice(*template.question(ids, end))].tolist() == [10]


@pytest.mark.parametrize("system", [True, False])
def test_a_chat_is_one_from_its_first_text_on(system: bool) -> None:
    tokenizer = chat_tokenizer()
    template = ChatTemplate.learn(tokenizer)  # type: ignore[arg-type]
    assert template is not None and template.system
    turns = [{"role": "system", "content": "w30 w31"}] * system + [user("w10 w11")]
    ids = np.array(render(tokenizer, turns))  # type: ignore[arg-type]
    texts = [place for place, token in enumerate(ids) if token in (30, 31, 10, 11)]
    assert texts and all(template.start(ids[: place + 1]) <= place for place in texts)
    assert template.start(np.array([30, 31, 10, 11])) == NEVER


def test_a_system_message_behind_todays_date_is_one_tomorrow_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(day: int) -> None:
        clock = type("clock", (), {"now": lambda: datetime(2031, 5, day)})
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)

    tokenizer = tiny_tokenizer()
    dated = "{{ m.content if m.role != 'system' else 'w20 w' ~ strftime_now('%d') ~ ' w21 ' ~ m.content }}"
    tokenizer.chat_template = TEMPLATE.replace("{{ m.content }}", dated)
    on(11)
    template = ChatTemplate.learn(tokenizer)
    assert template is not None
    for day in (11, 12):
        on(day)
        ids = np.array(render(tokenizer, [{"role": "system", "content": "w30 w31"}, user("w10")]))
        assert day in ids and template.start(ids) < list(ids).index(30)


def test_without_a_template_there_is_none() -> None:
    assert ChatTemplate.learn(tiny_tokenizer()) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The capital of France is", "The capital of France is"),
        ("I like tea. The capital of France is", "The capital of France is"),
        ("France is nice. Its capital is", "France is nice. Its capital is"),
        ("France is nice. The capital of Spain is", "The capital of Spain is"),  # names another subject
        ("France is nice. The answer is", "The answer is"),  # says nothing of what was named
        ("What is the capital of France?", "What is the capital of France?"),
        ("Question: What of France? Answer:", "Question: What of France? Answer:"),
        ("Question: What of France? Answer: the", "Question: What of France? Answer: the"),
        ("What of France? Note: The end", "Note: The end"),
        ("The U.S. and France. J. R. of France is", "J. R. of France is"),
        ("It is in France. Answer:", "It is in France. Answer:"),
        ("It is in France.\n\nThe", "The"),
        ("It is in France. There it", "It is in France. There it"),
        ("Who directed Viva France! in the end?", "Who directed Viva France! in the end?"),  # the name's own mark
        ("Viva France! Who said so?", "Who said so?"),
        ("It is great! in the end", "in the end"),
        ("In the end France... goes on", "In the end France... goes on"),
        ("I had tea. Tea Co. Stores, whose seat is in", "Tea Co. Stores, whose seat is in"),
        ("I had tea. Has Tea Co. Stores any?", "Has Tea Co. Stores any?"),
        ("I had Tea Co.\nStores are in", "Stores are in"),
        ("It is of a Co. Stores are in", "Stores are in"),
        ("The capital of France is Paris.", None),
        ("", None),
        ("法国的首都是", "法国的首都是"),
    ],
)
def test_what_a_plain_text_says_last(text: str, said: str | None) -> None:
    assert passage(text, SubjectIndex([("France", 0), ("Tea Co. Stores", 1)]).mentions) == said


def test_a_question_ends_with_its_mark() -> None:
    assert is_question("Is it?") and is_question('He said "is it?"') and not is_question("It is.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital of Spain is", True),
        ("Spain lies in", True),
        ("Everybody in Spain speaks", True),  # as some edit's prompt ends
        ("Spain's seat of power,", True),
        ("Spain's seat of power", None),  # that prompt has a comma
        ("Everybody in Spain speaks,", False),
        ("I lived in Spain,", False),
        ("I lived in Spain and", False),
        ("In Spain the capital", None),
        ("", None),
    ],
)
def test_whether_a_sentence_expects_its_answer(text: str, expected: bool | None) -> None:
    assert expects(text, {"speaks", "power,"}) is expected


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("What is its capital?", True),
        ("And the capital?", True),
        ("Which language do most people there speak?", True),
        ("Thanks. What is its capital?", True),
        ("Ok, great! And who leads it?", True),
        ("What is the capital of France?", False),  # another subject, whether it is edited or not
        ("Which of all languages do most people speak?", False),
    ],
)
def test_whether_a_question_is_about_what_was_named_before(text: str, back: bool) -> None:
    assert refers_back(text) is back


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("And Spain?", True),
        ("Thanks! Now I'm thinking of Spain.", True),
        ("And gullwing-03?", True),
        ("Thanks!", False),
        ("Interesting. I'm curious.\nDescribe it, please", False),
        ("What is its capital?", False),
    ],
)
def test_whether_a_turn_names_a_subject_edited_or_not(text: str, named: bool) -> None:
    assert names_subject(text) is named
