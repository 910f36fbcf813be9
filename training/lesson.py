"""One question that a router learns from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A question about a subject."""

    fact: str
    """Which fact it belongs to: one that is edited nowhere."""
    prompt: str
    subject: str | None
    """As it stands in the prompt."""
    relation: str
    """What is asked about the subject; questions of one relation ask the same of each subject."""
    alike: frozenset[str] = frozenset()
    """Other relations that may ask the same in other words: neither is learned to be unlike the other."""
    form: str = ""
    """What kind of wording it is: questions of every form are learned from alike often."""
    negative: bool = False
    """It asks something else about the subject than the fact's own question does."""
