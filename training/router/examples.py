"""Training batches for the relation reader: pairs of wordings that ask the same, among pairs that ask something else.

A batch has three groups of pairs, and a pair must differ from others of its group. Two groups are read as the router
reads a question that names an edit's subject, with "this" in its place: relations of one kind of subject, which are
close to one another, and relations of any kind, which may have one wording in common. The third group is read as it
stands, as a question that names no edited subject: there the same relation of another subject counts as different.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from wise.router.subjects import PLACEHOLDER
from wise.training.router.builtin_questions import SUBJECTS, QuestionSet, wordings

KIND_RIVALS = 22
"""Relations of one kind of subject that a masked question is distinguished from at once."""
ANY_RIVALS = 64
"""The same of any kind."""
ANSWERED = 0.8
"""Share of masked wordings that are read with an answer on one side, as an edit is."""
HELD_OUT = 6
"""One relation in so many of a kind, and at least two, is never taught."""
QUESTION_FRAMES = (
    *["{}"] * 6, "Can you tell me: {}", "Please tell me. {}", "{} Thanks!", "Quick question: {}",
    "Question: {} Answer:", "I like long walks. {}", "Hi! {}", "I am filling in a form: {}", "{} I keep forgetting.",
    "{} Please answer briefly.", "I'm filling in a form and one box is still empty. {}",
    "My friend and I argued about it yesterday. {}", "For a quiz at work I need one more answer: {}", "hey, {}",
)
SENTENCE_FRAMES = (*["{}"] * 5, "I like long walks. {}", "It is said that {}", "As you may know, {}")


def put(subject: str, wording: str) -> str:
    """The wording with the subject in it, large where it begins the sentence."""
    subject_text = subject[0].upper() + subject[1:] if wording.startswith("{}") else subject
    return wording.replace("{}", subject_text)


def stated(text: str, answer: str) -> str:
    """A wording and its answer as one statement, since the answer often tells what a short wording asks for."""
    return f"{text} {answer.rstrip('.')}."


def split(questions: QuestionSet, seed: int = 7) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Relations of each kind: those that are taught, and those that are held out."""
    order, taught, held_out = random.Random(seed), {}, {}
    for kind in questions[SUBJECTS]:
        names = sorted(questions[kind])
        order.shuffle(names)
        count = max(2, len(names) // HELD_OUT)
        held_out[kind], taught[kind] = names[:count], names[count:]
    return taught, held_out


def relation_names(questions: QuestionSet) -> list[tuple[str, str]]:
    """Every relation of the questions as kind and name, in its order."""
    return [(kind, relation) for kind in questions[SUBJECTS] for relation in questions[kind]]


def batch(
    questions: QuestionSet, taught: Mapping[str, list[str]], order: random.Random
) -> tuple[list[str], list[str], list[int]]:
    """Pairs of wordings, and the group of rivals that each pair is in."""
    kinds = list(taught)
    near, unmasked = order.choices(kinds, [len(taught[kind]) ** 0.5 for kind in kinds], k=2)
    any_kind = [(kind, relation) for kind in kinds for relation in taught[kind]]
    groups = (
        [(PLACEHOLDER, near, name) for name in _few(order, taught[near], KIND_RIVALS)],
        [(PLACEHOLDER, kind, name) for kind, name in _few(order, any_kind, ANY_RIVALS)],
        [
            (subject, unmasked, name)
            for subject in order.sample(list(questions[SUBJECTS][unmasked]), 3)
            for name in _few(order, taught[unmasked], 6)
        ],
    )
    first, second, group = list[str](), list[str](), list[int]()
    for number, rivals in enumerate(groups):
        for subject, kind, name in rivals:
            relation = questions[kind][name]
            one, other = (framed(put(subject, text), order) for text in order.sample(wordings(relation), 2))
            answers = relation.get("answers")
            if subject == PLACEHOLDER and answers and order.random() < ANSWERED:
                other = stated(other, order.choice(answers))
            first.append(one)
            second.append(other)
            group.append(number)
    return first, second, group


def _few(order: random.Random, given: Sequence[Any], count: int) -> list[Any]:
    return order.sample(given, min(count, len(given)))


def framed(text: str, order: random.Random) -> str:
    """The question as somebody might type it."""
    if text[-1] not in "?.":
        return order.choice(SENTENCE_FRAMES).format(text)
    text = order.choice(QUESTION_FRAMES).format(text)
    chance = order.random()
    if chance < 0.15:
        text = text.lower()
    return text.rstrip("?.!") if chance > 0.9 else text
