"""Versions: which slots, in which order, make up one state of the memory.

A manifest is a small JSON text: settings, base, segments, ranges of slots in them, and the digest of the key space. It
and all that it names are stored under the SHA-256 of their bytes, so one digest stands for the whole version. Every
slot of every segment of a version is live in it, so nothing of a deleted edit is in the files of a later version. A
version of 10,000 slots is about a hundred ranges, and checks go over ranges instead of slots.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ArtifactError, RefusedError, StoreError
from wise.memory.artifact import check_state, check_tensors
from wise.memory.fingerprint import Fingerprint
from wise.memory.key_space import Space
from wise.memory.state import MemoryState
from wise.memory.store.backends.base import Backend
from wise.memory.store.segments import StoredSlot, decode_segment, decode_space, state_of

FORMAT = "wise-version"
SCHEMA_VERSION = 1

Key = TypeVar("Key")
Range = tuple[Key, int, int]
"""Key, first place, and the place after the last."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    config: WiseConfig
    base: Fingerprint
    segments: Mapping[str, tuple[int, int]]
    """Digest -> slots and bytes, in the order in which they were written."""
    slots: tuple[Range[str], ...]
    """Where each slot is: segment and places."""
    order: tuple[Range[int], ...]
    """The edits in the order in which they came: places in the list of edits, slot by slot. The key is 0."""
    space: str | None
    """Digest of the key space, where there is one."""

    @property
    def blobs(self) -> frozenset[str]:
        """All that it names."""
        return frozenset((*self.segments, *([self.space] if self.space else [])))

    def to_bytes(self) -> bytes:
        numbers = {digest: i for i, digest in enumerate(self.segments)}
        data = {
            "format": FORMAT, "schema_version": SCHEMA_VERSION,
            "config": self.config.to_dict(), "base": self.base.to_dict(),
            "segments": [[digest, *size] for digest, size in self.segments.items()],
            "slots": [(numbers[segment], *places) for segment, *places in self.slots],
            "order": self.order, "spaces": {"key_space": self.space} if self.space else {},
        }
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> Manifest:
        """The inverse of `to_bytes`. Raises StoreError, naming `place`, where they are no manifest we can read."""
        try:
            fields = json.loads(data)
            if (fields["format"], fields["schema_version"]) != (FORMAT, SCHEMA_VERSION):
                raise ValueError(f"{fields['format']!r} of schema {fields['schema_version']!r}")
            digests = [digest for digest, _, _ in fields["segments"]]
            return cls(
                config=WiseConfig.from_dict(fields["config"]),
                base=Fingerprint.from_dict(fields["base"]),
                segments={digest: (slots, size) for digest, slots, size in fields["segments"]},
                slots=tuple(join_ranges((digests[i], int(first), int(behind)) for i, first, behind in fields["slots"])),
                order=tuple(join_ranges((int(key), int(first), int(behind)) for key, first, behind in fields["order"])),
                space=dict(fields["spaces"]).get("key_space"),
            )
        except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
            problem = f"is no manifest that this release reads: {error!r:.200}"
            raise StoreError(f"{place}: {problem}; a newer wise-runtime may read it") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """One state of the memory, read and verified. Immutable: what is committed meanwhile does not touch it."""

    version: int
    state: MemoryState = field(default_factory=MemoryState)
    tickets: Mapping[str, int] = field(default_factory=dict)
    """Edit id -> its ticket."""
    config: WiseConfig | None = None
    """The settings it was made with; None before the first version."""
    base: Fingerprint | None = None
    """The base it was made for; None before the first version."""
    manifest: Manifest | None = None
    segments: Mapping[str, Sequence[StoredSlot]] = field(default_factory=dict)
    """By digest: what the next version shares with it."""


def read_manifest(backend: Backend, digest: str) -> Manifest:
    """Raises StoreError where it is missing, damaged or none that this release reads."""
    return Manifest.from_bytes(backend.get(digest), f"{backend.place}: manifest {digest[:16]}")


def read(version: int, digest: str, backend: Backend, known_segments: Mapping[str, Sequence[StoredSlot]]) -> Snapshot:
    """The version whose manifest has this digest; `known_segments` are not read again.

    Raises StoreError where anything it names is missing, damaged or does not fit together.
    """
    manifest, get, place = read_manifest(backend, digest), backend.get, backend.place
    segments = {
        key: known_segments[key] if key in known_segments else decode_segment(get(key), f"{place}: {key[:16]}")
        for key in manifest.segments
    }
    space = manifest.space
    key_space = decode_space(get(space), f"{place}: {space[:16]}") if space else None
    for segment, stored_slots in segments.items():
        if segment not in known_segments:
            check_slots(stored_slots, key_space, manifest.config, manifest.base)
    slots = slots_in_order(manifest, segments, f"{place}: version {version}")
    edits = [edit for stored in slots for edit in stored.edits]
    return Snapshot(
        version=version, config=manifest.config, base=manifest.base, manifest=manifest, segments=segments,
        state=state_of(slots, [e.id for _, start, stop in manifest.order for e in edits[start:stop]], key_space),
        tickets={e.id: number for stored in slots for e, number in zip(stored.edits, stored.tickets, strict=True)},
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    added: tuple[Edit, ...]
    removed: tuple[Edit, ...]
    changed: tuple[tuple[Edit, Edit], ...]
    """Before and after, of prompts that both answer."""


def difference(before: Snapshot, after: Snapshot) -> Difference:
    """Goes by tickets: an edit that was retired and asked for again is another one."""
    old, new = set(before.tickets.values()), set(after.tickets.values())
    gone = {edit.id: edit for edit in before.state.edits if before.tickets[edit.id] not in new}
    by_prompt = {(edit.prompt, edit.namespace): edit for edit in gone.values()}
    added, changed = [], []
    for edit in after.state.edits:
        if after.tickets[edit.id] in old:
            continue
        earlier = by_prompt.pop((edit.prompt, edit.namespace), None)
        if earlier is None:
            added.append(edit)
        else:
            changed.append((gone.pop(earlier.id), edit))
    return Difference(added=tuple(added), removed=tuple(gone.values()), changed=tuple(changed))


def slots_in_order(manifest: Manifest, segments: Mapping[str, Sequence[StoredSlot]], place: str) -> list[StoredSlot]:
    """The slots of a version in its order. Raises StoreError where they are not exactly those of its segments."""
    ids = {digest: [edit.id for slot in slots for edit in slot.edits] for digest, slots in segments.items()}
    check_places(manifest, {digest: len(slots) for digest, slots in segments.items()}, ids, place)
    slots = [stored for digest, start, stop in manifest.slots for stored in segments[digest][start:stop]]
    check_namespaces(manifest.config, ({edit.namespace for edit in stored.edits} for stored in slots), place)
    return slots


def check_places(manifest: Manifest, sizes: Mapping[str, int], ids: Mapping[str, Collection[str]], place: str) -> None:
    """A version holds every slot of its segments once, and every edit, in some order.

    sizes, ids: of each segment, the number of slots, and the ids of their edits. Raises StoreError.
    """
    if sizes != {digest: count for digest, (count, _) in manifest.segments.items()} or not cover(manifest.slots, sizes):
        raise StoreError(f"{place}: its slots are not those of its segments; roll back to a whole version")
    count = sum(map(len, ids.values()))
    if len(set().union(*ids.values())) != count or not cover(manifest.order, {0: count}):
        raise StoreError(f"{place}: an edit stands in it twice or in no order; roll back to a whole version")


def check_namespaces(config: WiseConfig, slots: Iterable[Collection[str]], place: str) -> None:
    """In `merge` a namespace has one slot. slots: the namespaces of each one's edits. Raises RefusedError."""
    if config.mode != "merge":
        return
    counts = Counter(namespace for names in slots for namespace in names)
    for namespace, count in counts.items():
        if count > 1:
            raise RefusedError(
                f"{place}: mode 'merge' has one slot for each namespace, and {namespace!r} has {count}: it was made in "
                "another mode; take an older version, or make the edits anew"
            )


def check_slots(slots: Sequence[StoredSlot], key_space: Space | None, config: WiseConfig, base: Fingerprint) -> None:
    """New slots are sound, as a saved memory must be; a merged one by itself. Raises RefusedError."""
    if not slots:
        return
    if config.mode == "merge" and len(slots) > 1:
        for stored in slots:
            check_slots([stored], key_space, config, base)
        return
    state = state_of(slots, [edit.id for stored in slots for edit in stored.edits], key_space)
    tensors = {f"slot {one.slot.id} {name}": t for one in slots for name, t in one.slot.tensors().items()}
    try:
        check_tensors(tensors | {f"keys of edit {i}": keys for i, keys in state.keys.items()})
        check_state(config, state, base)
    except ArtifactError as error:
        raise RefusedError(f"the version is refused: {error}") from error


# -- ranges of places -------------------------------------------------------------------------


def join_ranges(ranges: Iterable[Range[Key]]) -> list[Range[Key]]:
    """The same places in as few ranges as possible, so that equal places give equal ranges."""
    joined: list[Range[Key]] = []
    for key, start, stop in ranges:
        if joined and joined[-1][0] == key and joined[-1][2] == start:
            joined[-1] = (key, joined[-1][1], stop)
        elif start < stop:
            joined.append((key, start, stop))
    return joined


def cut_ranges(ranges: Iterable[Range[Key]], start: int, stop: int) -> list[Range[Key]]:
    """The places from `start` to before `stop` of the sequence."""
    parts = []
    at = 0
    for key, first, behind in ranges:
        low, high = max(start - at, 0), min(stop - at, behind - first)
        if low < high:
            parts.append((key, first + low, first + high))
        at += behind - first
    return parts


def cover(ranges: Iterable[Range[Key]], sizes: Mapping[Key, int]) -> bool:
    """Whether every place from 0 to before its key's size is there exactly once, and no other."""
    reached: dict[Key, int] = {}
    for key, start, stop in sorted(ranges, key=lambda one: one[1]):
        if reached.get(key, 0) != start or stop <= start:
            return False
        reached[key] = stop
    return reached == {key: size for key, size in sizes.items() if size}
