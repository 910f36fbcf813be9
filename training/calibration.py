"""The floors of a trained router: how near a question must come, so that few that ask something else do.

They are conformal (`wise.training.floors`), for a stated share of false routes in each class of negatives, on facts
that the space of relations was not learned from; that of subjects is learned from none. Of relations: other questions
about a fact's own subject, and its own questions one token before their end. Of subjects, where the relation reaches
its floor: a fact's own question asked of a name like that of its subject; and its questions against all other facts, of
which the likest counts, so that this floor rises with the number of edits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from wise.memory.key_space import KeySpace, of_whom
from wise.training.evidence import Evidence
from wise.training.floors import ABSENT, conformal_floor, growing_floors
from wise.training.lesson import Lesson

CALIBRATED = 4000
"""Questions that the floors are found on, at most."""


Read = Callable[[Sequence[Lesson], int], Evidence]
"""Observes questions, and their subjects in so many surroundings."""


@dataclass(frozen=True, kw_only=True)
class Floors:
    """As `KeySpace.floors` has them."""

    relation: tuple[float, ...]
    subject: tuple[float, ...]
    facts: int
    """Whose keys there are."""
    recall: float
    """Share of the other wordings of facts set aside that reach both floors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """One question of each of `n` facts, kept as an edit of it would be."""

    lessons: tuple[Lesson, ...]
    keys: Tensor
    """`[n, r]`."""
    names: Tensor
    """`[n, parts s]`."""
    relation: KeySpace
    subject: KeySpace

    @classmethod
    def of(cls, read: Read, lessons: Sequence[Lesson], spaces: tuple[KeySpace, KeySpace]) -> Facts:
        """lessons: that name their subjects."""
        relation, subject = spaces
        evidence = read(lessons, subject.surroundings)
        return cls(
            lessons=tuple(lessons),
            keys=relation.keys(evidence.relation),
            names=torch.cat([evidence.subject_key(n, subject) for n in range(len(lessons))]),
            relation=relation,
            subject=subject,
        )

    @cached_property
    def places(self) -> dict[str, int]:
        return {lesson.fact: n for n, lesson in enumerate(self.lessons)}

    def own(self, lessons: Sequence[Lesson]) -> Tensor:
        """`[lessons]` the place of the fact of each."""
        return torch.tensor([self.places[lesson.fact] for lesson in lessons])

    def nearest(self, evidence: Evidence, question: int, places: slice = slice(None)) -> Tensor:
        """How near the subjects of the facts at `places` come in what a question's last token sees: `[places]`."""
        tokens = self.subject.named(evidence.named(question)).flatten(0, 1)
        cosines = tokens @ self.names[places].view(-1, tokens.shape[-1]).T
        return of_whom(cosines.amax(0), self.subject.parts)


def calibrate(
    read: Read,
    lessons: Sequence[Lesson],
    evidence: Evidence,
    aside: Tensor,
    spaces: tuple[KeySpace, KeySpace],
    false_routes: float,
    seed: int,
) -> Floors:
    """The floors of the spaces of relations and of subjects.

    evidence: of `lessons`; read: observes others alike.
    aside: `[lessons]` bool, those that the spaces were not learned from.
    """
    relation, subject = spaces
    first: dict[str, int] = {}
    for i, lesson in enumerate(lessons):
        if not lesson.negative and evidence.subject[i] is not None:
            first.setdefault(lesson.fact, i)
    facts = Facts.of(read, [lessons[i] for i in first.values()], spaces)

    rows = [i for i in aside.nonzero()[:, 0].tolist() if lessons[i].fact in facts.places]
    rows = rows[:: max(1, -(-len(rows) // CALIBRATED))]
    own = facts.own([lessons[i] for i in rows])
    negative = torch.tensor([lessons[i].negative for i in rows])
    asked = relation.queries(evidence.relation[rows]) @ facts.keys.T
    whom = torch.stack([facts.nearest(evidence, i) for i in rows])
    towards = asked.gather(1, own[:, None])[:, 0]
    unasked = (relation.queries(evidence.before[rows]) * facts.keys[own]).sum(-1)
    asks = max(0.0, *(conformal_floor(each, false_routes) for each in (towards[negative], unasked[~negative])))

    subjects = [lesson.subject or "" for lesson in facts.lessons]
    same = torch.tensor([[name in lessons[i].prompt for name in subjects] for i in rows])
    like = (asked >= asks) & ~same & ~negative[:, None]
    rising = growing_floors(whom.masked_fill(~like, ABSENT)[~negative], false_routes)
    alike = _of_names_alike(facts, read, asks, false_routes, seed)
    whole = tuple(max(floor, alike) for floor in rising)

    other = ~negative & torch.tensor([i != first[lessons[i].fact] for i in rows])
    floor = replace(subject, floors=whole).floor(len(facts.lessons))
    reached = (towards >= asks) & (whom.gather(1, own[:, None])[:, 0] >= floor)
    return Floors(
        relation=(asks,), subject=whole, facts=len(facts.lessons), recall=float(reached[other].float().mean())
    )


def _of_names_alike(facts: Facts, read: Read, asks: float, false_routes: float, seed: int) -> float:
    """The floor of subjects that names alike set; 0 where no name has a word that could be another's."""
    misnamed = list(_misnamed(facts.lessons, seed))[:CALIBRATED]
    if not misnamed:
        return 0.0
    heard, own = read(misnamed, 0), facts.own(misnamed)
    reached = (facts.relation.queries(heard.relation) * facts.keys[own]).sum(-1) >= asks
    near = torch.cat([facts.nearest(heard, i, slice(n, n + 1)) for i, n in enumerate(own.tolist())])
    return conformal_floor(near[reached], false_routes)


def _misnamed(lessons: Sequence[Lesson], seed: int) -> Iterator[Lesson]:
    """Each question asked of a name whose first or last word is another subject's; names of one word are left out."""
    rng = random.Random(seed)
    names = [lesson.subject.split() for lesson in lessons if lesson.subject]
    ends = {end: sorted({name[end] for name in names if len(name) > 1 and _telling(name[end])}) for end in (0, -1)}
    for lesson in lessons:
        words = (lesson.subject or "").split()
        telling = [end for end in (0, -1) if len(words) > 1 and _telling(words[end])]
        if lesson.subject and telling:
            end = rng.choice(telling)
            other = rng.choice(ends[end])
            name = " ".join((other, *words[1:]) if end == 0 else (*words[:-1], other))
            if other != words[end]:
                yield replace(lesson, prompt=lesson.prompt.replace(lesson.subject, name), subject=name)


def _telling(word: str) -> bool:
    """Not an article, a preposition, or an initial."""
    return len(word) > 3 and word != word.lower()
