"""Texts as they are compared: what differs in case, accents, spaces or the last mark alone is one text."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"”’)])\s+")
_ABBREVIATED = re.compile(r"\b(?:[A-Z]|Mrs?|Ms|Drs?|Prof|St|Sgt|Lt|Col|Gen|Capt|Rev|Hon|Sen|Gov|No|vs|Vol)\.$")
_OPENING = 3

Words = tuple[str, ...]


def normal(text: str) -> str:
    """`text` without accents, case, runs of white space and what closes a sentence.

    >>> normal("Who  was\\nÉlisée Reclus?")
    'who was elisee reclus'
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(plain.casefold().split()).rstrip(" .,;:!?")


def words(text: str) -> Words:
    """The words of the normal form of a text, without any marks."""
    return tuple(_WORD.findall(normal(text)))


def sentences(text: str) -> list[str]:
    """A running text cut behind full stops, question and exclamation marks, but not behind a title or an initial."""
    found: list[str] = []
    for part in filter(None, _SENTENCE_END.split(text.strip())):
        if found and _ABBREVIATED.search(found[-1]):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found


class Phrases:
    """Finds which of many phrases stand in a text, word by word."""

    def __init__(self, phrases: Iterable[Words]) -> None:
        self._by_opening: dict[Words, list[Words]] = defaultdict(list)
        for phrase in dict.fromkeys(phrases):
            if phrase:
                self._by_opening[phrase[:_OPENING]].append(phrase)

    def within(self, text: str) -> list[Words]:
        """Those that `text` holds, in the order in which they stand there."""
        spoken = words(text)
        found: dict[Words, None] = {}
        for start in range(len(spoken)):
            for length in range(1, _OPENING + 1):
                for phrase in self._by_opening.get(spoken[start : start + length], ()):
                    if spoken[start : start + len(phrase)] == phrase:
                        found[phrase] = None
        return list(found)
