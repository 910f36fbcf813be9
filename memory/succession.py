"""What may follow a version: a state of edits that are known and unaltered, with no trace of those that are deleted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from wise.errors import StoreError
from wise.memory.runs import leading
from wise.memory.state import MemoryState
from wise.memory.ticket import Ticket
from wise.memory.version import Manifest, Snapshot

Forget = Callable[[MemoryState, Collection[str]], MemoryState]
"""A state without edits of these ids, and without any trace of them."""


def without(parent: Snapshot, edit_ids: Collection[str], forget: Forget | None) -> MemoryState:
    """The state of a version with no trace of these live edits; `forget` is asked where they share slots with others.

    Raises StoreError where that is not given, or gives anything else.
    """
    if not parent.state.sharing(edit_ids):
        return parent.state.without(edit_ids)
    if forget is None:
        raise StoreError(
            f"edit {next(iter(edit_ids))!r} shares a slot with others, which must be written anew without it: give "
            "delete() what does that (`forget`); `wise store delete` and the service do"
        )
    state = forget(parent.state, edit_ids)
    check_edits(state, parent, {})
    if left := {*edit_ids} & {*state.edit_ids}:
        raise StoreError(f"edit {min(left)!r} was to be forgotten and is still in the state")
    return state


def check_edits(state: MemoryState, parent: Snapshot, mine: Mapping[str, Ticket]) -> None:
    """Every edit of a state is one that was live, or one of these tickets, unaltered. Raises StoreError."""
    for edit in state.edits[leading(state.edits, parent.state.edits) :]:
        known = parent.edits.get(edit.id)
        if known is edit:
            continue
        if edit.id in mine:
            known = mine[edit.id].edit
        if known is None:
            raise StoreError(f"edit {edit.id!r} was neither live nor begun; acknowledge it, begin it, then commit it")
        if known != edit:
            raise StoreError(f"edit {edit.id!r} is not the one that was acknowledged; give a changed edit a new id")


def same_slots(before: Manifest | None, after: Manifest) -> bool:
    """Whether a version would hold what its parent holds."""
    if before is None:
        return not after.slots
    return (before.slots, before.order, before.config) == (after.slots, after.order, after.config)
