"""A sequence that is followed piece by piece gets the decisions that it gets as a whole."""

from __future__ import annotations

import random

import numpy as np
import pytest
from chats import EDITS, TEMPLATE, TURNS, chat_model
from tiny import EOS

import wise
from wise.memory.side_memory import NO_SLOT
from wise.memory.slot import CHAT, COMPLETION
from wise.router.course import Course, Plan
from wise.router.hybrid import HybridRouter

WORDS = (50, 51, 52, 60, 61, 62, 70, 71, 72, 9, 33)
"""Ids of subjects, of the words around them, of answers, and of neither."""


def router_of(template: str | None) -> HybridRouter:
    model = chat_model(template)
    model.edit(EDITS)
    assert model.inputs is not None
    return HybridRouter(model.state, model.inputs)


@pytest.fixture(scope="module", params=[TEMPLATE, None], ids=["chat", "plain"])
def router(request: pytest.FixtureRequest) -> HybridRouter:
    return router_of(request.param)


def whole(router: HybridRouter, ids: list[int]) -> dict[int, tuple[int, int]]:
    """By position, slot and value that are added to a sequence that is read at once."""
    row = np.array(ids)
    form, begins = router.begins(row, 0)
    return {p: (d.slot, value) for p, d, value in router.answered(row, 0, begins, form) if value != NO_SLOT}


def texts(router: HybridRouter, seed: int) -> list[int]:
    """Questions, answers and words between them, in any order; in a chat also openings of turns."""
    draw = random.Random(seed)
    parts = [[50, 51, 52], [60, 61, 62], [61, 60, 62], [70, 71], [72, 9], [EOS]]
    template = router.inputs.template
    if template is not None:
        parts += [list(template.header), list(template.opening)] * 2
    return [i for _ in range(12) for i in draw.choice([*parts, [draw.choice(WORDS)]])]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_and_refused_drafts_change_nothing(router: HybridRouter, seed: int) -> None:
    ids, draw = texts(router, seed), random.Random(seed)
    prompt = draw.randrange(1, len(ids))
    front = Course(router)
    front.read(np.array(ids[:prompt]), 0)
    plan = Plan.from_json(front.plan(ids[:prompt], stops=()).to_json())
    course, found, first, preempted = Course(router, plan), {}, 0, draw.randrange(len(ids))
    while first < len(ids):
        end = min(len(ids), first + draw.randrange(1, 5))
        drafts = [draw.choice(WORDS) for _ in range(draw.randrange(3))] if end > prompt else []
        steps = course.read(np.array(ids[:end] + drafts), first)
        found |= {p: (d.slot, value) for p, d, value in steps if value != NO_SLOT and p < end}
        first = end
        if preempted < end:  # once, it is computed again from an earlier token
            first, preempted = draw.randrange(end), len(ids)
            found = {p: own for p, own in found.items() if p < first}
    assert found == whole(router, ids)


def test_some_of_these_texts_are_answered(router: HybridRouter) -> None:
    assert sum(bool(whole(router, texts(router, seed))) for seed in range(20)) >= 5


def test_a_prompt_without_an_edited_subject_carries_nothing_in_a_chat() -> None:
    model = chat_model()
    model.edit(EDITS)
    assert model.inputs is not None
    router = HybridRouter(model.state, model.inputs)
    named, other = model.encoder.turn(TURNS), model.encoder.turn(TURNS[:1])
    plans = []
    for ids in (named, other):
        course = Course(router)
        course.read(np.array(ids), 0)
        plans.append(course.plan(ids, model.encoder.stops))
    assert plans[0].begins == ((len(named) - 1, 0),) and not plans[0].idle
    assert plans[1].idle and plans[1].form == CHAT
    course = Course(router)
    course.read(np.array(other), 0)
    assert course.plan(other, stops=()).open_ended  # nothing would end it before it opens a turn itself


def test_plain_text_may_begin_an_answer_by_itself() -> None:
    router = router_of(None)
    ids = [33, 34]
    course = Course(router)
    course.read(np.array(ids), 0)
    plan = course.plan(ids, stops={EOS})
    assert plan.form == COMPLETION and plan.open_ended and not plan.idle
    follow = Course(router, plan)
    assert not [step for step in follow.read(np.array(ids), 0) if step[2] != NO_SLOT]
    later = [*ids, EOS, 50, 51, 52]
    assert [place for place, _, value in follow.read(np.array(later), 2) if value != NO_SLOT] == [5]


def test_the_digest_is_of_what_is_added() -> None:
    model = chat_model()
    model.edit(EDITS[:1])
    alone = model.state
    model.edit(EDITS[1:])
    plan = Plan(form=CHAT, length=9, begins=((8, 0),), open_ended=False)
    assert plan.digest(alone) == plan.digest(model.state)
    second = Plan(form=CHAT, length=9, begins=((8, 1),), open_ended=False)
    elsewhere = Plan(form=CHAT, length=9, begins=((7, 0),), open_ended=False)
    assert len({each.digest(model.state) for each in (plan, second, elsewhere)}) == 3


@pytest.mark.parametrize(
    "damage",
    [{"begins": [[9, 0]]}, {"begins": [[3, 0], [1, 0]]}, {"begins": [[1, -1]]}, {"begins": [3]}, {"form": 7}],
)
def test_what_is_no_plan_is_refused(damage: dict[str, object]) -> None:
    sound = Plan(form=CHAT, length=9, begins=((8, 0),), open_ended=False).to_json()
    assert Plan.from_json(sound).begins == ((8, 0),)
    with pytest.raises(ValueError, match="no plan"):
        Plan.from_json(sound | damage)
    with pytest.raises(ValueError, match="no plan"):
        Plan.from_json({})


def test_the_library_and_a_course_agree_on_a_prompt(router: HybridRouter) -> None:
    assert isinstance(EDITS[0], wise.Edit)
    ids = texts(router, 3)
    assert router.active_positions(ids) == sorted(whole(router, ids))
