"""What editing did, edit by edit: verified by generation, or failed and said so."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

VERIFIED = "verified"
"""The edited model generates the target by itself and stops; the edit is live."""
FAILED = "failed"
"""It does not; the edit is not live."""
SUPERSEDED = "superseded"
"""A later edit of the same prompt took its place before it was written."""


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
    tried: tuple[str, ...] = ()
    """What was done for it, each harder than the one before; the last is what holds, where it does."""


@dataclass(frozen=True, kw_only=True)
class EditReport:
    """Outcomes in the order in which the edits were given."""

    outcomes: tuple[Outcome, ...]
    replaced: tuple[str, ...]
    """Ids of live edits that newer ones of the same prompt took the place of."""
    lost: tuple[str, ...]
    """Ids of edits that were live and no longer generate their target; they are not live any more."""
    seconds: float
    cpu_seconds: float

    def count(self, status: str) -> int:
        return Counter(outcome.status for outcome in self.outcomes)[status]

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the edits that did not verify."""
        return tuple(outcome.id for outcome in self.outcomes if outcome.status == FAILED)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
