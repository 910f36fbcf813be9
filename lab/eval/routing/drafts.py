"""A class before its prompts are chosen: where they come from, and how some of them are taken, evenly over records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

Source = tuple[str | None, Iterable[str]]
"""Id of a record, or None, and the prompts built from it, the best first; they may be built as they are taken."""
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A class of prompts to choose from."""

    name: str
    about: str
    sources: Sequence[Source]
    why_empty: str
    """What is missing where no prompt comes of it."""
    unit: str = "prompt"
    """As in `RoutingClass`."""


def choose(draft: Draft, *, cap: int, accept: Callable[[str], bool]) -> list[tuple[str, int]]:
    """Up to `cap` different texts that `accept` takes, each with the place of its source, in the order of those.

    One from each record before a second from any. Where not all records can have one, those that have lie evenly over
    all of them, so that old and new edits have their share.
    """
    streams: dict[int, Iterator[str]] = {place: iter(texts) for place, (_, texts) in enumerate(draft.sources)}
    taken: dict[str, tuple[int, int]] = {}
    depth = 0
    while streams and len(taken) < cap:
        for place in evenly(list(streams)):
            text = next((text for text in streams[place] if text not in taken and accept(text)), None)
            if text is None:
                del streams[place]
                continue
            taken[text] = (place, depth)
            if len(taken) == cap:
                break
        depth += 1
    return [(text, place) for text, (place, _) in sorted(taken.items(), key=lambda item: item[1])]


def evenly(places: Sequence[int]) -> list[int]:
    """`places` in an order of which every beginning lies evenly over all (multiples of the golden ratio, modulo 1)."""
    ranked = sorted(range(len(places)), key=lambda i: (i * _GOLDEN) % 1)
    return [places[i] for i in ranked]
