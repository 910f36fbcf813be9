"""The questions that ship with wise: what a router learns from where no records are given.

No answers are needed for it, and no base has to know any: a router learns which wordings ask the same, and that a
subject may be asked many things.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from wise.training.lesson import Lesson

SUBJECTS = 8
"""Subjects of which a relation is asked."""
SENTENCES, QUESTIONS = 5, 2
"""Beginnings of a sentence, and questions, in which each is asked for."""
OTHERS = 4
"""Questions of other relations about its subject."""


def shipped_lessons(*, seed: int = 0, subjects: int = SUBJECTS) -> list[Lesson]:
    """125 relations of so many subjects each, ten questions of every such fact: 10,000 in all, or fewer.

    Other ones of the same stock for another seed.
    """
    stock = _stock()
    found: list[Lesson] = []
    for kind, names in stock["subjects"].items():
        wordings = {name: about["wordings"] for name, about in stock[kind].items()}
        for name in wordings:
            rng = random.Random(f"{seed} {kind} {name}")
            for subject in rng.sample(names, subjects):
                found += _of(kind, name, subject, wordings, rng)
    return found


def _of(
    kind: str, name: str, subject: str, wordings: Mapping[str, Sequence[str]], rng: random.Random
) -> Iterator[Lesson]:
    fact, relation = f"{kind}.{name}: {subject}", f"{kind}.{name}"
    sentences = [wording for wording in wordings[name] if not wording.endswith("?")]
    questions = [wording for wording in wordings[name] if wording.endswith("?")]
    for wording in rng.sample(sentences, min(SENTENCES, len(sentences))):
        prompt, own = _put(subject, wording)
        yield Lesson(fact=fact, prompt=prompt, subject=own, relation=relation)
    for wording in rng.sample(questions, min(QUESTIONS, len(questions))):
        prompt, own = _put(subject, wording)
        prompt = rng.choice([prompt, f"Question: {prompt} Answer:"])
        yield Lesson(fact=fact, prompt=prompt, subject=own, relation=relation, form="question")
    others = [other for other in wordings if other != name]
    for other in rng.sample(others, min(OTHERS, len(others))):
        prompt, own = _put(subject, rng.choice(wordings[other]))
        yield Lesson(fact=fact, prompt=prompt, subject=own, relation=f"{kind}.{other}", negative=True)


def _put(subject: str, wording: str) -> tuple[str, str]:
    """The wording with the subject in it, large where it begins the sentence; and the subject as it stands."""
    own = subject[0].upper() + subject[1:] if wording.startswith("{}") else subject
    return wording.replace("{}", own), own


@cache
def _stock() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads((files("wise") / "questions.toml").read_text(encoding="utf-8"))
