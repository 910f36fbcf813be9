"""A version: which slots, in which order, make up one state of the memory.

A manifest is a small JSON text: settings, base, segments, runs of slots in them, and the digest of the key space. It
and all that it names are stored under the SHA-256 of their bytes, so one digest stands for the whole version. Every
slot of every segment of a version is live in it, so nothing of a deleted edit is in the files of a later version.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ArtifactError, ConfigError, RefusedError, StoreError
from wise.memory.artifact import check_state, check_tensors
from wise.memory.fingerprint import Fingerprint
from wise.memory.key_space import Space
from wise.memory.runs import Run, cover, joined
from wise.memory.segment import Row, decoded, decoded_space, state_of
from wise.memory.state import MemoryState

FORMAT = "wise-version"
SCHEMA_VERSION = 1

@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a version is made of."""

    config: WiseConfig
    base: Fingerprint
    segments: Mapping[str, tuple[int, int]]
    """Digest -> slots and bytes, in the order in which they were written."""
    slots: tuple[Run[str], ...]
    """Where each slot stands: segment and rows."""
    order: tuple[Run[int], ...]
    """The edits in the order in which they came: places in the list of edits, slot by slot. The key is 0."""
    spaces: Mapping[str, str]
    """`key_space`, where there is one: its digest."""

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
            "slots": [(numbers[segment], *rows) for segment, *rows in self.slots],
            "order": self.order,
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
                slots=tuple(joined((digests[i], int(first), int(behind)) for i, first, behind in told["slots"])),
                order=tuple(joined((int(key), int(first), int(behind)) for key, first, behind in told["order"])),
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

    @cached_property
    def edits(self) -> Mapping[str, Edit]:
        """By id."""
        return {edit.id: edit for edit in self.state.edits}


def read(
    version: int, digest: str, get: Callable[[str], bytes], place: str, known: Mapping[str, Sequence[Row]]
) -> Snapshot:
    """The version whose manifest has this digest; segments that are `known` are not read again.

    Raises StoreError where anything it names is missing, damaged or does not fit together.
    """
    manifest = Manifest.from_bytes(get(digest), f"{place}: {digest[:16]}")
    rows = {d: known[d] if d in known else decoded(get(d), f"{place}: {d[:16]}") for d in manifest.segments}
    spaces = {name: decoded_space(get(d), f"{place}: {d[:16]}") for name, d in manifest.spaces.items()}
    key_space = spaces.get("key_space")
    for segment, found in rows.items():
        if segment not in known:
            check_rows(found, key_space, manifest.config, manifest.base)
    placed = placed_rows(manifest, rows, f"{place}: version {version}")
    edits = [edit for row in placed for edit in row.edits]
    return Snapshot(
        version=version,
        state=state_of(placed, [e.id for _, start, stop in manifest.order for e in edits[start:stop]], key_space),
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
    ids = {digest: [edit.id for row in found for edit in row.edits] for digest, found in rows.items()}
    check_places(manifest, {digest: len(found) for digest, found in rows.items()}, ids, place)
    placed = [row for digest, start, stop in manifest.slots for row in rows[digest][start:stop]]
    check_namespaces(manifest.config, ({edit.namespace for edit in row.edits} for row in placed), place)
    return placed


def check_places(
    manifest: Manifest, rows: Mapping[str, int], ids: Mapping[str, Collection[str]], place: str
) -> None:
    """A version holds every row of its segments once, and every edit, in some order.

    rows, ids: of each segment, how many it holds, and the ids of their edits. Raises StoreError.
    """
    if rows != {digest: count for digest, (count, _) in manifest.segments.items()} or not cover(manifest.slots, rows):
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


def check_rows(rows: Sequence[Row], key_space: Space | None, config: WiseConfig, base: Fingerprint) -> None:
    """New rows are sound, as a saved memory must be; a merged one by itself. Raises RefusedError."""
    if not rows:
        return
    if config.mode == "merge" and len(rows) > 1:
        for row in rows:
            check_rows([row], key_space, config, base)
        return
    state = state_of(rows, [edit.id for row in rows for edit in row.edits], key_space)
    tensors = {f"slot {row.slot.id} {name}": t for row in rows for name, t in row.slot.tensors().items()}
    try:
        check_tensors(tensors | {f"keys of edit {i}": keys for i, keys in state.keys.items()})
        check_state(config, state, base)
    except ArtifactError as error:
        raise RefusedError(f"the version is refused: {error}") from error
