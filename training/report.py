"""The report of an edit or delete call: the outcome of each edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

VERIFIED = "verified"
"""All that was verified holds; the edit is live."""
PARTIAL = "partial"
"""Something does not hold, but all that `WiseConfig.require` asks for does; the edit is live."""
FAILED = "failed"
"""Something that `WiseConfig.require` asks for does not hold; the edit is not live."""
SUPERSEDED = "superseded"
"""A later edit of the same call took its place: one of the same prompt, before it was written, or one that asks the
same question in other words (`EditReport.conflicts`)."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one edit."""

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
    """Whether each wording, locality prompt and sister question is as promised."""
    said: Mapping[str, str] = field(default_factory=dict)
    """What was answered with the edit, where it was asked; what is left out does not activate it and is as before."""
    before: Mapping[str, str] = field(default_factory=dict)
    """What was answered to each without the edit, where it was asked (`Trainer.with_before`)."""
    also_answers: tuple[str, ...] = ()
    """Other questions about its subject, of those that ship with wise, that activate the edit and are so near to its
    own that nothing is promised of them (`hybrid`). List them as `locality` to prevent that."""
    tried: tuple[str, ...] = ()
    """The attempts that were made, each with greater effort."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two edits with one question in different words and different targets (`hybrid`)."""

    superseded: str
    """Id of the earlier edit, which is no longer live."""
    by: str
    """Id of the later edit."""
    score: float
    """The smaller of two cosines: of each edit's question to the keys of the other."""


@dataclass(frozen=True, kw_only=True)
class EditReport:
    """Outcomes in the order in which the edits were given."""

    outcomes: tuple[Outcome, ...]
    replaced: tuple[str, ...]
    """Ids of live edits that were replaced by newer ones of the same prompt."""
    dropped: tuple[str, ...]
    """Ids of live edits that no longer generate their target, and were dropped."""
    seconds: float
    cpu_seconds: float
    conflicts: tuple[Conflict, ...] = ()
    """Edits that later ones superseded."""

    def count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the edits that are not live because something does not hold."""
        return tuple(outcome.id for outcome in self.outcomes if outcome.status == FAILED)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """The result of asking every live edit again on a copy of its base in another precision. All of them stay live."""

    made_in: str
    """Precision of the base that the edits were made on."""
    served_in: str
    """Precision of this copy."""
    edits: int
    lost: Mapping[str, str]
    """By id, what the copy answers to the edits that do not hold on it: to some promised wording it says another."""
    seconds: float

    @property
    def held(self) -> int:
        """Edits that are said as promised."""
        return self.edits - len(self.lost)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"held": self.held}

    def __str__(self) -> str:
        return (
            f"edits made in {self.made_in} and served in {self.served_in}: {self.held} of {self.edits} hold"
            + (f"; not {', '.join(self.lost)}" if self.lost else "")
        )


@dataclass(frozen=True, kw_only=True)
class DeleteReport:
    """The result of deleting edits."""

    deleted: tuple[str, ...]
    rewritten: tuple[str, ...]
    """Ids of edits that shared a slot with a deleted one and were written anew without it."""
    dropped: tuple[str, ...]
    """Ids of edits that no longer generate their target after that, and were dropped."""
    seconds: float
    cpu_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
