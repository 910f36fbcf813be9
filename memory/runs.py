"""Runs: a sequence of places told as stretches that follow on each other, `(key, first, behind the last)`.

A version of 10,000 slots is some hundred of them, and what is asked of all its places is asked of its runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress, count
from operator import is_not
from typing import TypeVar

Key = TypeVar("Key")
Run = tuple[Key, int, int]


def joined(runs: Iterable[Run[Key]]) -> list[Run[Key]]:
    """The same places in as few runs as there can be; so the same places are the same runs."""
    found: list[Run[Key]] = []
    for key, start, stop in runs:
        if found and found[-1][0] == key and found[-1][2] == start:
            found[-1] = (key, found[-1][1], stop)
        elif start < stop:
            found.append((key, start, stop))
    return found


def cut(runs: Iterable[Run[Key]], start: int, stop: int) -> list[Run[Key]]:
    """Those of the places that stand from `start` to before `stop` in the sequence."""
    found = []
    at = 0
    for key, first, behind in runs:
        low, high = max(start - at, 0), min(stop - at, behind - first)
        if low < high:
            found.append((key, first + low, first + high))
        at += behind - first
    return found


def cover(runs: Iterable[Run[Key]], sizes: Mapping[Key, int]) -> bool:
    """Whether every place from 0 to before its key's size is there exactly once, and no other."""
    reached: dict[Key, int] = {}
    for key, start, stop in sorted(runs, key=lambda run: run[1]):
        if reached.get(key, 0) != start or stop <= start:
            return False
        reached[key] = stop
    return reached == {key: size for key, size in sizes.items() if size}


def leading(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items, from the first on, are the very same objects in both."""
    return next(compress(count(), map(is_not, one, other)), min(len(one), len(other)))
