"""A sequence that is followed piece by piece gets the decisions that it gets as a whole."""

from __future__ import annotations

import random

import numpy as np
import pytest
from chats import EDITS, TEMPLATE, TURNS
from followed import answer_router, answer_state
from tiny import EOS

from wise.memory.side_memory import NO_SLOT
from wise.router.chat_template import conversation_ids
from wise.router.course import Course, Plan
from wise.router.hybrid import HybridRouter

WORDS = (50, 51, 52, 60, 61, 62, 70, 71, 72, 9, 33)
"""Ids of subjects, of the words around them, of answers, and of neither."""


@pytest.fixture(scope="module", params=[TEMPLATE, None], ids=["chat", "plain"])
def router(request: pytest.FixtureRequest) -> HybridRouter:
    return answer_router(answer_state(), request.param)


def added(router: HybridRouter, ids: list[int], first: int) -> dict[int, tuple[int, int]]:
    """By position, slot and value that are added to the tokens from `first` on, if all are read at once."""
    row = np.array(ids)
    chat, begins = router.begins(row, 0)
    return {p: (d.slot, value) for p, d, value in router.answer_places(row, first, begins, chat) if value != NO_SLOT}


def generated(router: HybridRouter, ids: list[int], prompt: int) -> dict[int, tuple[int, int]]:
    """The same of a prompt that is read at once, and of what is generated behind it, token by token."""
    steps = [added(router, ids[: place + 1], place) for place in range(prompt, len(ids))]
    return {place: own for step in [added(router, ids[:prompt], 0), *steps] for place, own in step.items()}


def texts(router: HybridRouter, seed: int) -> tuple[list[int], list[int]]:
    """Questions, answers and words between them, in any order, as a prompt and behind it; in a prompt that is a chat
    also openings of turns."""
    draw = random.Random(seed)
    parts = [[50, 51, 52], [60, 61, 62], [61, 60, 62], [70, 71], [72, 9], [EOS]]
    template = router.inputs.template
    turns = [] if template is None else [list(template.header), list(template.opening)] * 2
    prompt, behind = (
        [i for _ in range(8) for i in draw.choice([*parts, *own, [draw.choice(WORDS)]])] for own in (turns, [])
    )
    return prompt, behind


@pytest.mark.parametrize("seed", range(12))
def test_pieces_and_refused_drafts_change_nothing(router: HybridRouter, seed: int) -> None:
    (read, behind), draw = texts(router, seed), random.Random(seed)
    ids, prompt = read + behind, len(read)
    front = Course(router)
    front.read(np.array(read), 0)
    plan = Plan.from_json(front.plan(read, stops=()).to_json())
    course, found, first, preempted = Course(router, plan), {}, 0, draw.randrange(len(ids))
    while first < len(ids):
        end = min(len(ids), first + draw.randrange(1, 5))
        drafts = [draw.choice(WORDS) for _ in range(draw.randrange(3))] if end > prompt else []
        steps = course.read(np.array(ids[:end] + drafts), first)
        assert all(first <= position < end + len(drafts) for position, *_ in steps)
        found |= {p: (d.slot, value) for p, d, value in steps if value != NO_SLOT and p < end}
        first = end
        if preempted < end:  # once, it is computed again from an earlier token
            first, preempted = draw.randrange(end), len(ids)
            found = {p: own for p, own in found.items() if p < first}
    assert found == generated(router, ids, prompt)


def test_some_of_these_texts_are_answered(router: HybridRouter) -> None:
    assert sum(bool(added(router, sum(texts(router, seed), []), 0)) for seed in range(6)) >= 2


def test_a_prompt_without_an_edited_subject_carries_nothing_in_a_chat() -> None:
    router = answer_router(answer_state())
    named, other = (conversation_ids(router.inputs.tokenizer, turns) for turns in (TURNS, TURNS[:1]))
    plans = []
    for ids in (named, other):
        course = Course(router)
        course.read(np.array(ids), 0)
        plans.append(course.plan(ids, stops={EOS}))
    assert plans[0].begins == ((len(named) - 1, 0),) and not plans[0].idle
    assert plans[1].idle and plans[1].chat_start < len(other)
    course = Course(router)
    course.read(np.array(other), 0)
    assert course.plan(other, stops=()).open_ended  # nothing would end it before it opens a turn itself


def test_a_chat_that_is_read_in_pieces_is_a_chat_from_its_first_piece_on() -> None:
    router = answer_router(answer_state())
    turns = [{"role": "system", "content": "w50 w51 w52"}, {"role": "user", "content": "w60 w61 w62 w33 w50 w51 w52"}]
    ids = conversation_ids(router.inputs.tokenizer, turns)
    whole = added(router, ids, 0)
    assert whole, "nothing was tested"
    for size in range(1, len(ids)):
        pieces = [added(router, ids[: first + size], first) for first in range(0, len(ids), size)]
        assert {place: own for piece in pieces for place, own in piece.items()} == whole
    assert added(router, [50, 51, 52], 0), "as plain text this asks for an edit"


def test_plain_text_may_begin_an_answer_by_itself() -> None:
    router = answer_router(answer_state(), None)
    ids = [33, 34]
    course = Course(router)
    course.read(np.array(ids), 0)
    plan = course.plan(ids, stops={EOS})
    assert plan.chat_start == plan.length and plan.open_ended and not plan.idle
    follow = Course(router, plan)
    assert not [step for step in follow.read(np.array(ids), 0) if step[2] != NO_SLOT]
    later = [*ids, EOS, 50, 51, 52]
    assert 5 in [place for place, _, value in follow.read(np.array(later), 2) if value != NO_SLOT]


def test_nothing_is_decided_while_an_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    router = answer_router(answer_state(), None)
    asked, reader = [], router.inputs.reader
    read = type(reader).read
    monkeypatch.setattr(type(reader), "read", lambda self, texts: asked.append(texts) or read(self, texts))
    prompt, said, other = [50, 51, 52], [70, 71], [33, 33]
    for behind, more in ((said, False), (other, True)):
        course = Course(router)
        course.read(np.array(prompt), 0)
        before = len(asked)
        for end in range(len(prompt) + 1, len(prompt) + len(behind) + 1):
            course.read(np.array([*prompt, *behind][:end]), end - 1)
        assert (len(asked) > before) is more


def test_the_digest_is_of_what_is_added() -> None:
    both = answer_state()
    alone = both.without([EDITS[1].id])
    plan = Plan(length=9, chat_start=1, begins=((8, 0),), open_ended=False)
    assert plan.digest(alone) == plan.digest(both)
    second = Plan(length=9, chat_start=1, begins=((8, 1),), open_ended=False)
    elsewhere = Plan(length=9, chat_start=1, begins=((7, 0),), open_ended=False)
    assert len({each.digest(both) for each in (plan, second, elsewhere)}) == 3


@pytest.mark.parametrize(
    "damage",
    [
        {"begins": [[9, 0]]}, {"begins": [[3, 0], [1, 0]]}, {"begins": [[1, -1]]}, {"begins": [3]},
        {"chat_start": 10}, {"chat_start": "1"},
    ],
)
def test_what_is_no_plan_is_refused(damage: dict[str, object]) -> None:
    sound = Plan(length=9, chat_start=1, begins=((8, 0),), open_ended=False).to_json()
    assert Plan.from_json(sound).begins == ((8, 0),)
    with pytest.raises(ValueError, match="no plan"):
        Plan.from_json(sound | damage)
    with pytest.raises(ValueError, match="no plan"):
        Plan.from_json({})


def test_the_library_and_a_course_agree_on_a_prompt(router: HybridRouter) -> None:
    ids = sum(texts(router, 3), [])
    assert [*router.active(ids)] == sorted(added(router, ids, 0))


def test_a_turn_that_is_generated_makes_it_a_chat() -> None:
    router = answer_router(answer_state())
    template = router.inputs.template
    assert template is not None
    ids = [33, 34, *template.header, 50, 51, 52, *template.opening, 70, 71, EOS]
    course, found = Course(router), {}
    course.read(np.array(ids[:2]), 0)
    for place in range(2, len(ids)):
        steps = course.read(np.array(ids[: place + 1]), place)
        found |= {p: (d.slot, value) for p, d, value in steps if value != NO_SLOT}
    assert found == generated(router, ids, 2) and {p: own for p, own in found.items() if p >= len(ids) - 4}
