"""A version: which slots, in which order, make up one state of the memory; and what a commit must write for it.

A manifest is a small JSON text: settings, base, segments, runs of slots in them, and the digests of the key spaces. It
and all that it names are stored under the SHA-256 of their bytes, so one digest stands for the whole version. Every
slot of every segment of a version is live in it: a segment of which a slot was taken out is written anew without
it, so that nothing of a deleted edit is in the files of a later version, and small segments are taken up into the new
one. What is not touched is shared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ArtifactError, ConfigError, StoreError
from wise.memory.artifact import check_state, check_tensors
from wise.memory.fingerprint import Fingerprint
from wise.memory.key_space import KeySpace
from wise.memory.segment import (
    FULL,
    Held,
    Row,
    decoded,
    decoded_space,
    encoded,
    encoded_space,
    filled,
    held_by,
    state_of,
)
from wise.memory.state import MemoryState
from wise.memory.storage.backend import digest_of

FORMAT = "wise-version"
SCHEMA_VERSION = 1

Place = tuple[str, int]
"""Segment and row of a slot."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a version is made of."""

    config: WiseConfig
    base: Fingerprint
    segments: Mapping[str, tuple[int, int]]
    """Digest -> slots and bytes, in the order in which they were written."""
    slots: tuple[Place, ...]
    """Where each slot stands."""
    order: tuple[int, ...]
    """The edits in the order in which they came: places in the list of edits, slot by slot."""
    spaces: Mapping[str, str]
    """`key_space` and `subject_space`, where there are such: their digests."""

    @property
    def blobs(self) -> frozenset[str]:
        """All that it names."""
        return frozenset((*self.segments, *self.spaces.values()))

    def to_bytes(self) -> bytes:
        numbers = {digest: i for i, digest in enumerate(self.segments)}
        data = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "config": self.config.to_dict(),
            "base": self.base.to_dict(),
            "segments": [[digest, *told] for digest, told in self.segments.items()],
            "slots": _runs([(numbers[segment], row) for segment, row in self.slots]),
            "order": _runs([(0, place) for place in self.order]),
            "spaces": self.spaces,
        }
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> Manifest:
        """The inverse of `to_bytes`. Raises StoreError, naming `place`, where they are no manifest we can read."""
        try:
            told = json.loads(data)
            if (told["format"], told["schema_version"]) != (FORMAT, SCHEMA_VERSION):
                raise ValueError(f"{told['format']!r} of schema {told['schema_version']!r}")
            digests = [digest for digest, _, _ in told["segments"]]
            return cls(
                config=WiseConfig.from_dict(told["config"]),
                base=Fingerprint.from_dict(told["base"]),
                segments={digest: (rows, size) for digest, rows, size in told["segments"]},
                slots=tuple((digests[i], row) for i, row in _places(told["slots"])),
                order=tuple(place for _, place in _places(told["order"])),
                spaces=dict(told["spaces"]),
            )
        except (ArtifactError, ConfigError, LookupError, TypeError, ValueError) as error:
            raise StoreError(
                f"{place}: is no manifest that this release reads: {error!r:.200}; a newer wise-runtime may read it"
            ) from error


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
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """Of each segment: what the next version shares with it."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A version that is not committed yet: what must be stored before the journal may name it."""

    manifest: Manifest
    snapshot: Snapshot
    blobs: tuple[bytes, ...]
    """New segments and key spaces."""


def draft(
    parent: Snapshot, state: MemoryState, tickets: Mapping[str, int], *, config: WiseConfig, base: Fingerprint
) -> Draft:
    """What makes `state` the version after `parent`. Pure: the same arguments give the same bytes.

    Raises StoreError where the state contradicts itself or its edits have no tickets, or was made on another base.
    """
    if parent.base is not None and parent.base != base:
        raise StoreError(
            f"the store is for the base {parent.base.model_type} {parent.base.digest[:12]} and this state for "
            f"{base.model_type} {base.digest[:12]}: keep a store for each base"
        )
    held = held_by(state, tickets)
    places = _kept(parent, state, held)
    fresh = [held.row(slot) for slot, place in zip(state.slots, places, strict=True) if place is None]
    check_rows(fresh, state.key_space, state.subject_space, config, base)
    check_namespaces(config, ([held.edits[i] for i in slot.edit_ids] for slot in state.slots), "the version is refused")
    blobs: list[bytes] = []
    written: dict[str, list[Row]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    new_places: list[Place] = []
    for segment in filled(fresh):
        data = encoded(segment)
        digest = digest_of(data)
        blobs.append(data)
        written[digest], sizes[digest] = segment, (len(segment), len(data))
        new_places += [(digest, row) for row in range(len(segment))]
    spaces, space_blobs = _spaces(parent, state)
    coming = iter(new_places)
    slots = tuple(next(coming) if place is None else place for place in places)
    used = {digest for digest, _ in slots}
    shared = {d: told for d, told in (parent.manifest.segments if parent.manifest else {}).items() if d in used}
    manifest = Manifest(
        config=config, base=base, segments=shared | sizes, slots=slots, order=_order(state), spaces=spaces
    )
    snapshot = Snapshot(
        version=parent.version + 1,
        state=state,
        tickets={edit.id: tickets[edit.id] for edit in state.edits},
        config=config,
        base=base,
        manifest=manifest,
        rows={digest: parent.rows[digest] for digest in shared} | written,
    )
    return Draft(manifest=manifest, snapshot=snapshot, blobs=(*blobs, *space_blobs))


def read(
    version: int, digest: str, get: Callable[[str], bytes], place: str, known: Mapping[str, Sequence[Row]]
) -> Snapshot:
    """The version whose manifest has this digest; segments that are `known` are not read again.

    Raises StoreError where anything it names is missing, damaged or does not fit together.
    """
    manifest = Manifest.from_bytes(get(digest), f"{place}: {digest[:16]}")
    rows = {d: known[d] if d in known else decoded(get(d), f"{place}: {d[:16]}") for d in manifest.segments}
    spaces = {name: decoded_space(get(d), f"{place}: {d[:16]}") for name, d in manifest.spaces.items()}
    key_space, subject_space = spaces.get("key_space"), spaces.get("subject_space")
    for segment, found in rows.items():
        if segment not in known:
            check_rows(found, key_space, subject_space, manifest.config, manifest.base)
    placed = placed_rows(manifest, rows, f"{place}: version {version}")
    edits = [edit for row in placed for edit in row.edits]
    return Snapshot(
        version=version,
        state=state_of(placed, [edits[i].id for i in manifest.order], key_space, subject_space),
        tickets={e.id: number for row in placed for e, number in zip(row.edits, row.tickets, strict=True)},
        config=manifest.config,
        base=manifest.base,
        manifest=manifest,
        rows=rows,
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What turns one version into another."""

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


def placed_rows(manifest: Manifest, rows: Mapping[str, Sequence[Row]], place: str) -> list[Row]:
    """The rows of a version in its order. Raises StoreError where they are not exactly those of its segments."""
    whole = Counter((digest, i) for digest, (count, _) in manifest.segments.items() for i in range(count))
    counts = {digest: len(found) for digest, found in rows.items()}
    if Counter(manifest.slots) != whole or counts != {d: count for d, (count, _) in manifest.segments.items()}:
        raise StoreError(f"{place}: its slots are not those of its segments; roll back to a whole version")
    placed = [rows[digest][row] for digest, row in manifest.slots]
    ids = [edit.id for row in placed for edit in row.edits]
    if len(set(ids)) != len(ids) or sorted(manifest.order) != list(range(len(ids))):
        raise StoreError(f"{place}: an edit stands in it twice or in no order; roll back to a whole version")
    check_namespaces(manifest.config, (row.edits for row in placed), place)
    return placed


def check_namespaces(config: WiseConfig, slots: Iterable[Iterable[Edit]], place: str) -> None:
    """Of the edits of each slot: in `merge` a namespace has one slot. Raises StoreError."""
    if config.mode != "merge":
        return
    counts = Counter(namespace for edits in slots for namespace in {edit.namespace for edit in edits})
    for namespace, count in counts.items():
        if count > 1:
            raise StoreError(
                f"{place}: mode 'merge' has one slot for each namespace, and {namespace!r} has {count}: it was made in "
                "another mode; take an older version, or make the edits anew"
            )


def check_rows(
    rows: Sequence[Row],
    key_space: KeySpace | None,
    subject_space: KeySpace | None,
    config: WiseConfig,
    base: Fingerprint,
) -> None:
    """New rows are sound, as a saved memory must be; a merged one by itself. Raises StoreError."""
    if not rows:
        return
    if config.mode == "merge" and len(rows) > 1:
        for row in rows:
            check_rows([row], key_space, subject_space, config, base)
        return
    state = state_of(rows, [edit.id for row in rows for edit in row.edits], key_space, subject_space)
    tensors = {f"slot {row.slot.id} {name}": t for row in rows for name, t in row.slot.tensors().items()}
    try:
        check_tensors(tensors | {f"keys of edit {i}": keys for i, keys in state.keys.items()})
        check_state(config, state, base)
    except ArtifactError as error:
        raise StoreError(f"the version is refused: {error}") from error


def _kept(parent: Snapshot, state: MemoryState, held: Held) -> list[Place | None]:
    """Where each slot stands already, and None for those that must be written."""
    manifest = parent.manifest
    if manifest is None:
        return [None] * len(state.slots)
    standing = {
        row.slot.edit_ids: ((digest, i), row)
        for digest, rows in parent.rows.items()
        for i, row in enumerate(rows)
        if row.edits
    }
    nowhere: tuple[Place | None, Row | None] = (None, None)
    places: list[Place | None] = []
    for slot in state.slots:
        place, row = standing.get(slot.edit_ids, nowhere)
        places.append(place if row is not None and row.is_of(slot, held) else None)
    counts = Counter(place[0] for place in places if place is not None)
    rewritten = {d for d, (count, _) in manifest.segments.items() if counts[d] != count}
    fresh = sum(place is None or place[0] in rewritten for place in places)
    for digest, (count, size) in reversed(list(manifest.segments.items())):
        if digest not in rewritten:
            if size >= FULL or count > fresh:  # a slot is written again each time its segment doubles, at the most
                break
            rewritten.add(digest)
            fresh += count
    return [None if place is None or place[0] in rewritten else place for place in places]


def _order(state: MemoryState) -> tuple[int, ...]:
    places = {edit_id: i for i, edit_id in enumerate(i for slot in state.slots for i in slot.edit_ids)}
    return tuple(places[edit.id] for edit in state.edits)


def _spaces(parent: Snapshot, state: MemoryState) -> tuple[dict[str, str], list[bytes]]:
    """Digests of the key spaces by name, and the bytes of those that the parent does not have."""
    digests: dict[str, str] = {}
    blobs = []
    for name in ("key_space", "subject_space"):
        space = getattr(state, name)
        if space is None:
            continue
        if parent.manifest is not None and space is getattr(parent.state, name):
            digests[name] = parent.manifest.spaces[name]
        else:
            data = encoded_space(space)
            digests[name] = digest_of(data)
            blobs.append(data)
    return digests, blobs


def _runs(places: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Places `(segment, row)` as runs `[segment, first, behind the last]`."""
    runs: list[list[int]] = []
    for segment, row in places:
        if runs and runs[-1][0] == segment and runs[-1][2] == row:
            runs[-1][2] += 1
        else:
            runs.append([segment, row, row + 1])
    return runs


def _places(runs: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    return [(segment, row) for segment, start, stop in runs for row in range(start, stop)]
