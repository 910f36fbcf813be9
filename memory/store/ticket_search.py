"""Searches the tickets of a journal: by status, text, author, namespace, time of acceptance and validity.

A journal may hold a hundred thousand tickets, so one call looks at a bounded number of them and says where the next
call goes on. Tickets are read in blocks by number and, if one is wanted, by status. Times of acceptance bound the
numbers. All of these have an index. All else is compared block by block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wise.memory.store.edit_request import Ticket, instant
from wise.memory.store.journal import Journal
from wise.memory.store.rows import LARGEST

BLOCK = 250
"""Tickets that are read at once."""
LOOKED_AT = 2_000
"""Tickets that one call looks at."""
NEVER = "~"
"""Comes after every time."""


@dataclass(frozen=True, kw_only=True)
class TicketFilter:
    """Which tickets are wanted; None and "" want all. Raises EditError for what is no time."""

    status: str | None = None
    outcome: str | None = None
    """The `status` of what was found when it was trained; "" if it was not, or says none."""
    not_outcome: str | None = None
    text: str = ""
    """Stands in prompt, target, subject, aliases, paraphrases or reason, in any case."""
    author: str | None = None
    namespaces: frozenset[str] | None = None
    """Of one of these."""
    accepted_from: str | None = None
    """ISO 8601; UTC if it names no zone."""
    accepted_until: str | None = None
    """Not accepted at this time or later."""
    valid_at: str | None = None
    """Its validity includes this time."""

    def __post_init__(self) -> None:
        for name in ("accepted_from", "accepted_until", "valid_at"):
            object.__setattr__(self, name, instant(name, getattr(self, name)))

    def within(self, namespaces: frozenset[str] | None) -> TicketFilter:
        """The same, of these namespaces alone; None: of all."""
        if namespaces is None:
            return self
        return replace(self, namespaces=namespaces if self.namespaces is None else self.namespaces & namespaces)

    def matches(self, ticket: Ticket) -> bool:
        """Whether it is wanted; `status` and `namespaces` aside, which the journal looks up."""
        edit = ticket.edit
        outcome = str((ticket.verified or {}).get("status", ""))
        return (
            self.outcome in (None, outcome)
            and (self.not_outcome is None or self.not_outcome != outcome)
            and self.author in (None, edit.author)
            and (self.accepted_from or "") <= ticket.accepted_at < (self.accepted_until or NEVER)
            and (self.valid_at is None or (ticket.valid_from or "") <= self.valid_at < (ticket.valid_until or NEVER))
            and (not self.text or _mentions(ticket, self.text.casefold()))
        )


def _mentions(ticket: Ticket, folded: str) -> bool:
    edit = ticket.edit
    texts = (edit.prompt, edit.target, edit.subject, ticket.reason, *edit.aliases, *edit.paraphrases)
    return any(folded in text.casefold() for text in texts if text)


@dataclass(frozen=True, kw_only=True)
class TicketPage:
    tickets: tuple[Ticket, ...]
    last: int | None
    """The last ticket that was looked at: the next call goes on behind it. None if there are no more."""


def search_tickets(
    journal: Journal, wanted: TicketFilter, *, after: int | None = None, limit: int, newest: bool = False
) -> TicketPage:
    """The next tickets that are wanted, `limit` at most, in their order or the newest first.

    after: the last ticket not wanted; None begins at an end.
    """
    low, high = 0, LARGEST  # exclusive, inclusive
    if wanted.accepted_from is not None or wanted.accepted_until is not None:
        first, high = journal.accepted_between(wanted.accepted_from, wanted.accepted_until)
        low = first - 1
    if after is not None:
        low, high = (low, min(high, after - 1)) if newest else (max(low, after), high)
    tickets: list[Ticket] = []
    for _ in range(LOOKED_AT // BLOCK):
        block = journal.tickets(
            status=wanted.status, namespaces=wanted.namespaces, since=low, until=high, limit=BLOCK, newest=newest
        )
        for ticket in filter(wanted.matches, block):
            if len(tickets) == limit:
                return TicketPage(tickets=tuple(tickets), last=tickets[-1].number)
            tickets.append(ticket)
        if len(block) < BLOCK:
            return TicketPage(tickets=tuple(tickets), last=None)
        low, high = (low, block[-1].number - 1) if newest else (block[-1].number, high)
    return TicketPage(tickets=tuple(tickets), last=high + 1 if newest else low)
