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

import torch
from torch import Tensor

from wise.memory.key_space import KeySpace, of_whom
from wise.training.evidence import Evidence
from wise.training.floors import ABSENT, conformal_floor, growing_floors
from wise.training.lesson import Lesson

CALIBRATED = 4000
"""Questions that the floors are found on, at most."""


@dataclass(frozen=True, kw_only=True)
class Floors:
    """As `KeySpace.floors` has them."""

    relation: tuple[float, ...]
    subject: tuple[float, ...]
    facts: int
    """Whose keys there are."""
    recall: float
    """Share of the other wordings of facts set aside that reach both floors."""


def calibrate(
    read: Callable[[Sequence[Lesson]], Evidence],
    lessons: Sequence[Lesson],
    evidence: Evidence,
    aside: Tensor,
    spaces: tuple[KeySpace, KeySpace],
    false_routes: float,
    seed: int,
) -> Floors:
    """The floors of the spaces of relations and of subjects.

    read: observes other questions as `lessons` were for `evidence`, and their subjects elsewhere besides.
    aside: `[lessons]` bool, those that the spaces were not learned from.
    """
    relation, subject = spaces
    first: dict[str, int] = {}
    for i, lesson in enumerate(lessons):
        if not lesson.negative and evidence.subject[i] is not None:
            first.setdefault(lesson.fact, i)
    place = {fact: n for n, fact in enumerate(first)}
    keys = relation.keys(evidence.relation[list(first.values())])
    asked_first = read([lessons[i] for i in first.values()])
    named = torch.cat([asked_first.subject_key(n, subject) for n in range(len(place))])

    rows = [i for i in aside.nonzero()[:, 0].tolist() if lessons[i].fact in place]
    rows = rows[:: max(1, -(-len(rows) // CALIBRATED))]
    own = torch.tensor([place[lessons[i].fact] for i in rows])
    negative = torch.tensor([lessons[i].negative for i in rows])
    asked = relation.queries(evidence.relation[rows]) @ keys.T
    whom = torch.stack([_nearest(evidence, i, named, subject) for i in rows])
    towards = asked.gather(1, own[:, None])[:, 0]
    unasked = (relation.queries(evidence.before[rows]) * keys[own]).sum(-1)
    asks = max(0.0, *(conformal_floor(each, false_routes) for each in (towards[negative], unasked[~negative])))

    subjects = [lessons[i].subject or "" for i in first.values()]
    same = torch.tensor([[name in lessons[i].prompt for name in subjects] for i in rows])
    like = (asked >= asks) & ~same & ~negative[:, None]
    rising = growing_floors(whom.masked_fill(~like, ABSENT)[~negative], false_routes)
    alike = _of_names_alike(read, [lessons[i] for i in first.values()], keys, named, spaces, asks, false_routes, seed)
    whole = tuple(max(floor, alike) for floor in rising)

    other = ~negative & torch.tensor([i != first[lessons[i].fact] for i in rows])
    floor = replace(subject, floors=whole).floor(len(place))
    reached = (towards >= asks) & (whom.gather(1, own[:, None])[:, 0] >= floor)
    return Floors(
        relation=(asks,), subject=whole, facts=len(place), recall=float(reached[other].float().mean())
    )


def _of_names_alike(
    read: Callable[[Sequence[Lesson]], Evidence],
    asked: Sequence[Lesson],
    keys: Tensor,
    named: Tensor,
    spaces: tuple[KeySpace, KeySpace],
    asks: float,
    false_routes: float,
    seed: int,
) -> float:
    """The floor of subjects that names alike set; 0 where no name has a word that could be another's.

    keys `[n, r]`, named `[n, parts s]`: of the questions asked, one of each fact.
    """
    misnamed = list(_misnamed(asked, seed))[:CALIBRATED]
    if not misnamed:
        return 0.0
    (relation, subject), heard = spaces, read(misnamed)
    place = {lesson.fact: n for n, lesson in enumerate(asked)}
    own = torch.tensor([place[lesson.fact] for lesson in misnamed])
    reached = (relation.queries(heard.relation) * keys[own]).sum(-1) >= asks
    near = torch.cat([_nearest(heard, i, named[n : n + 1], subject) for i, n in enumerate(own.tolist())])
    return conformal_floor(near[reached], false_routes)


def _nearest(evidence: Evidence, question: int, named: Tensor, subject: KeySpace) -> Tensor:
    """How near the subjects with the keys `[n, parts s]` come in what a question's last token sees: `[n]`."""
    tokens = subject.named(evidence.named(question)).flatten(0, 1)
    return of_whom((tokens @ named.view(-1, tokens.shape[-1]).T).amax(0), subject.parts)


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
