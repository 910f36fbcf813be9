"""The router's decisions at the tokens of one answer, as vLLM generates it: the answer's provenance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wise.router.course import Course, Step

GROWTH = 256
"""Ids for which a new array has room besides the prompt."""


class FollowedAnswer:
    """Follows the tokens after one prompt."""

    def __init__(self, prompt: Sequence[int], course: Course) -> None:
        """course: has read the prompt, or has its plan."""
        self._course = course
        self.decided_length = len(prompt)
        """The number of tokens whose decisions are made."""
        self._ids = np.array([*prompt, *[0] * GROWTH], dtype=np.int64)
        self._length = self._prompt = len(prompt)

    @property
    def generated(self) -> int:
        """The number of generated tokens."""
        return self._length - self._prompt

    def add(self, tokens: Sequence[int]) -> list[Step]:
        """Takes new tokens. The model has not read the newest token yet, so there is no decision at it."""
        end = self._length + len(tokens)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(max(end, GROWTH), dtype=np.int64)])
        self._ids[self._length : end] = tokens
        self._length, first = end, self.decided_length
        if end - 1 <= first:
            return []
        self.decided_length = end - 1
        return self._course.read(self._ids[: end - 1], first)
