"""What an edited model says, and which memory said it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wise.memory.side_memory import Route
from wise.training.encoding import Encoder


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A greedy answer, with the route of every token that led to it."""

    prompt: str
    text: str
    tokens: tuple[str, ...]
    """Prompt and answer, token by token."""
    prompt_tokens: int
    """How many of them are the prompt."""
    slots: tuple[int | None, ...]
    """Per token: the slot that spoke when it was read, or None for the base."""
    scores: tuple[float, ...]
    thresholds: tuple[float, ...]


def make_answer(
    encoder: Encoder, text: str, prompt: Sequence[int], new: Sequence[int], route: Route | None
) -> Answer:
    """prompt, new: ids; route: of all of them, None where no edit is live."""
    count = len(prompt) + len(new)
    spoke = [False] * count if route is None else route.open.tolist()
    slots = spoke if route is None else route.slot.tolist()
    return Answer(
        prompt=text,
        text=encoder.answer(new),
        tokens=tuple(str(encoder.tokenizer.decode([i])) for i in [*prompt, *new]),
        prompt_tokens=len(prompt),
        slots=tuple(slot if opened else None for slot, opened in zip(slots, spoke, strict=True)),
        scores=(0.0,) * count if route is None else tuple(route.score.tolist()),
        thresholds=(float("inf"),) * count if route is None else tuple(route.threshold.tolist()),
    )
