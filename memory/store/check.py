"""The check of a store: it verifies everything that can be reached, and changes nothing.

It is what `wise store check` runs, and the oracle of the tests: files against their digests, manifests against the
files they name, segments against the rules of a memory, versions against the journal, and every ticket against its
events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from wise.errors import StoreError
from wise.memory.key_space import KeySpace, RelationSpace, Space
from wise.memory.store.backends.base import Backend
from wise.memory.store.edit_request import FOLLOWS, LIVE, QUEUED, TRAINING, Event, Ticket, Version
from wise.memory.store.journal import Journal
from wise.memory.store.segments import StoredSlot, decode_segment, decode_space
from wise.memory.store.versions import Manifest, check_namespaces, check_places, check_slots


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a check found."""

    problems: tuple[str, ...]
    """Empty where the store is whole. Each says what is wrong, and of which versions."""
    tickets: int
    events: int
    versions: int
    """That can be read."""
    blobs: int
    unneeded: int
    """Files that nothing names: interrupted commits leave them, and `gc` removes them."""
    bytes: int


def check(backend: Backend, journal: Journal) -> Findings:
    """See `Store.check`. Raises StoreError only where the journal cannot be read at all."""
    problems = [f"the database says: {fault}" for fault in backend.faults()]
    tickets, events, versions = journal.tickets(), journal.events(), journal.versions()
    by_number = {ticket.number: ticket for ticket in tickets}
    problems += _history_problems(tickets, events, versions)
    reader = _Reader(backend)
    left = [version for version in versions if not version.collected]
    for version in left:
        problems += reader.problems(version, by_number)
    if left:
        live = {ticket.number for ticket in tickets if ticket.status == LIVE}
        if reader.live is not None and reader.live != live:
            problems.append(f"the current version and the journal differ on tickets {sorted(reader.live ^ live)[:8]}")
    sizes = backend.sizes()
    return Findings(
        problems=tuple(problems),
        tickets=len(tickets),
        events=len(events),
        versions=len(left),
        blobs=len(sizes),
        unneeded=len(set(sizes) - reader.named),
        bytes=sum(sizes.values()),
    )


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """What the check of a version needs to know of a segment, which many versions share."""

    ids: tuple[str, ...]
    """Of its edits."""
    tickets: tuple[int, ...]
    """Of its edits."""
    namespaces: tuple[frozenset[str], ...]
    """Of the edits of each slot."""
    problems: tuple[str, ...]

    @classmethod
    def of(cls, slots: Sequence[StoredSlot], tickets: Mapping[int, Ticket]) -> _Segment:
        held = [pair for stored in slots for pair in zip(stored.tickets, stored.edits, strict=True)]
        return cls(
            ids=tuple(edit.id for _, edit in held),
            tickets=tuple(number for number, _ in held),
            namespaces=tuple(frozenset(edit.namespace for edit in stored.edits) for stored in slots),
            problems=tuple(
                f"edit {edit.id!r} is not that of ticket {number}"
                for number, edit in held
                if number not in tickets or tickets[number].edit != edit
            ),
        )


class _Reader:
    """Reads versions, each file once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._found: dict[str, _Segment | Space | str] = {}
        """Digest -> what it holds, or what is wrong with it."""
        self.named: set[str] = set()
        self.live: set[int] | None = None
        """Tickets of the version read last; None where it could not be read."""

    def problems(self, version: Version, tickets: dict[int, Ticket]) -> Iterator[str]:
        """What is wrong with a version."""
        place, self.live = f"version {version.number}", None
        self.named.add(version.manifest)
        try:
            manifest = Manifest.from_bytes(self._backend.get(version.manifest), f"manifest {version.manifest[:16]}")
        except StoreError as error:
            yield f"{place}: {error}"
            return
        self.named |= manifest.blobs
        spaces = {name: self._space(digest) for name, digest in manifest.spaces.items()}
        found = {digest: self._segment(digest, manifest, spaces, tickets) for digest in manifest.segments}
        wrong = [text for text in (*spaces.values(), *found.values()) if isinstance(text, str)]
        yield from (f"{place}: {text}" for text in wrong)
        if wrong:
            return
        segments = {digest: segment for digest, segment in found.items() if isinstance(segment, _Segment)}
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

    def _space(self, digest: str) -> Space | str:
        if digest not in self._found:
            try:
                self._found[digest] = decode_space(self._backend.get(digest), f"space {digest[:16]}")
            except StoreError as error:
                self._found[digest] = str(error)
        found = self._found[digest]
        return f"{digest[:16]} is no space" if isinstance(found, _Segment) else found

    def _segment(
        self,
        digest: str,
        manifest: Manifest,
        spaces: dict[str, Space | str],
        tickets: dict[int, Ticket],
    ) -> _Segment | str:
        if digest not in self._found:
            try:
                slots = decode_segment(self._backend.get(digest), f"segment {digest[:16]}")
                space = spaces.get("key_space")
                check_slots(slots, None if isinstance(space, str) else space, manifest.config, manifest.base)
                self._found[digest] = _Segment.of(slots, tickets)
            except StoreError as error:
                self._found[digest] = str(error)
        found = self._found[digest]
        return f"{digest[:16]} is no segment" if isinstance(found, KeySpace | RelationSpace) else found


def _history_problems(
    tickets: Sequence[Ticket], events: Sequence[Event], versions: Sequence[Version]
) -> Iterator[str]:
    """The tables agree with what happened, in order and without gaps."""
    counted = {
        "ticket": [ticket.number for ticket in tickets],
        "event": [event.number for event in events],
        "version": [version.number for version in versions],
    }
    for name, numbers in counted.items():
        missing = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
        if missing:
            yield f"{name} {', '.join(map(str, missing[:8]))} is missing"
    digest = ""
    for event in events:
        if event.digest != event.linked(digest):
            yield f"event {event.number} is not what was noted, or follows another than was noted"
        digest = event.digest
    for before, after in pairwise(events):
        if after.at < before.at:
            yield f"event {after.number} is dated before event {before.number}"
    lives: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.ticket is not None:
            lives[event.ticket].append(event)
    for ticket in tickets:
        yield from _life_problems(ticket, lives.pop(ticket.number, []))
    yield from (f"event {life[0].number} is of ticket {number}, which is missing" for number, life in lives.items())
    yield from _version_problems(events, versions)


def _life_problems(ticket: Ticket, life: Sequence[Event]) -> Iterator[str]:
    """A ticket is what its events made of it."""
    name = f"ticket {ticket.number}"
    if not life or life[0].kind != QUEUED or life[0].detail.get("content") != ticket.content:
        yield f"{name} is not what was enqueued"
        return
    for before, after in pairwise(life):
        if after.kind not in FOLLOWS.get(before.kind, ()):
            yield f"{name} went from {before.kind} to {after.kind} (event {after.number})"
    for field, wanted in _outcome(life).items():
        if getattr(ticket, field) != wanted:
            yield f"{name}: {field} is {getattr(ticket, field)!r}, and its events say {wanted!r}"


def _outcome(life: Sequence[Event]) -> dict[str, Any]:
    """What the events of a ticket make of its changing fields."""
    outcome: dict[str, Any] = {"status": life[0].kind, "live_in": None, "retired_in": None, "verified": None}
    for before, after in pairwise(life):
        outcome["status"] = after.kind
        if after.kind == LIVE:
            outcome["live_in"] = after.version
        if before.kind == LIVE:
            outcome["retired_in"] = after.version
        if before.kind == TRAINING and after.kind != QUEUED and after.detail:
            outcome["verified"] = after.detail
    return outcome


def _version_problems(events: Sequence[Event], versions: Sequence[Version]) -> Iterator[str]:
    """Versions are those that the events speak of."""
    made = {
        event.version: {**event.detail, "number": event.version, "at": event.at, "author": event.author}
        for event in events
        if event.kind == "version"
    }
    collected = {event.version for event in events if event.kind == "collected"}
    for version in versions:
        expected = made.pop(version.number, {})
        if {**expected, "collected": version.number in collected} != version.to_dict():
            yield f"version {version.number} is not what its events say"
    yield from (f"version {number} is missing" for number in made)
