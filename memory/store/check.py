"""The check of a store: it verifies everything that can be reached, and changes nothing.

It is what `wise store check` runs, and the oracle of the tests: files against their digests, manifests against the
files they name, segments against the rules of a memory, versions against the journal (`check_history`), and the
journal against what was signed or published of it (`anchor`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from wise.edits import Edit
from wise.errors import StoreError
from wise.memory.key_space import Space
from wise.memory.store.anchor import Anchor, anchor_problems
from wise.memory.store.backends.base import Backend
from wise.memory.store.check_history import check_history
from wise.memory.store.checked import NOTHING, Checked
from wise.memory.store.command_queue import damaged_commands
from wise.memory.store.edit_request import ERASED, Version
from wise.memory.store.journal import Journal
from wise.memory.store.segments import decode_segment, decode_space
from wise.memory.store.versions import Manifest, check_namespaces, check_places, check_slots, read_manifest
from wise.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Findings:
    problems: tuple[str, ...]
    """Empty where the store is whole. Each says what is wrong, and of which versions."""
    tickets: int
    events: int
    versions: int
    """That can be read."""
    erased: int
    """Tickets whose text was erased."""
    erased_since: tuple[int, ...]
    """Events of erasures after the anchor, if one was given. They changed rows that the anchor stands for."""
    blobs: int
    unneeded: int
    """Files that nothing names: interrupted commits leave them, and `gc` removes them."""
    bytes: int


def check(
    backend: Backend, *, before: Checked = NOTHING, anchor: Anchor | None = None, progress: Progress = silent
) -> tuple[Findings, Checked]:
    """See `Store.check`; the second is what was found whole, which a later check need not decode again.

    Raises StoreError only where the database cannot be read at all.
    """
    with backend.snapshot() as scan:
        problems = [f"the database says: {fault}" for fault in backend.faults(scan)]
        history = check_history(scan, before, progress)
        problems += history.problems
        problems += [f"command {name:.32} is not what was queued" for name in damaged_commands(scan)]
        erasures: tuple[int, ...] = ()
        if anchor is not None:
            problems += anchor_problems(anchor, scan)
            later = "SELECT number FROM events WHERE kind = ? AND number > ? ORDER BY number"
            erasures = tuple(number for (number,) in scan(later, ERASED, anchor.event))
    reader = _Reader(backend, before.manifests)
    versions = [version for version in history.versions if not version.collected]
    readable: list[Version] = []
    sizes = backend.sizes()
    for place, version in enumerate(versions, start=1):
        progress("versions", place, len(versions))
        version_problems = [*reader.problems(version, current=place == len(versions))]
        if version_problems and _collected(backend, version):
            continue  # meanwhile, so its files may be gone
        problems += version_problems
        readable.append(version)
    if versions and reader.live is not None and reader.live != history.live:
        differing = sorted(reader.live ^ history.live)[:8]
        problems.append(f"the current version and the journal differ on tickets {differing}")
    findings = Findings(
        problems=tuple(problems), tickets=history.tickets, events=history.events, versions=len(readable),
        erased=len(history.erased_tickets), erased_since=erasures,
        blobs=len(sizes), unneeded=len(set(sizes) - reader.named), bytes=sum(sizes.values()),
    )
    return findings, Checked(
        events=tuple(history.event_pages),
        tickets=tuple(history.ticket_pages),
        manifests=frozenset(version.manifest for version in readable),
    )


def _collected(backend: Backend, version: Version) -> bool:
    """Whether the journal says by now that a version can no longer be read; it does before any file is removed."""
    with backend.reading() as execute:
        return bool(execute("SELECT number FROM versions WHERE number = ? AND collected = 1", version.number))


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """What the check of a version needs to know of a segment, which many versions share."""

    ids: list[str]
    """Of its edits."""
    tickets: list[int]
    """Of its edits."""
    namespaces: list[set[str]]
    """Of the edits of each slot."""
    problems: list[str]


class _Reader:
    """Reads versions, each file once."""

    def __init__(self, backend: Backend, verified_before: Collection[str]) -> None:
        """verified_before: manifests of versions that an earlier check verified."""
        self._backend, self._journal, self._verified_before = backend, Journal(backend), verified_before
        self._contents: dict[tuple[str, str], Any] = {}
        """Kind and digest of a file -> what it holds, or a text that says what is wrong with it."""
        self.named: set[str] = set()
        self.live: set[int] | None = None
        """Tickets of the version read last; None where it could not be read."""

    def problems(self, version: Version, *, current: bool) -> Iterator[str]:
        """Of a version that was verified before, the bytes are read; of the current one, all is verified."""
        place, self.live = f"version {version.number}", None
        self.named.add(version.manifest)
        try:
            manifest = read_manifest(self._backend, version.manifest)
        except StoreError as error:
            yield f"{place}: {error}"
            return
        self.named |= manifest.blobs
        if version.manifest in self._verified_before and not current:
            problems = [self._look("file", digest, lambda data, place: None) for digest in sorted(manifest.blobs)]
            yield from (f"{place}: {text}" for text in problems if text is not None)
            return
        space = self._look("space", manifest.space, decode_space) if manifest.space else None
        decode = partial(self._segment, manifest, space)
        segments = {digest: self._look("segment", digest, decode) for digest in manifest.segments}
        wrong = [text for text in (space, *segments.values()) if isinstance(text, str)]
        yield from (f"{place}: {text}" for text in wrong)
        if wrong:
            return
        sizes = {digest: len(segment.namespaces) for digest, segment in segments.items()}
        try:
            check_places(manifest, sizes, {digest: segment.ids for digest, segment in segments.items()}, place)
            check_namespaces(manifest.config, (names for one in segments.values() for names in one.namespaces), place)
        except StoreError as error:
            yield str(error)
            return
        self.live = set().union(*(segment.tickets for segment in segments.values()))
        count = sum(len(segment.ids) for segment in segments.values())
        if count != version.edits:
            yield f"{place}: holds {count} edits, and the journal says {version.edits}"
        yield from (f"{place}: {text}" for segment in segments.values() for text in segment.problems)

    def _look(self, kind: str, digest: str, decode: Callable[[bytes, str], Any]) -> Any:
        if (kind, digest) not in self._contents:
            try:
                self._contents[kind, digest] = decode(self._backend.get(digest), f"{kind} {digest[:16]}")
            except StoreError as error:
                self._contents[kind, digest] = str(error)
        return self._contents[kind, digest]

    def _segment(self, manifest: Manifest, space: Space | str | None, data: bytes, place: str) -> _Segment:
        slots = decode_segment(data, place)
        check_slots(slots, None if isinstance(space, str) else space, manifest.config, manifest.base)
        held = {number: edit for stored in slots for number, edit in zip(stored.tickets, stored.edits, strict=True)}
        asked_for = self._edits([*held])
        wrong = [(number, edit) for number, edit in held.items() if asked_for.get(number) != edit]
        return _Segment(
            ids=[edit.id for edit in held.values()],
            tickets=[*held],
            namespaces=[{edit.namespace for edit in stored.edits} for stored in slots],
            problems=[f"edit {edit.id!r} is not that of ticket {number}" for number, edit in wrong],
        )

    def _edits(self, numbers: Sequence[int]) -> dict[int, Edit]:
        """The edits of these tickets, but for those that are missing."""
        try:
            return {ticket.number: ticket.edit for ticket in self._journal.tickets(numbers=numbers)}
        except StoreError:  # one is missing
            alone = [self._edits([number]) for number in numbers] if len(numbers) > 1 else []
            return {number: edit for found in alone for number, edit in found.items()}
