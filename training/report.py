"""What editing did, edit by edit: verified by generation, or failed and said so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

VERIFIED = "verified"
"""The edited model generates the target by itself and stops; the edit is live."""
FAILED = "failed"
"""It does not; the edit is not live."""
SUPERSEDED = "superseded"
"""A later edit of the same call took its place: one of the same prompt, before it was written, or one that asks the
same question in other words (`EditReport.conflicts`)."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one edit."""

    id: str
    status: str
    answer: str
    """What the edited model generates for the edit's prompt; empty where it was not asked."""
    steps: int
    loss: float | None
    """Mean negative log-likelihood of the target, in nats per token, when fitting ended, where it is known."""
    milliseconds: float
    """Wall time of this edit's share of its batch."""
    holds: Mapping[str, bool] = field(default_factory=dict)
    """Of each wording that the edit promises, and each prompt of its locality, whether it is as promised."""
    also_answers: tuple[str, ...] = ()
    """Other questions about its subject, of those that ship with wise, that the router takes for the edit's (`hybrid`).
    What is asked so is listed as `locality` to keep it out."""
    tried: tuple[str, ...] = ()
    """What was done for it, each harder than the one before; the last is what holds, where it does."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two edits that ask the same of the same subject in unlike words, and want unlike answers (`hybrid`)."""

    superseded: str
    """Id of the earlier one, which is not live any more."""
    by: str
    score: float
    """The lesser of the cosines of each one's question to the other's keys."""


@dataclass(frozen=True, kw_only=True)
class EditReport:
    """Outcomes in the order in which the edits were given."""

    outcomes: tuple[Outcome, ...]
    replaced: tuple[str, ...]
    """Ids of live edits that newer ones of the same prompt took the place of."""
    dropped: tuple[str, ...]
    """Ids of edits that were live and no longer generate their target; they are not live any more."""
    seconds: float
    cpu_seconds: float
    conflicts: tuple[Conflict, ...] = ()
    """Edits, live before or of this call, that gave way to later ones."""

    def count(self, status: str) -> int:
        return Counter(outcome.status for outcome in self.outcomes)[status]

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the edits that did not verify."""
        return tuple(outcome.id for outcome in self.outcomes if outcome.status == FAILED)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DeleteReport:
    """What taking edits out did."""

    deleted: tuple[str, ...]
    rewritten: tuple[str, ...]
    """Ids of edits that had shared a slot's weights with a deleted one, and were written anew without it."""
    dropped: tuple[str, ...]
    """Ids of edits that no longer generate their target after that; they are not live any more."""
    seconds: float
    cpu_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
