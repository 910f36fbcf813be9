"""What an edited model says, and which memory said it."""

from __future__ import annotations

from dataclasses import dataclass

from wise.routes import RowRoutes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A greedy answer, with the route of every token that led to it."""

    prompt: str
    """What was asked; of a conversation, the user's last message."""
    text: str
    """What was said, without how the base ends its answers."""
    tokens: tuple[str, ...]
    """Prompt and answer, token by token."""
    prompt_tokens: int
    """How many of them are the prompt."""
    routes: RowRoutes
    """Of all of them but the last, which was never read."""

    @property
    def slots(self) -> tuple[int | None, ...]:
        """Per token that was read: the slot that spoke, or None for the base."""
        return tuple(token.slot for token in self.routes.tokens)
