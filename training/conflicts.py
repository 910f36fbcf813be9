"""Edits that contradict each other in other words: the last one that was written stays (`hybrid`).

Two edits ask the same where they are about one subject and each is what the other's question asks for, as the router
takes it: a question worded in a third way might then be answered by either. The relation that they are nearest to does
not count: two edits that no shipped relation fits may share it. Two of one prompt are no conflict; the
later simply replaces the earlier.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import count

from wise.edits import Edit
from wise.memory.key_space import RelationSpace
from wise.memory.state import MemoryState
from wise.router.catalog import Catalog, catalog_of, own_keys
from wise.router.subjects import names_of
from wise.training.report import Conflict
from wise.training.verification import same_subject


def conflicts(state: MemoryState, written: Collection[str]) -> tuple[Conflict, ...]:
    """Which edits of `state` give way to a later one that is among `written`, in the order of the stream.

    Looked at from the last edit to the first: one that has given way itself takes no other's place. None where keys
    were not made by a relation reader (`merge`, `retrieve`).
    """
    if not isinstance(state.key_space, RelationSpace):
        return ()
    catalog = catalog_of(state)
    places = dict(zip(state.edit_ids, count(), strict=False))
    found: dict[int, Conflict] = {}
    for place in sorted((places[edit_id] for edit_id in written if edit_id in places), reverse=True):
        if place in found:
            continue
        other = state.edits[place]
        for earlier in sorted({places[edit_id] for edit_id in _alike(catalog, other, state.key_space)}):
            one = state.edits[earlier]
            if earlier >= place or earlier in found or one.target == other.target or not same_subject(one, other):
                continue
            first, second = (own_keys(state.keys[e.id].float(), e) for e in (one, other))
            score = min(float((first @ second[0]).max()), float((second @ first[0]).max()))
            least = max(state.slots[catalog.slots[edit.id]].threshold for edit in (one, other))
            if not names_of(one):
                least = max(least, state.key_space.unnamed_threshold)
            if score >= least:
                found[earlier] = Conflict(superseded=one.id, by=other.id, score=score)
    return tuple(found[earlier] for earlier in sorted(found))


def _alike(catalog: Catalog, edit: Edit, space: RelationSpace) -> list[str]:
    """Ids of the edits that may be about the subject of another one, or ask the same where it has none."""
    if not names_of(edit):
        near = catalog.near(catalog.state.keys[edit.id], space.unnamed_threshold)
        return [edit_id for edit_id in near if edit_id in catalog.nameless]
    mentions = [mention for name in names_of(edit) for mention in catalog.subjects.mentions(name)]
    return [edit_id for mention in mentions for edit_id in catalog.subjects.owners(mention)]
