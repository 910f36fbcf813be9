"""Who spoke for each token of a text, and who nearly did: what an edited model can say about its answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Claim:
    """How near one edit came to speaking for one token."""

    edit: str | None
    """Its id. In `merge`, where the memory speaks as a whole, the edit with the nearest key; None without keys."""
    slot: int
    evidence: float
    """The edit could speak from 1. Where it was not the one that did and this is 1 or more, another was nearer."""

    @property
    def missed_by(self) -> float:
        """What was wanting of the evidence; 0 for an edit that spoke, or to which another was preferred."""
        return max(0.0, 1.0 - self.evidence)


@dataclass(frozen=True, kw_only=True)
class TokenRoute:
    """One token that the model has read."""

    place: int
    """Column of the sequence in which it stands, pads counted."""
    token: str
    score: float
    """As the router took it; the gate opens where it reaches the threshold."""
    threshold: float
    """Infinite where no edit is near, or live."""
    fired: Claim | None
    """The edit that spoke; None where the base spoke alone."""
    missed: Claim | None
    """Of the others the one that came nearest; None where there is no other, in `merge` and `hybrid` where one spoke,
    and in `hybrid` where no answer can begin or no edit could be meant."""

    @property
    def slot(self) -> int | None:
        """The slot that spoke, or None for the base."""
        return None if self.fired is None else self.fired.slot


@dataclass(frozen=True, kw_only=True)
class RowRoutes:
    """A prompt and what was generated after it, token by token.

    All that the model has read, so all but the last token, which was generated and never read.
    """

    tokens: tuple[TokenRoute, ...]
    prompt_tokens: int
    """How many of them are the prompt."""
    missed: Claim | None
    """Of the edits that spoke nowhere in the row the one that came nearest, where it did; None where there is none, or
    in `hybrid` none was looked at."""
    missed_at: int | None
    """The place of that token."""

    @property
    def fired(self) -> tuple[str, ...]:
        """The edits that spoke, in the order in which they first did."""
        claims = (token.fired for token in self.tokens if token.fired is not None)
        return tuple(dict.fromkeys(claim.edit for claim in claims if claim.edit is not None))

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON but for infinite thresholds."""
        return asdict(self)
