"""A draft: what must be written to make a state the next version.

A segment of which a slot was taken out is written anew without it, so that nothing of a deleted edit is in the files of
a later version, and small segments are taken up into the new one. What is not touched is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from operator import eq, is_

from wise.config import WiseConfig
from wise.errors import StoreError
from wise.memory.fingerprint import Fingerprint
from wise.memory.runs import Run, cut, joined, leading
from wise.memory.segment import FULL, Held, Row, encoded, encoded_space, filled, held_by
from wise.memory.state import MemoryState
from wise.memory.storage.backend import digest_of
from wise.memory.version import Manifest, Snapshot, check_namespaces, check_rows


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A version that is not committed yet: what must be stored before the journal may name it."""

    manifest: Manifest
    snapshot: Snapshot
    blobs: tuple[bytes, ...]
    """New segments, and the key space where it is new."""


def draft(
    parent: Snapshot, state: MemoryState, tickets: Mapping[str, int], *, config: WiseConfig, base: Fingerprint
) -> Draft:
    """What makes `state` the version after `parent`. Pure: the same arguments give the same bytes.

    What is the very same object as in the parent is known by that, in a pass over all that compiled code makes; only
    the rest is looked at one by one.

    Raises StoreError where the state contradicts itself or its edits have no tickets, or was made on another base.
    """
    if parent.base is not None and parent.base != base:
        raise StoreError(
            f"the store is for the base {parent.base.model_type} {parent.base.digest[:12]} and this state for "
            f"{base.model_type} {base.digest[:12]}: keep a store for each base"
        )
    held = held_by(state, tickets)
    stretches = _stretches(parent, state, held)
    fresh = [held.row(slot) for place, *at in stretches if place is None for slot in state.slots[slice(*at)]]
    check_rows(fresh, state.key_space, config, base)
    names = ({held.edits[i].namespace for i in slot.edit_ids} for slot in state.slots)
    check_namespaces(config, names, "the version is refused")
    blobs: list[bytes] = []
    written: dict[str, list[Row]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for segment in filled(fresh):
        data = encoded(segment)
        digest = digest_of(data)
        blobs.append(data)
        written[digest], sizes[digest] = segment, (len(segment), len(data))
    spaces, space_blobs = _space(parent, state)
    new = [(digest, 0, rows) for digest, (rows, _) in sizes.items()]
    slots = tuple(joined(_placed(stretches, new)))
    used = {digest for digest, _, _ in slots}
    shared = {d: told for d, told in (parent.manifest.segments if parent.manifest else {}).items() if d in used}
    manifest = Manifest(
        config=config, base=base, segments=shared | sizes, slots=slots, order=_order(state), spaces=spaces
    )
    snapshot = Snapshot(
        version=parent.version + 1,
        state=state,
        tickets=dict(zip(held.edits, map(tickets.__getitem__, held.edits), strict=True)),
        config=config,
        base=base,
        manifest=manifest,
        rows={digest: parent.rows[digest] for digest in shared} | written,
    )
    return Draft(manifest=manifest, snapshot=snapshot, blobs=(*blobs, *space_blobs))


def _stretches(parent: Snapshot, state: MemoryState, held: Held) -> list[Run[str | None]]:
    """All slots in their order: where they stand already; or None, and which slots of `state` must be written."""
    if parent.manifest is None:
        return [(None, 0, len(state.slots))]
    same = _untouched(parent, state, held)
    found: list[Run[str | None]] = [*cut(parent.manifest.slots, 0, same)]
    standing = {
        row.slot.edit_ids: (digest, start + i, row)
        for digest, start, stop in cut(parent.manifest.slots, same, len(parent.state.slots))
        for i, row in enumerate(parent.rows[digest][start:stop])
        if row.edits
    }
    for i, slot in enumerate(state.slots[same:], start=same):
        digest, place, row = standing.get(slot.edit_ids, ("", 0, None))
        known = row is not None and row.is_of(slot, held)
        found.append((digest, place, place + 1) if known else (None, i, i + 1))
    taken_up = _taken_up(parent.manifest, found)
    at = 0
    for number, (held_in, start, stop) in enumerate(found):
        if held_in in taken_up:
            found[number] = (None, at, at + stop - start)
        at += stop - start
    return joined(found)


def _untouched(parent: Snapshot, state: MemoryState, held: Held) -> int:
    """How many slots, from the first, are the parent's very own, with the same edits, tickets and keys."""
    same = leading(parent.state.slots, state.slots)
    ids = [edit_id for slot in state.slots[:same] for edit_id in slot.edit_ids]
    alike = (
        all(map(is_, map(held.edits.get, ids), map(parent.edits.get, ids)))
        and all(map(is_, map(held.keys.get, ids), map(parent.state.keys.get, ids)))
        and all(map(eq, map(held.tickets.get, ids), map(parent.tickets.get, ids)))
    )
    return same if alike else 0


def _taken_up(manifest: Manifest, stretches: Sequence[Run[str | None]]) -> set[str | None]:
    """Segments that are written anew: those that lost a slot, and the last ones, as long as they are small."""
    left: Counter[str | None] = Counter()
    for digest, start, stop in stretches:
        left[digest] += stop - start
    taken: set[str | None] = {digest for digest, (rows, _) in manifest.segments.items() if left[digest] != rows}
    fresh = left[None] + sum(left[digest] for digest in taken)
    for digest, (rows, size) in reversed(list(manifest.segments.items())):
        if digest not in taken:
            if size >= FULL or rows > fresh:  # a slot is written again each time its segment doubles, at the most
                break
            taken.add(digest)
            fresh += rows
    return taken


def _placed(stretches: Sequence[Run[str | None]], new: Sequence[Run[str]]) -> Iterator[Run[str]]:
    """Where all slots stand, those that were written in the `new` segments one after the other."""
    at = 0
    for digest, start, stop in stretches:
        if digest is None:
            yield from cut(new, at, at + stop - start)
            at += stop - start
        else:
            yield digest, start, stop


def _order(state: MemoryState) -> tuple[Run[int], ...]:
    in_slots = [edit_id for slot in state.slots for edit_id in slot.edit_ids]
    ids = [edit.id for edit in state.edits]
    if ids == in_slots:
        return ((0, 0, len(ids)),) if ids else ()
    places = dict(zip(in_slots, count(), strict=False))
    return tuple(joined((0, place, place + 1) for place in map(places.__getitem__, ids)))


def _space(parent: Snapshot, state: MemoryState) -> tuple[Mapping[str, str], list[bytes]]:
    """The digest of the key space, and its bytes where the parent does not have them."""
    if state.key_space is None:
        return {}, []
    if parent.manifest is not None and state.key_space is parent.state.key_space:
        return parent.manifest.spaces, []
    data = encoded_space(state.key_space)
    return {"key_space": digest_of(data)}, [data]
