"""The records of a journal: edit requests, their tickets, the events of a ticket's life, and versions of the memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from wise.edits import Edit
from wise.errors import EditError, checked_text, given
from wise.memory.artifact import digest_of_json

QUEUED, TRAINING, LIVE, FAILED, RETIRED = "queued", "training", "live", "failed", "retired"
UNDER_WAY = (QUEUED, TRAINING, LIVE)
"""At most one ticket of an edit id has one of these."""
FOLLOWS: Mapping[str, tuple[str, ...]] = {
    QUEUED: (TRAINING, RETIRED),
    TRAINING: (LIVE, FAILED, QUEUED, RETIRED),
    LIVE: (RETIRED,),
    FAILED: (),
    RETIRED: (LIVE, QUEUED),
}
"""Which status may follow which. Interrupted training is queued again; what is withdrawn is retired. A rollback brings
back what was retired; what was retired because its time was over is queued again if the clock says later that it is
not."""
CLOCK = "clock"
"""The kind of an event that says only that the clock was set."""
ERASED = "erased"
"""The kind of the event that says that a ticket's text was erased: see `wise.memory.store.erase`."""
ERASED_TEXT = "(erased)"
"""What stands where a text was erased."""
EXPIRED: Mapping[str, str] = {"why": "expired"}
"""Detail of the retirement of an edit that was not valid by the clock of that moment."""


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """An edit to enqueue, and what the journal keeps beside it.

    Raises EditError for a blank reason, or times that are none or end before they begin.
    """

    edit: Edit
    reason: str | None = None
    valid_from: str | None = None
    """ISO 8601; not trained before. UTC where it names no zone."""
    valid_until: str | None = None
    """ISO 8601; `Store.expired` names it from then on. UTC where it names no zone."""

    def __post_init__(self) -> None:
        if not isinstance(self.edit, Edit):
            raise EditError(f"field 'edit': {given(self.edit)} was given, an Edit was expected")
        if self.reason is not None:
            object.__setattr__(self, "reason", checked_text("reason", self.reason).strip())
        for name in ("valid_from", "valid_until"):
            object.__setattr__(self, name, instant(name, getattr(self, name)))
        if self.valid_from and self.valid_until and self.valid_until <= self.valid_from:
            raise EditError(f"field 'valid_until': {self.valid_until} is not after valid_from, {self.valid_from}")


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """An enqueued request and its current status."""

    number: int
    """Counted from 1, in the order in which requests were enqueued."""
    edit: Edit
    reason: str | None
    valid_from: str | None
    valid_until: str | None
    key: str | None
    """Idempotency key of the call that enqueued it."""
    accepted_at: str
    status: str
    live_in: int | None = None
    """The version in which it last became live."""
    retired_in: int | None = None
    """The version in which it last ceased to be; None also where it was withdrawn before it was live."""
    verified: Mapping[str, Any] | None = None
    """What was found when it was trained."""
    problem: str = ""
    """Why its row cannot be understood; the other fields then hold what can still be read."""

    @property
    def erased(self) -> bool:
        return self.reason is None and self.edit == without_text(self.edit)

    def to_dict(self) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if name != "problem" or value}
        return {**fields, "edit": self.edit.to_dict()}

    @property
    def request(self) -> EditRequest:
        return EditRequest(edit=self.edit, reason=self.reason, valid_from=self.valid_from, valid_until=self.valid_until)

    @property
    def content(self) -> str:
        """SHA-256 of all that never changes about it."""
        changing = ("status", "live_in", "retired_in", "verified", "problem")
        return digest_of_json({name: value for name, value in self.to_dict().items() if name not in changing})


def without_text(edit: Edit) -> Edit:
    """What is left of an edit that was erased."""
    return Edit(id=edit.id, namespace=edit.namespace, prompt=ERASED_TEXT, target=ERASED_TEXT)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened. Never removed, and changed by an erasure alone."""

    number: int
    """Counted from 1 without gaps: a reader that has seen event N asks for those since N."""
    at: str
    """UTC, by the clock. Not before the event before it, unless the clock was set back (`jumped`)."""
    kind: str
    """A status that a ticket took, or `erased`; or else `version` or `collected`, of a version; or `clock`."""
    ticket: int | None = None
    version: int | None = None
    author: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    jumped: int | None = None
    """Seconds by which the clock was set forward or back since the event before it, where it was."""
    digest: str = ""
    """SHA-256 over the event and the digest before it: no event can be changed without changing all later ones."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def linked(self, before: str) -> str:
        """The digest that it has after an event of digest `before`."""
        unset = {"digest"} if self.jumped is not None else {"digest", "jumped"}  # which was added later
        return digest_of_json([before, {name: value for name, value in vars(self).items() if name not in unset}])


BEGINNING = Event(number=0, at="", kind="beginning")
"""Stands before the first event."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One state of the memory, as the journal knows it; version 0 is the memory without edits."""

    number: int
    manifest: str
    """SHA-256 of its manifest; empty for version 0."""
    parent: int
    kind: str
    """`commit`, `delete`, `rollback` or `import`."""
    at: str
    author: str | None
    reason: str | None
    edits: int
    """How many are live in it."""
    collected: bool
    """Whether it can no longer be read."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def now(*, after: float = 0.0) -> str:
    """This instant by the clock, or so many seconds after: UTC, of fixed width, so that texts compare as instants."""
    return _iso(datetime.now(UTC) + timedelta(seconds=after))


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def instant(name: str, value: object) -> str | None:
    """A time that a user gave, as the journal writes times; None stays None. Raises EditError for what is no time."""
    if value is None:
        return None
    text = checked_text(name, value)
    try:
        at = datetime.fromisoformat(text)
        return _iso(at if at.tzinfo else at.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise EditError(
            f"field {name!r}: {text!r} was given, an ISO 8601 time was expected, such as 2025-01-31T12:00:00+00:00"
        ) from None
