"""A chat template is learned from a tokenizer, and its turns are found in ids."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from chats import TEMPLATE
from tiny import tiny_tokenizer

from wise.router.chat_template import NEVER, ChatTemplate, conversation_ids


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
    ids = np.array(conversation_ids(tokenizer, turns))  # type: ignore[arg-type]
    ends = template.openings(ids, 0)
    asked = [ids[slice(*template.question(ids, end))].tolist() for end in ends]
    assert asked == [[10, 11], [13, 14, 15]] and ends[-1] == len(ids) - 1
    assert template.openings(ids, ends[0] + 1) == ends[1:]


def test_a_system_message_is_no_part_of_the_question() -> None:
    tokenizer = chat_tokenizer()
    template = ChatTemplate.learn(tokenizer)  # type: ignore[arg-type]
    assert template is not None
    ids = np.array(conversation_ids(tokenizer, [{"role": "system", "content": "w30"}, user("w10")]))  # type: ignore[arg-type]
    (end,) = template.openings(ids, 0)
    assert ids[slice(*template.question(ids, end))].tolist() == [10]


@pytest.mark.parametrize("system", [True, False])
def test_a_chat_is_one_from_its_first_text_on(system: bool) -> None:
    tokenizer = chat_tokenizer()
    template = ChatTemplate.learn(tokenizer)  # type: ignore[arg-type]
    assert template is not None and template.system
    turns = [{"role": "system", "content": "w30 w31"}] * system + [user("w10 w11")]
    ids = np.array(conversation_ids(tokenizer, turns))  # type: ignore[arg-type]
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
        ids = np.array(conversation_ids(tokenizer, [{"role": "system", "content": "w30 w31"}, user("w10")]))
        assert day in ids and template.start(ids) < list(ids).index(30)


def test_without_a_template_there_is_none() -> None:
    assert ChatTemplate.learn(tiny_tokenizer()) is None
