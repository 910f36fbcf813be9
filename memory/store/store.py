"""The durable store of edits: they are enqueued, trained, committed as versions, read, rolled back and audited.

    store = Store.open("corrections")              # a folder, or postgresql://...
    store.enqueue([edit])                          # durable from here on
    batch = store.claim()                          # queued -> training
    report = model.edit([ticket.edit for ticket in batch])
    store.commit(batch, model.state, parent=0, config=..., base=..., outcomes=...)   # training -> live | failed

A commit first makes each new part durable (`wise.memory.store.versions`) and then makes the version current in one
transaction of the journal, which also moves the tickets. So whenever the process dies, the store is at the version
before or at the version after, and every enqueued edit is there. Training that was interrupted is queued again when the
writer opens the store.

One process is the writer. Any others may read, pin versions and enqueue edits. A pinned version is not collected; a
snapshot that was read is in memory and does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from threading import RLock
from typing import Any, Self

from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ConflictError, EditError, MissingError, StoreError, checked_text
from wise.memory.fingerprint import Fingerprint
from wise.memory.state import MemoryState
from wise.memory.store.anchor import Anchor, head
from wise.memory.store.backends.base import Backend, closed_on_error
from wise.memory.store.backends.postgres import PostgresBackend
from wise.memory.store.backends.sqlite import SqliteBackend
from wise.memory.store.backup import copy_store
from wise.memory.store.changes import Forget, changeset, check_edits, same_slots, without
from wise.memory.store.check import Findings, check
from wise.memory.store.checked import FILE, NOTHING, read_checked, write_checked
from wise.memory.store.command_queue import CommandQueue
from wise.memory.store.edit_request import (
    EXPIRED,
    FAILED,
    LIVE,
    QUEUED,
    RETIRED,
    TRAINING,
    EditRequest,
    Event,
    Ticket,
    Version,
)
from wise.memory.store.erase import Erasure, erase
from wise.memory.store.gc import GcReport, collect
from wise.memory.store.journal import Journal, Move
from wise.memory.store.pack import merged, read_pack, write_pack
from wise.memory.store.versions import Difference, Snapshot, difference, read
from wise.progress import Progress, silent

EDITS_AT_ONCE = 64
KEPT_VERSIONS = 100
"""Versions that `gc` keeps by default."""
ENDED = "the process that trained it ended"
"""Why a ticket was queued again that was in training when a writer ended without a word."""


class Store:
    """Edits, durable and versioned. `Store.open` makes one; every method may be called from any thread."""

    def __init__(self, backend: Backend, cut_off: str = ENDED) -> None:
        self.backend = backend
        self.journal = Journal(backend)
        self.commands = CommandQueue(backend)
        self._latest = Snapshot(version=0)
        self._writing = RLock()
        if backend.writer:
            with closed_on_error(backend):
                interrupted = [ticket for ticket in self.journal.tickets(status=TRAINING) if not ticket.problem]
                if interrupted:
                    self.requeue(interrupted, why=cut_off)

    @classmethod
    def open(
        cls, place: str | PathLike[str], *, writer: bool = True, create: bool = True, cut_off: str = ENDED
    ) -> Self:
        """Opens the store in a folder, or at a `postgresql://` URL.

        writer: be the one process that trains, commits and collects. Others may read and enqueue edits.
        create: whether the writer makes a store where there is none.
        cut_off: why what is in training now is queued again.

        Raises MissingError where there is no store and none is made, StoreError where another process is the writer, or
        what is there is no store of ours that this release reads.
        """
        text = fspath(place)
        if text.startswith(("postgresql://", "postgres://")):
            return cls(PostgresBackend(text, writer=writer, create=create), cut_off)
        return cls(SqliteBackend(Path(text).absolute(), writer=writer, create=create), cut_off)

    def close(self) -> None:
        """Releases its locks; what was enqueued or committed is durable without it."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- edits come in ----------------------------------------------------------------------------

    def enqueue(self, requests: Sequence[Edit | EditRequest], *, key: str | None = None) -> tuple[Ticket, ...]:
        """Queues edits durably: when this returns, they survive the end of the process and a power cut.

        key: names the call, so that repeating it after a lost answer returns the same tickets and queues nothing twice.

        Raises EditError, with nothing queued, for an edit that is under way already or a key used for others.
        """
        wanted = [item if isinstance(item, EditRequest) else EditRequest(edit=item) for item in requests]
        if not wanted:
            raise EditError("enqueue() was given no edits: expected at least one")
        return self.journal.enqueue(wanted, None if key is None else checked_text("key", key))

    def claim(self, limit: int = EDITS_AT_ONCE) -> tuple[Ticket, ...]:
        """The oldest queued tickets that are due, now in training. Queued ones whose time is over are retired; what was
        retired so is queued again if by the present time it is valid, or will be."""
        with self._changing():
            return self.journal.claim(limit)

    def expired(self) -> tuple[Ticket, ...]:
        """Live tickets that are not valid at present; `delete` with `expired=True` ends them."""
        return self.journal.expired()

    def requeue(self, tickets: Sequence[Ticket], *, why: str) -> None:
        """Queues tickets again that are in training."""
        self._check_writer()
        self.journal.move([Move(ticket.number, QUEUED, {"why": why}) for ticket in tickets])

    def fail(self, tickets: Sequence[Ticket], *, detail: Mapping[str, Any]) -> None:
        """Marks tickets that are in training as failed."""
        self._check_writer()
        self.journal.move([Move(ticket.number, FAILED, detail) for ticket in tickets])

    # -- versions ---------------------------------------------------------------------------------

    def commit(
        self, tickets: Sequence[Ticket], state: MemoryState, *, parent: int, config: WiseConfig, base: Fingerprint,
        outcomes: Mapping[str, Mapping[str, Any]] | None = None, author: str | None = None, reason: str | None = None,
        kind: str = "commit"
    ) -> Version:
        """Makes `state` the current version: `tickets`, all in training, go live where it holds them, or else fail.

        parent: the version that `state` was made from. Its edits that `state` does not hold are retired.
        tickets: each still in training; one that was deleted meanwhile is refused.
        outcomes: by edit id, what was verified, as JSON values.

        Where nothing but failures came of it there is no new version. Raises StoreError, with the tickets still in
        training, where another version came after `parent`, the state does not follow from it and these tickets, or
        the disk does not take it.
        """
        with self._changing():
            before = self.read()
            if before.version != parent:
                raise StoreError(f"version {before.version} came after {parent}: read it, edit it again, then commit")
            mine = {ticket.edit.id: ticket for ticket in tickets}
            present = self.journal.tickets(numbers=[ticket.number for ticket in tickets])
            still_training = {ticket.number for ticket in present if ticket.status == TRAINING}
            for edit_id, ticket in mine.items():
                if ticket.number not in still_training:
                    raise StoreError(f"edit {edit_id!r} is not in training any more; train the others without it")
            check_edits(state, before, mine)
            numbers = {**before.tickets, **{i: ticket.number for i, ticket in mine.items()}}
            new, blobs = changeset(before, state, numbers, config=config, base=base)
            live, verified = new.tickets.keys(), outcomes or {}
            moves = [Move(t.number, LIVE if i in live else FAILED, verified.get(i, {})) for i, t in mine.items()]
            moves += [Move(number, RETIRED) for i, number in before.tickets.items() if i not in live]
            if same_slots(before.manifest, new.manifest):
                self.journal.move(moves, author=author)
                return self.journal.version()
            return self._put(new, blobs, moves, kind=kind, author=author, reason=reason)

    def delete(
        self, edit_ids: Sequence[str], *, forget: Forget | None = None, author: str | None = None,
        reason: str | None = None, expired: bool = False
    ) -> Version:
        """Retires edits: live ones are not in the new version, nor any trace of them; the others never go live.

        One that is in training is withdrawn: `commit` refuses a state with it.

        forget: what leaves no trace where edits share slots (`merge`, `retrieve`), as `wise.namespaces.forgotten`; it
        is called only there. Live edits that it does not keep are retired as lost.
        expired: it is because of their validity; they are queued again if the clock turns out to have been wrong.

        Raises ConflictError, with nothing changed, for an edit that is neither live nor under way, StoreError where
        `forget` is needed and not given.
        """
        with self._changing():
            parent = self.read()
            why = EXPIRED if expired else {"why": "deleted"}
            moves = [Move(self._under_way(i, parent), RETIRED, why) for i in dict.fromkeys(edit_ids)]
            live = [edit_id for edit_id in edit_ids if edit_id in parent.tickets]
            if not live:
                self.journal.move(moves, author=author)
                return self.journal.version()
            state = without(parent, live, forget)
            kept = {*state.edit_ids, *live}
            moves += [Move(n, RETIRED, {"why": "lost"}) for i, n in parent.tickets.items() if i not in kept]
            return self._put(*self._live_before(parent, state), moves, kind="delete", author=author, reason=reason)

    def rollback(self, version: int, *, author: str | None = None, reason: str | None = None) -> Version:
        """Makes the memory of an earlier version current again, bit for bit, as a new version.

        Raises StoreError, with nothing changed, where it was collected or is damaged, ConflictError where there is
        nothing to roll back or an edit that would come back is under way anew.
        """
        with self._changing():
            current = self.journal.version()
            target = self.read(version)
            if version == 0 and current.number:
                target, _ = self._live_before(self.read(), MemoryState())
            if target.manifest is None:
                raise ConflictError("nothing was committed yet, so there is nothing to roll back")
            live = {ticket.number for ticket in self.journal.tickets(status=LIVE)}  # the current one may be damaged
            wanted = set(target.tickets.values())
            moves = [Move(number, RETIRED) for number in sorted(live - wanted)]
            moves += [Move(number, LIVE) for number in sorted(wanted - live)]
            new, why = replace(target, version=current.number + 1), reason or f"back to version {version}"
            return self._put(new, [target.manifest.to_bytes()], moves, kind="rollback", author=author, reason=why)

    def read(self, version: int | None = None) -> Snapshot:
        """The memory as it is in `version`, or in the current one; verified.

        Raises StoreError where the version was collected, or a file of it is missing or damaged.
        """
        with self.pin(version) as snapshot:
            return snapshot

    @contextmanager
    def pin(self, version: int | None = None) -> Iterator[Snapshot]:
        """The same, and the version is not collected for the length of the block, by any process."""
        version_row, snapshot = self._hold(version), self._latest
        if version_row.number == 0:
            yield Snapshot(version=0)
            return
        try:
            if version_row.number != snapshot.version:
                snapshot = read(version_row.number, version_row.manifest, self.backend, snapshot.segments)
                if version_row.number > self._latest.version:
                    self._latest = snapshot
            yield snapshot
        finally:
            self.backend.release(version_row.manifest)

    def _hold(self, number: int | None) -> Version:
        """A version that is not collected until it is released; version 0 needs no hold."""
        version_row = self.journal.version(number)
        if version_row.collected:
            raise StoreError(
                f"version {version_row.number} was collected, by gc or because it held an edit that was erased; "
                "`wise store log` names the others"
            )
        try:
            if version_row.number:
                self.backend.hold(version_row.manifest)
        except StoreError:
            if self.journal.version(number) == version_row:
                raise
            return self._hold(number)  # what was current was collected just now
        return version_row

    def diff(self, before: int, after: int) -> Difference:
        """What turns version `before` into version `after`."""
        return difference(self.read(before), self.read(after))

    def gc(self, *, keep: int = KEPT_VERSIONS) -> GcReport:
        """Collects all but the newest `keep` versions, and removes every file that no version left needs.

        Pinned versions stay. The journal keeps all that it says of the others. Raises StoreError, with nothing
        removed, where a manifest that stays is damaged, since what it needs is unknown then.
        """
        with self._changing():
            return collect(self.backend, self.journal, keep)

    def check(
        self, *, checked: Path | None = None, anchor: Anchor | None = None, progress: Progress = silent
    ) -> Findings:
        """Verifies all that can be reached: files, references, states, and the journal; changes nothing of them.

        checked: a file of what earlier checks found whole, which is brought up to date: all bytes are read again, and
        what did not change since is not taken apart again (`wise.memory.store.checked`). Left out, all of it is.
        anchor: a head that the history must go on from.
        progress: called with what is checked, how much of it is done, and of how much.
        """
        before = NOTHING if checked is None else read_checked(checked)
        findings, whole = check(self.backend, before=before, anchor=anchor, progress=progress)
        if checked is not None and not findings.problems and whole != before:
            with suppress(OSError):  # the disk may be read-only, and then the next check takes longer
                write_checked(checked, whole)
        return findings

    def erase(
        self, edit_ids: Sequence[str], *, author: str | None = None, reason: str | None = None,
        with_author: bool = False
    ) -> Erasure:
        """Takes the text and the tensors of edits out of every file: see `wise.memory.store.erase`.

        Their ids, dates and digests stay, and that they were erased, by whom and why. Versions that held one of them
        can no longer be read or rolled back to. It may be called again, and then completes what was interrupted.

        with_author: erase who asked for them too.

        Raises ConflictError, with nothing changed, for an edit that is queued, in training or live (delete it first),
        StoreError for one that is not there, or where a version that holds one is being read, EditError for a reason
        that repeats the text.
        """
        with self._changing():
            return erase(self.backend, self.journal, edit_ids, author=author, reason=reason, with_author=with_author)

    def backup(self, target: str | PathLike[str], *, progress: Progress = silent) -> Findings:
        """Copies the store into a new folder while it may be written: see `wise.memory.store.backup.copy_store`."""
        return copy_store(self.backend, Path(target), progress)

    @property
    def checked_file(self) -> Path | None:
        """Where a store in a folder keeps what checks found whole."""
        return Path(self.backend.place) / FILE if isinstance(self.backend, SqliteBackend) else None

    def anchor(self) -> Anchor:
        """The head of the history as it is now: see `wise.memory.store.anchor`."""
        return head(self.backend)

    def log(self, *, since: int = 0, limit: int | None = None) -> tuple[Event, ...]:
        """What happened after event `since`."""
        return self.journal.events(since=since, limit=limit)

    # -- packs --------------------------------------------------------------------------------------

    def export_pack(
        self, folder: str | PathLike[str], *, version: int | None = None, namespace: str | None = None
    ) -> int:
        """Writes a version as a folder that `import_pack` and `WiseModel.from_pretrained` read: see `write_pack`."""
        with self.pin(version) as snapshot:
            tickets = self.journal.tickets(numbers=list(snapshot.tickets.values()))
            for ticket in tickets:
                if ticket.problem:
                    raise StoreError(ticket.problem)
            return write_pack(Path(folder), snapshot, tickets, namespace)

    def import_pack(
        self, folder: str | PathLike[str], *, author: str | None = None, reason: str | None = None
    ) -> Version:
        """Takes in the edits of a pack as they are, trained, as one new version: see `merged`.

        Each gets a ticket. Where the process ends halfway, they are queued, and the same call completes it.

        Raises StoreError or EditError, with nothing served, where the pack does not fit or an edit is under way.
        """
        with self._changing():
            pack = read_pack(Path(folder))
            for edit in pack.state.edits:
                if any(ticket.erased for ticket in self.journal.tickets(edit_id=edit.id)):
                    raise StoreError(f"edit {edit.id!r} of the pack was erased here; export the pack anew without it")
            current = self.read()
            state = merged(current, pack)
            tickets = self.journal.enqueue(pack.requests, f"pack {pack.digest}")
            done = {ticket.status for ticket in tickets} - {QUEUED, TRAINING}
            if done:
                raise StoreError(f"the pack was imported before, and its edits are {', '.join(sorted(done))} by now")
            self.journal.move([Move(t.number, TRAINING) for t in tickets if t.status == QUEUED])
            return self.commit(
                tickets, state, parent=current.version, config=pack.config, base=pack.base, outcomes=pack.verified,
                author=author, reason=reason or f"pack {pack.digest[:16]}", kind="import",
            )

    # -- within -----------------------------------------------------------------------------------

    def _put(self, new: Snapshot, blobs: Sequence[bytes], moves: Sequence[Move], **event: Any) -> Version:
        """Stores a version, its manifest last, then makes it current. event: its kind, author and reason."""
        for data in blobs:
            digest = self.backend.put(data)
        version = self.journal.add_version(
            manifest=digest, parent=new.version - 1, edits=len(new.state.edits), moves=moves, **event
        )
        self._latest = new
        return version

    def _live_before(self, parent: Snapshot, state: MemoryState) -> tuple[Snapshot, list[bytes]]:
        """The version after `parent` with a state of edits that were live in it."""
        if parent.config is None or parent.base is None:
            raise StoreError("nothing was committed yet: commit a version first")
        return changeset(parent, state, parent.tickets, config=parent.config, base=parent.base)

    def _under_way(self, edit_id: str, current: Snapshot) -> int:
        """The ticket of an edit that is live, queued or in training. Raises ConflictError where there is none."""
        if edit_id in current.tickets:
            return current.tickets[edit_id]
        for ticket in self.journal.tickets(edit_id=edit_id, status=(QUEUED, TRAINING)):
            return ticket.number
        raise ConflictError(f"edit {edit_id!r} is neither live nor queued nor in training; see `wise store log`")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change of what is served at a time."""
        self._check_writer()
        with self._writing:
            yield

    def _check_writer(self) -> None:
        if not self.backend.writer:
            raise StoreError(f"{self.backend.place} was opened with writer=False; open it as its writer to change it")


def open_reader(place: str) -> Store:
    """The store, opened to read and to queue edits; created if there is none. Raises StoreError."""
    with suppress(MissingError):
        return Store.open(place, writer=False)
    try:
        Store.open(place).close()
    except StoreError as error:  # maybe another process was making it
        with suppress(MissingError):
            return Store.open(place, writer=False)
        raise error from None
    return Store.open(place, writer=False)
