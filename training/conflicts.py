"""Edits that contradict each other in unlike words: the last one that was written has the word (`hybrid`).

Two edits ask the same where their keys say so: the subject key of each lies as near to the other's as the router asks
of a subject, and their relation keys as near as both edits ask of a relation, and half the way from the router's floor
to 1. A question worded in a third way might then be answered by either, so only one of them stays. To take out a good
edit is the worse mistake: of the questions that ask something else about a subject, a stated share reaches that floor,
but few come half the way from there. Unlike names of their subjects, where both give one, speak against it too.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from wise.edits import Edit
from wise.memory.key_space import of_whom
from wise.memory.state import MemoryState
from wise.training.report import Conflict

NEARER = 0.5
"""Of the way from the router's floor of relations to 1: so near lie the relations of two edits that ask the same."""
ROUNDING = 1e-4
"""More than float32 can mistake a cosine."""


def conflicts(state: MemoryState, written: Collection[str]) -> tuple[Conflict, ...]:
    """Which edits of `state` give way to a later one that is among `written`, in the order of the stream.

    Looked at from the last edit to the first: one that has given way itself takes no other's place. None where keys
    have no subject part, as in `merge` and `retrieve`. Few come near in what they ask, and of these alone the keys are
    compared as a whole: in float64, so that what is near a floor does not turn on how many edits there are.
    """
    relation_space, subject_space = state.key_space, state.subject_space
    later = [place for place, edit in enumerate(state.edits) if edit.id in written]
    if relation_space is None or subject_space is None or not later:
        return ()
    parts, size = subject_space.parts, subject_space.parts * len(subject_space.projection)
    floor = relation_space.floor(len(state.edits))
    floors = _relation_floors(state, floor + NEARER * (1 - floor))
    asked = torch.stack([state.keys[edit.id][0, size:] for edit in state.edits])
    least = subject_space.floor(len(state.edits))
    found: dict[int, Conflict] = {}
    for place in reversed(later):
        if place in found:
            continue
        near = asked[:place] @ asked[place] >= floors[:place].clamp(min=float(floors[place])) - ROUNDING
        for earlier in near.nonzero()[:, 0].tolist():
            one, other = state.edits[earlier], state.edits[place]
            if earlier in found or not _contradict(one, other):
                continue
            product = state.keys[one.id][0].double() * state.keys[other.id][0].double()
            relation = float(product[size:].sum())
            subject = float(of_whom(product[:size].view(parts, -1).sum(-1), parts)[0])
            if subject >= least and relation >= max(floors[earlier], floors[place]):
                found[earlier] = Conflict(gave_way=one.id, to=other.id, relation=relation, subject=subject)
    return tuple(found[earlier] for earlier in sorted(found))


def _contradict(one: Edit, other: Edit) -> bool:
    """They want unlike answers, and no name says that they are about unlike subjects."""
    named = one.subject is None or other.subject is None or one.subject.casefold() == other.subject.casefold()
    return named and one.target != other.target


def _relation_floors(state: MemoryState, least: float) -> Tensor:
    """`[edits]` the cosine that a token must reach to each edit's relation key, at least `least`, float64."""
    own = {edit_id: slot.threshold for slot in state.slots for edit_id in slot.edit_ids}
    return torch.tensor([max(own[edit.id], least) for edit in state.edits], dtype=torch.float64)
