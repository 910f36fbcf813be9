"""Erasure: the text and the tensors of edits leave every file of a store; that they were there and were erased stays.

What goes: all that a ticket's row and events say in words, its key, the reasons of the versions in which it went live
or was retired, whatever else in the journal repeats a text of it, the versions that held it with their segments, and
what SQLite keeps of deleted rows. What stays: its id, namespace and dates, its events, and the digests of what was
erased.

The events stay a chain. A changed event keeps its digest, and the event of the erasure, which is chained as any other,
says which digest the changed event has by now: see `check_history`. Whoever can write a store could forge an erasure in
this way, so the check of an anchor names the erasures since then.

An erasure can be repeated: a process that was killed in one is followed by another that completes it. It reaches this
store alone: backups, exported packs and file system snapshots from before are not changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from wise.edits import texts_of
from wise.errors import ConflictError, EditError, StoreError, checked_text, did_you_mean
from wise.memory.store.backends.base import Backend, Execute
from wise.memory.store.edit_request import (
    ERASED,
    ERASED_TEXT,
    FAILED,
    LIVE,
    QUEUED,
    UNDER_WAY,
    Event,
    Ticket,
    Version,
    without_text,
)
from wise.memory.store.journal import Journal, erased_key
from wise.memory.store.rows import EVENT, TICKET, event_of, update
from wise.memory.store.segments import decode_segment
from wise.memory.store.versions import read_manifest

WORD = 4
"""Letters from which a text is looked for within words too; a shorter one of them is looked for as a word."""
_GONE: Mapping[str, Any] = {"erased": True}


@dataclass(frozen=True, kw_only=True)
class Erasure:
    tickets: tuple[int, ...]
    """Whose text was erased now."""
    versions: tuple[int, ...]
    """That held one of the edits, and can no longer be read or rolled back to."""
    blobs: int
    """Files removed."""
    left: Mapping[str, tuple[str, ...]]
    """Fields of the erased edits whose text other edits say too, and the ids of some of these: they keep it."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def erase(
    backend: Backend, journal: Journal, edit_ids: Sequence[str], *, author: str | None, reason: str | None,
    with_author: bool = False
) -> Erasure:
    reason = None if reason is None else checked_text("reason", reason)
    tickets = _tickets(journal, edit_ids)
    fresh = [ticket for ticket in tickets if not ticket.erased]
    words = _Words(fresh, reason)
    versions = [version for version in journal.versions() if not version.collected]
    holding, needed = _holding(backend, versions, {ticket.number for ticket in tickets})
    with ExitStack() as locks:
        for version in {version.manifest: version for version in holding}.values():  # which versions may share
            if not locks.enter_context(backend.unheld(version.manifest)):
                raise StoreError(f"version {version.number} holds such an edit and is being read; end that reader")
        with journal.writing() as (execute, events):
            kept_texts = words.keep_those_of_others(execute)
            events.collect(holding)
            if fresh:
                digests = _erase_events(execute, {ticket.number for ticket in fresh}, words, with_author)
                _erase_outcomes(execute, words)
            for ticket in fresh:
                content = _erase_ticket(execute, ticket)
                detail = {"reason": reason, "content": content, "events": digests}
                events.write(ERASED, ticket=ticket.number, author=author, detail=detail)
        unneeded = sorted(set(backend.sizes()) - needed)
        backend.remove(unneeded)
    backend.scrub()
    return Erasure(
        tickets=tuple(ticket.number for ticket in fresh),
        versions=tuple(version.number for version in holding),
        blobs=len(unneeded),
        left=kept_texts,
    )


def _tickets(journal: Journal, edit_ids: Sequence[str]) -> list[Ticket]:
    """All that were ever enqueued under these ids. Raises StoreError where there is none, ConflictError where one is
    under way."""
    tickets: list[Ticket] = []
    for edit_id in dict.fromkeys(edit_ids):
        edit_tickets = journal.tickets(edit_id=edit_id)
        if not edit_tickets:
            journal_ids = {ticket.edit.id for ticket in journal.tickets(limit=1000)}
            hint = did_you_mean(edit_id, journal_ids) if journal_ids else "there are none"
            raise StoreError(f"there is no edit {edit_id!r}; {hint}")
        for ticket in edit_tickets:
            if ticket.problem:
                raise StoreError(ticket.problem)
            if ticket.status in UNDER_WAY:
                raise ConflictError(
                    f"edit {edit_id!r} is {ticket.status} and stays; delete it first (`wise store delete`, or through "
                    "the service), then erase it"
                )
        tickets += edit_tickets
    if not tickets:
        raise StoreError("no edit was named: give the id of at least one")
    return tickets


def _holding(backend: Backend, versions: Sequence[Version], tickets: Collection[int]) -> tuple[list[Version], set[str]]:
    """The versions that hold one of these tickets, and the files that the others need."""
    holding: list[Version] = []
    needed: set[str] = set()
    holds: dict[str, bool] = {}
    for version in versions:
        manifest = read_manifest(backend, version.manifest)
        for digest in manifest.segments.keys() - holds.keys():
            slots = decode_segment(backend.get(digest), f"{backend.place}: {digest[:16]}")
            holds[digest] = any(number in tickets for stored in slots for number in stored.tickets)
        if any(holds[digest] for digest in manifest.segments):
            holding.append(version)
        else:
            needed |= {version.manifest, *manifest.blobs}
    return holding, needed


def _erase_outcomes(execute: Execute, words: _Words) -> None:
    """Takes the words out of what was verified of other edits, and removes commands that say them."""
    for number, text in execute("SELECT number, verified FROM tickets WHERE verified IS NOT NULL"):
        if words.said_in(text):
            update(execute, "tickets", number, verified=json.dumps(words.redacted(json.loads(text))))
    for command, *texts in execute("SELECT id, arguments, answer FROM commands"):
        if any(text and words.said_in(text) for text in texts):
            execute("DELETE FROM commands WHERE id = ?", command)


def _erase_ticket(execute: Execute, ticket: Ticket) -> str:
    """Takes all text out of a ticket's row; the digest of the content that it has by now."""
    key = None if ticket.key is None else erased_key(ticket.key)
    gone = _GONE if ticket.verified else None
    new = replace(ticket, edit=without_text(ticket.edit), reason=None, key=key, verified=gone)
    update(
        execute, "tickets", ticket.number, edit=json.dumps(new.edit.to_dict()), reason=None, key=key,
        verified=None if gone is None else json.dumps(gone),
    )
    return new.content


def _erase_events(execute: Execute, tickets: Collection[int], words: _Words, with_author: bool) -> dict[str, str]:
    """Takes the text out of all events that say it, and of their versions; the digests that they have by now."""
    own_versions = {
        version
        for number in tickets
        for (version,) in execute("SELECT version FROM events WHERE ticket = ? AND version IS NOT NULL", number)
    }
    digests = {}
    before = ""
    for row in execute(f"SELECT {EVENT} ORDER BY number"):
        stored, is_erased = str(row[-1]), row[3] in tickets or (row[2] == "version" and row[4] in own_versions)
        if is_erased or words.said_in(str(row[6])):
            event = event_of(row)
            new = _without_words(event, is_erased, words, with_author)
            if new != event:
                detail = json.dumps(new.detail, sort_keys=True)
                update(execute, "events", event.number, author=new.author, detail=detail)
                digests[str(event.number)] = new.linked(before)
                if event.kind == "version" and event.version is not None:
                    update(execute, "versions", event.version, author=new.author, reason=new.detail.get("reason"))
        before = stored
    return digests


def _without_words(event: Event, is_erased: bool, words: _Words, with_author: bool) -> Event:
    detail = event.detail
    if event.kind in ("version", ERASED):  # the rest is numbers and digests
        reason = ERASED_TEXT if is_erased and event.kind == "version" and detail.get("reason") else detail.get("reason")
        detail = {**detail, "reason": words.redacted(reason)}
    elif event.kind in (LIVE, FAILED, QUEUED) and detail and "content" not in detail:
        detail = _GONE if is_erased else {name: words.redacted(value) for name, value in detail.items()}
    author = ERASED_TEXT if is_erased and with_author and event.author else event.author
    return replace(event, detail=detail, author=author)


class _Words:
    """The texts that are to be found nowhere any more."""

    def __init__(self, tickets: Sequence[Ticket], reason: str | None) -> None:
        """reason: why they are erased. Raises EditError where it repeats them, since it stays."""
        self._erased_numbers = {ticket.number for ticket in tickets}
        self._texts = {text: name for ticket in tickets for name, text in _fields(ticket)}
        self._finders: dict[bool, Callable[[str], object]] = {}
        if reason is not None and self.said_in(json.dumps(reason)):
            raise EditError("field 'reason': it repeats text that is to be erased, and is kept; word it otherwise")

    def keep_those_of_others(self, execute: Execute) -> dict[str, tuple[str, ...]]:
        """Looks no longer for texts that other edits say too. Returns their fields and those edits."""
        kept_texts: dict[str, list[str]] = {}
        spelled = {json.dumps(text)[1:-1]: (text, name) for text, name in self._texts.items()}
        for row in execute(f"SELECT {TICKET}"):
            if row[0] in self._erased_numbers:
                continue
            row_text = f"{row[3]} {json.dumps([row[4], row[7]])}"
            for spelling, (text, name) in spelled.items():
                if spelling in row_text:
                    kept_texts.setdefault(name, []).append(str(row[1]))
                    self._texts.pop(text, None)
        self._finders.clear()
        return {name: tuple(dict.fromkeys(ids))[:8] for name, ids in kept_texts.items()}

    def said_in(self, text: str) -> bool:
        """Whether JSON text repeats one of them."""
        return bool(self._texts) and bool(self._find(spelled=True)(text) or self._find(spelled=False)(text))

    def redacted(self, value: Any) -> Any:
        """A JSON value without them: a text, or a name, that repeats one is replaced as a whole."""
        if isinstance(value, str):
            return ERASED_TEXT if self._texts and self._find(spelled=False)(value) else value
        if isinstance(value, Mapping):
            return {self.redacted(name): self.redacted(item) for name, item in value.items()}
        return [self.redacted(item) for item in value] if isinstance(value, list) else value

    def _find(self, *, spelled: bool) -> Callable[[str], object]:
        """spelled: as JSON spells them."""
        if spelled not in self._finders:
            patterns = []
            for text in self._texts:
                wanted = re.escape(json.dumps(text)[1:-1] if spelled else text)
                patterns.append(wanted if len(text) >= WORD or not text.isascii() else rf"(?<!\w){wanted}(?!\w)")
            self._finders[spelled] = re.compile("|".join(patterns)).search
        return self._finders[spelled]


def _fields(ticket: Ticket) -> Iterable[tuple[str, str]]:
    yield from ((name.partition("[")[0], text) for name, text in texts_of(ticket.edit))
    texts = (("subject", ticket.edit.subject), ("reason", ticket.reason), ("key", ticket.key))
    yield from ((name, text) for name, text in texts if text is not None)
