"""One answer as vLLM generates it: what is decided at its tokens, which is its provenance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wise.router.course import Course, Step

GROWTH = 256
"""Ids for which there is room at least when it is made."""


class FollowedAnswer:
    """Follows the tokens behind one prompt."""

    def __init__(self, prompt: Sequence[int], course: Course) -> None:
        """course: that has read the prompt, or has its plan."""
        self._course = course
        self.read = len(prompt)
        """Tokens at which everything is decided."""
        self._ids = np.array([*prompt, *[0] * GROWTH], dtype=np.int64)
        self._length = self._prompt = len(prompt)

    @property
    def generated(self) -> int:
        """Tokens that came."""
        return self._length - self._prompt

    def add(self, tokens: Sequence[int]) -> list[Step]:
        """Takes the tokens that came. The model has not read the newest one yet, so nothing is decided there."""
        end = self._length + len(tokens)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(max(end, GROWTH), dtype=np.int64)])
        self._ids[self._length : end] = tokens
        self._length, first = end, self.read
        if end - 1 <= first:
            return []
        self.read = end - 1
        return self._course.read(self._ids[: end - 1], first)
