"""Changesets: what a commit must write to make a state the next version, and which states it may make so.

A segment that lost a slot is written again without it, so that nothing of a deleted edit is in the files of a later
version, and small segments are taken up into the new one. What is not touched is shared. A state may follow a version
if its edits are known and unaltered, and if no trace of a deleted edit is left in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count
from operator import eq, is_

from wise.config import WiseConfig
from wise.errors import StoreError
from wise.memory.fingerprint import Fingerprint
from wise.memory.state import MemoryState, common_prefix
from wise.memory.store.backends.base import digest_of
from wise.memory.store.edit_request import Ticket
from wise.memory.store.segments import (
    FULL,
    StoredSlot,
    check_tickets,
    encode_segment,
    encode_space,
    split_into_segments,
    stored,
)
from wise.memory.store.versions import (
    Manifest,
    Range,
    Snapshot,
    check_namespaces,
    check_slots,
    cut_ranges,
    join_ranges,
)

Forget = Callable[[MemoryState, Collection[str]], MemoryState]
"""A state without edits of these ids, and without any trace of them."""


def changeset(
    parent: Snapshot, state: MemoryState, tickets: Mapping[str, int], *, config: WiseConfig, base: Fingerprint
) -> tuple[Snapshot, list[bytes]]:
    """The version after `parent` with this state, and what must be stored before the journal may name it: new segments,
    a new key space, and last the manifest. Pure: the same arguments give the same bytes. Slots that are the very same
    objects as in the parent are recognised in one fast pass; only the others are compared one by one. Raises StoreError
    where the state contradicts itself or its edits have no tickets, or was made on another base."""
    if parent.base is not None and parent.base != base:
        raise StoreError(
            f"the store is for the base {parent.base.model_type} {parent.base.digest[:12]} and this state for "
            f"{base.model_type} {base.digest[:12]}: keep a store for each base"
        )
    check_tickets(state, tickets)
    ranges = _ranges(parent, state, tickets)
    new_slots = (slot for segment, *at in ranges if segment is None for slot in state.slots[slice(*at)])
    fresh = [stored(slot, state, tickets) for slot in new_slots]
    check_slots(fresh, state.key_space, config, base)
    names = ({state.by_id[i].namespace for i in slot.edit_ids} for slot in state.slots)
    check_namespaces(config, names, "the version is refused")
    blobs: list[bytes] = []
    written: dict[str, list[StoredSlot]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for segment in split_into_segments(fresh):
        blobs.append(encode_segment(segment))
        digest = digest_of(blobs[-1])
        written[digest], sizes[digest] = segment, (len(segment), len(blobs[-1]))
    space, space_blobs = _space(parent, state)
    slots = tuple(join_ranges(_placed(ranges, [(digest, 0, size) for digest, (size, _) in sizes.items()])))
    used = {digest for digest, _, _ in slots}
    shared = {d: size for d, size in (parent.manifest.segments if parent.manifest else {}).items() if d in used}
    manifest = Manifest(
        config=config, base=base, segments=shared | sizes, slots=slots, order=_order(state), space=space
    )
    snapshot = Snapshot(
        version=parent.version + 1, state=state, config=config, base=base, manifest=manifest,
        tickets={edit_id: tickets[edit_id] for edit_id in state.edit_ids},
        segments={digest: parent.segments[digest] for digest in shared} | written,
    )
    return snapshot, [*blobs, *space_blobs, manifest.to_bytes()]


def _ranges(parent: Snapshot, state: MemoryState, tickets: Mapping[str, int]) -> list[Range[str | None]]:
    """All slots in their order: the segment and places where they are already, or None and the slots to write."""
    if parent.manifest is None:
        return [(None, 0, len(state.slots))]
    same = _untouched(parent, state, tickets)
    ranges: list[Range[str | None]] = [*cut_ranges(parent.manifest.slots, 0, same)]
    stored_at = {
        stored_slot.slot.edit_ids: (digest, start + i, stored_slot)
        for digest, start, stop in cut_ranges(parent.manifest.slots, same, len(parent.state.slots))
        for i, stored_slot in enumerate(parent.segments[digest][start:stop])
        if stored_slot.edits
    }
    for i, slot in enumerate(state.slots[same:], start=same):
        digest, place, stored_slot = stored_at.get(slot.edit_ids, ("", 0, None))
        is_stored = stored_slot is not None and stored_slot.equals(slot, state, tickets)
        ranges.append((digest, place, place + 1) if is_stored else (None, i, i + 1))
    rewritten = _rewritten(parent.manifest, ranges)
    at = 0
    for number, (segment, start, stop) in enumerate(ranges):
        if segment in rewritten:
            ranges[number] = (None, at, at + stop - start)
        at += stop - start
    return join_ranges(ranges)


def _untouched(parent: Snapshot, state: MemoryState, tickets: Mapping[str, int]) -> int:
    """How many slots, from the first, are the parent's very own, with the same edits, tickets and keys."""
    same = common_prefix(parent.state.slots, state.slots)
    ids = [edit_id for slot in state.slots[:same] for edit_id in slot.edit_ids]
    alike = (
        all(map(is_, map(state.by_id.get, ids), map(parent.state.by_id.get, ids)))
        and all(map(is_, map(state.keys.get, ids), map(parent.state.keys.get, ids)))
        and all(map(eq, map(tickets.get, ids), map(parent.tickets.get, ids)))
    )
    return same if alike else 0


def _rewritten(manifest: Manifest, ranges: Sequence[Range[str | None]]) -> set[str | None]:
    """Segments to write again: those that lost a slot, and the last ones as long as they are small."""
    remaining: Counter[str | None] = Counter()
    for digest, start, stop in ranges:
        remaining[digest] += stop - start
    sizes = ((digest, slots) for digest, (slots, _) in manifest.segments.items())
    rewritten: set[str | None] = {digest for digest, slots in sizes if remaining[digest] != slots}
    fresh = remaining[None] + sum(remaining[digest] for digest in rewritten)
    for digest, (slots, size) in reversed(list(manifest.segments.items())):
        if digest not in rewritten:
            if size >= FULL or slots > fresh:  # so a slot is written again each time its segment doubles, at the most
                break
            rewritten.add(digest)
            fresh += slots
    return rewritten


def _placed(ranges: Sequence[Range[str | None]], new: Sequence[Range[str]]) -> Iterator[Range[str]]:
    """Where each slot is: those that were written are in the `new` segments one after the other."""
    at = 0
    for digest, start, stop in ranges:
        if digest is None:
            yield from cut_ranges(new, at, at + stop - start)
            at += stop - start
        else:
            yield digest, start, stop


def _order(state: MemoryState) -> tuple[Range[int], ...]:
    in_slots = [edit_id for slot in state.slots for edit_id in slot.edit_ids]
    ids = [edit.id for edit in state.edits]
    if ids == in_slots:
        return ((0, 0, len(ids)),) if ids else ()
    places = dict(zip(in_slots, count(), strict=False))
    return tuple(join_ranges((0, place, place + 1) for place in map(places.__getitem__, ids)))


def _space(parent: Snapshot, state: MemoryState) -> tuple[str | None, list[bytes]]:
    """The digest of the key space, and its bytes where the parent does not have them."""
    if state.key_space is None:
        return None, []
    if parent.manifest is not None and state.key_space is parent.state.key_space:
        return parent.manifest.space, []
    data = encode_space(state.key_space)
    return digest_of(data), [data]


# -- what may be committed --------------------------------------------------------------------


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
    if remaining := {*edit_ids} & {*state.edit_ids}:
        raise StoreError(f"edit {min(remaining)!r} was to be forgotten and is still in the state")
    return state


def check_edits(state: MemoryState, parent: Snapshot, mine: Mapping[str, Ticket]) -> None:
    """Every edit of a state is one that was live, or one of these tickets, unaltered. Raises StoreError."""
    for edit in state.edits[common_prefix(state.edits, parent.state.edits) :]:
        earlier = parent.state.by_id.get(edit.id)
        if earlier is edit:
            continue
        if edit.id in mine:
            earlier = mine[edit.id].edit
        if earlier is None:
            raise StoreError(f"edit {edit.id!r} was neither live nor claimed; enqueue it, claim it, then commit it")
        if earlier != edit:
            raise StoreError(f"edit {edit.id!r} is not the one that was enqueued; give a changed edit a new id")


def same_slots(before: Manifest | None, after: Manifest | None) -> bool:
    """Whether a version would hold what its parent holds."""
    if before is None or after is None:
        return not (after and after.slots)
    same = (before.slots, before.order, before.config) == (after.slots, after.order, after.config)
    return same and (before.space == after.space or not after.slots)
