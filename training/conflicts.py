"""Contradicting edits in different words: the last one that was written stays (`hybrid`).

Two edits contradict each other if they have one subject and unlike targets, the question of each scores well above the
threshold for the other, and nothing shows that they ask for two things: a third wording could be answered by either.
The questions are not compared with the centre of the nearest relation, since two edits that no shipped relation fits
may share it. Two edits of one prompt are no conflict: the later one replaces the earlier one.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import count
from os.path import commonprefix

import torch

from wise.edits import Edit
from wise.memory.key_space import RelationSpace
from wise.memory.state import MemoryState
from wise.router.catalog import catalog_of, own_centre, own_keys, own_texts, own_vectors
from wise.router.hybrid import MAX_THRESHOLD
from wise.router.relations import relations_differ
from wise.router.subjects import ORDINARY, names_of, without_names, words
from wise.training.report import Conflict
from wise.training.verification import same_subject

CONFLICT_MARGIN = 0.1
"""How far above the threshold two questions about one subject must score. To drop an edit that contradicts nothing is
worse than to keep two that contradict each other."""
SWAPPED = 2
"""The most words that may be swapped, in one place, between two questions for different things."""
UNCHANGED = 3
"""The fewest words that two such questions share."""


def conflicts(state: MemoryState, written: Collection[str]) -> tuple[Conflict, ...]:
    """The edits of `state` that a later one among `written` supersedes, in the order of the stream.

    A superseded edit supersedes no other. There are none where keys were not made by a relation reader (`merge`,
    `retrieve`).
    """
    if not isinstance(state.key_space, RelationSpace):
        return ()
    catalog = catalog_of(state)
    places = dict(zip(state.edit_ids, count(), strict=False))
    superseded: dict[int, Conflict] = {}
    for place in sorted((places[edit_id] for edit_id in written if edit_id in places), reverse=True):
        if place in superseded:
            continue
        other = state.edits[place]
        alike: Collection[str] = catalog.namesakes(other)
        if not names_of(other):  # those with a close question
            near = catalog.near(catalog.state.keys[other.id], state.key_space.unnamed_threshold)
            alike = near & catalog.nameless.keys()
        for earlier in sorted({places[edit_id] for edit_id in alike}):
            one = state.edits[earlier]
            if earlier >= place or earlier in superseded or one.target == other.target or not same_subject(one, other):
                continue
            first, second = (own_keys(state.keys[e.id].float(), e) for e in (one, other))
            score = min(float((first @ second[0]).max()), float((second @ first[0]).max()))
            least = max(state.slots[catalog.slots[edit.id]].threshold for edit in (one, other))
            if names_of(one):
                least = min(least + CONFLICT_MARGIN, MAX_THRESHOLD)
            else:
                least = max(least, state.key_space.unnamed_threshold)
            if score >= least and _ask_the_same(state, one, other):
                superseded[earlier] = Conflict(superseded=one.id, by=other.id, score=score)
    return tuple(superseded[earlier] for earlier in sorted(superseded))


def _ask_the_same(state: MemoryState, one: Edit, other: Edit) -> bool:
    """False where a word was swapped, or where the reader knows the relations of both and they differ: where a person
    was born and when. True where a text of one is also a text of the other, whatever the rest shows."""
    first_texts, others = ([without_names(text, names_of(edit)) for text in own_texts(edit)] for edit in (one, other))
    if not {*first_texts}.isdisjoint(others):
        return True
    first, second = (state.keys[edit.id].float() for edit in (one, other))
    centres = torch.cat([own_centre(first, one), own_centre(second, other)])
    differ = len(centres) == 2 and relations_differ(own_vectors(first), own_vectors(second), centres)
    return not differ and not swaps_a_word(first_texts[0], others[0])


def swaps_a_word(one: str, other: str) -> bool:
    """Whether two questions differ in a word or two of one place alone: "the phone number", "the fax number".

    Ordinary words ("which" and "what") and forms of one word ("open" and "opens") are not counted.
    """
    first, second = ([word.text for word in words(text)] for text in (one, other))
    before = len(commonprefix([first, second]))
    behind = len(commonprefix([first[before:][::-1], second[before:][::-1]]))
    left, right = (part[before : len(part) - behind] for part in (first, second))
    if max(len(left), len(right)) > SWAPPED or before + behind < UNCHANGED:
        return False
    left, right = ([word for word in part if word not in ORDINARY] for part in (left, right))
    forms = (a.startswith(b) or b.startswith(a) for a in left for b in right)
    return bool(left and right) and not any(forms)
