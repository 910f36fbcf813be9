"""The truth about edit keys: every key in a row of one matrix, and the edit that owns it.

Rows are appended. Removing an edit zeroes its rows and leaves them dead, so that a search index may know keys by
their rows. Once the dead are too many, `compacted` gives a table of the living alone, in order of edit id.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MOST_DEAD = 0.25
"""Share of dead rows above which a table is crowded: a removal then costs the moving of three rows, in the mean."""


class Entry(NamedTuple):
    """Where the keys of one edit are: rows `first` to `first + size`."""

    slot: int
    first: int
    size: int


class KeyTable:
    """Rows of keys `[rows, r]` float32, living and dead. What it is given is right: `KeyIndex` checks."""

    def __init__(self, dim: int) -> None:
        self.entries: dict[str, Entry] = {}
        """By edit id."""
        self.rows = 0
        self.living = 0
        """Number of keys."""
        self.largest_norm = 0.0
        """No key that is here is longer."""
        self._vectors = np.empty((0, dim), dtype=np.float32)
        self._alive = np.empty(0, dtype=np.bool_)
        self._owners: list[str] = []
        self._written = [0]
        """Rows of the arrays that are in use, by this table or by one that shares them."""
        self._shared = False

    @property
    def vectors(self) -> NDArray[np.float32]:
        """`[rows, r]`, a view; zero where a row is dead."""
        return self._vectors[: self.rows]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """`[rows]`, a view."""
        return self._alive[: self.rows]

    @property
    def crowded(self) -> bool:
        """Whether the dead are too many."""
        return self.rows - self.living > _MOST_DEAD * self.rows

    def owner(self, row: int) -> tuple[str, int]:
        """The edit that a living row belongs to, and which of its keys it is."""
        edit_id = self._owners[row]
        return edit_id, row - self.entries[edit_id].first

    def append(
        self, edit_ids: Sequence[str], slots: Sequence[int], sizes: Sequence[int], keys: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Take the keys `[n, r]` of new edits, `sizes[i]` of edit i. Returns their rows `[n]`."""
        first, end = self.rows, self.rows + len(keys)
        if end > len(self._vectors) or self._written[0] != first:
            self._move(end)
        self._written[0] = end
        self._vectors[first:end] = keys
        self._alive[first:end] = True
        row = first
        for edit_id, slot, size in zip(edit_ids, slots, sizes, strict=True):
            self.entries[edit_id] = Entry(slot, row, size)
            self._owners += [edit_id] * size
            row += size
        self.rows, self.living = end, self.living + len(keys)
        self.largest_norm = max(self.largest_norm, float(norms(keys).max(initial=0)))
        return np.arange(first, end)

    def drop(self, edit_id: str) -> NDArray[np.int64]:
        """Forget the keys of an edit that is here. Returns the rows that die of it."""
        if self._shared:
            self._move(self.rows)
        entry = self.entries.pop(edit_id)
        gone = np.arange(entry.first, entry.first + entry.size)
        self._vectors[gone] = 0
        self._alive[gone] = False
        self.living -= entry.size
        return gone

    def in_order(self) -> NDArray[np.int64]:
        """`[living]` the rows by edit id and position."""
        entries = [self.entries[edit_id] for edit_id in sorted(self.entries)]
        firsts = np.array([entry.first for entry in entries], dtype=np.int64)
        sizes = np.array([entry.size for entry in entries], dtype=np.int64)
        before = sizes.cumsum() - sizes
        return np.repeat(firsts - before, sizes) + np.arange(self.living)

    def copy(self) -> KeyTable:
        """The same keys in a table of its own. Rows are shared: one that changes them takes copies first, and the first
        of the two to append does so behind them. Not to be used by several threads at once."""
        self._shared = True
        table = copy(self)
        table.entries, table._owners = dict(self.entries), list(self._owners)
        return table

    def compacted(self) -> KeyTable:
        """The same keys without a dead row, by edit id and position."""
        table = KeyTable(self._vectors.shape[1])
        entries = [(edit_id, self.entries[edit_id]) for edit_id in sorted(self.entries)]
        table.append(
            [edit_id for edit_id, _ in entries],
            [entry.slot for _, entry in entries],
            [entry.size for _, entry in entries],
            self.vectors[self.in_order()],
        )
        return table

    def _move(self, rows: int) -> None:
        """To arrays of its own for `rows` rows, and half as many again, so that adding one by one stays linear."""
        room = rows * 3 // 2  # what is not written to takes no memory yet
        vectors = np.empty((room, self._vectors.shape[1]), dtype=np.float32)
        vectors[: self.rows] = self.vectors
        alive = np.empty(room, dtype=np.bool_)
        alive[: self.rows] = self.alive
        self._vectors, self._alive = vectors, alive
        self._written, self._shared = [self.rows], False


def norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Lengths `[n]` of `[n, r]`: NaN or infinite where a vector is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths: NDArray[np.float64] = np.sqrt(np.einsum("nr,nr->n", vectors, vectors, dtype=np.float64))
    return lengths
