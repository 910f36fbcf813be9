"""Edits that contradict each other in other words: the last one that was written stays (`hybrid`).

Two edits ask the same where they are about one subject and each is what the other's question asks for, as the router
takes it: a question worded in a third way might then be answered by either. The relation that they are nearest to does
not count: two edits that no shipped relation fits may share it. Two of one prompt are no conflict; the
later simply replaces the earlier.
"""

from __future__ import annotations

from collections.abc import Collection

from wise.edits import Edit
from wise.memory.key_space import RelationSpace
from wise.memory.state import MemoryState
from wise.router.hybrid import own_keys
from wise.router.subjects import SubjectIndex, names_of
from wise.training.report import Conflict
from wise.training.verification import same_subject


def conflicts(state: MemoryState, written: Collection[str]) -> tuple[Conflict, ...]:
    """Which edits of `state` give way to a later one that is among `written`, in the order of the stream.

    Looked at from the last edit to the first: one that has given way itself takes no other's place. None where keys
    were not made by a relation reader (`merge`, `retrieve`).
    """
    if not isinstance(state.key_space, RelationSpace):
        return ()
    thresholds = {edit_id: slot.threshold for slot in state.slots for edit_id in slot.edit_ids}
    later = [place for place, edit in enumerate(state.edits) if edit.id in written]
    known = _Names(state.edits)
    found: dict[int, Conflict] = {}
    for place in reversed(later):
        if place in found:
            continue
        other = state.edits[place]
        for earlier in known.places(other):
            one = state.edits[earlier]
            if earlier >= place or earlier in found or one.target == other.target or not same_subject(one, other):
                continue
            first, second = (own_keys(state.keys[e.id].float(), e) for e in (one, other))
            score = min(float((first @ second[0]).max()), float((second @ first[0]).max()))
            least = max(thresholds[one.id], thresholds[other.id])
            if not names_of(one):
                least = max(least, state.key_space.unnamed_threshold)
            if score >= least:
                found[earlier] = Conflict(gave_way=one.id, to=other.id, score=score)
    return tuple(found[earlier] for earlier in sorted(found))


class _Names:
    """Places of the edits that may be about the subject of another."""

    def __init__(self, edits: Collection[Edit]) -> None:
        named = [(name, place) for place, edit in enumerate(edits) for name in names_of(edit)]
        self._names = SubjectIndex(named)
        self._nameless = [place for place, edit in enumerate(edits) if not names_of(edit)]

    def places(self, edit: Edit) -> list[int]:
        if not names_of(edit):
            return self._nameless
        mentions = [m for name in names_of(edit) for m in self._names.mentions(name)]
        return sorted({place for mention in mentions for place in self._names.owners(mention)})
