"""The index of edit keys: which edits own the keys nearest to a query, by inner product, found with FAISS.

A search compares all keys, so its answer is a function of the set of edits alone, and not of the order in which they
were added. FAISS proposes candidates in float32; these are ranked by their float64 inner product rounded to float32,
ties by edit id.

Keys and queries are compared as they are; to compare directions, normalise both first. Searches may run in several
threads at once; nothing may be added or removed meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_SPARE = 8
"""Candidates beyond those wanted: enough that a tie at the cut, or a dead row, rarely costs a second search."""
_MOST_DEAD = 0.25
"""Share of dead rows above which the rows are compacted: a removal then moves three rows on average."""


class KeyIndex:
    """Edit keys `[n, r]` float32 on the CPU, each owned by an edit.

    Removing an edit zeroes its rows and leaves them dead until too many are.
    """

    def __init__(self, dim: int) -> None:
        """dim: r, the size of a key."""
        self.dim = dim
        self._entries: dict[str, slice] = {}
        """The rows of each edit, in the order of the rows."""
        self._owners: list[str] = []
        """The edit of each row in use, living or dead."""
        self._living = 0
        self._largest_norm = 0.0
        """No key that is here is longer."""
        self._vectors = np.empty((0, dim), dtype=np.float32)
        self._alive = np.empty(0, dtype=np.bool_)
        self._rows_in_use = [0]
        """Rows of the arrays that are in use, by this index or by a copy that shares them."""
        self._shared = False

    def __len__(self) -> int:
        return self._living

    def copy(self) -> KeyIndex:
        """The same keys in an index of its own.

        Both share the arrays: the first of the two to add rows does so behind them, and one that changes rows in use
        copies the arrays first. Not to be used by several threads at once.
        """
        self._shared = True
        other = copy(self)
        other._entries, other._owners = dict(self._entries), list(self._owners)
        return other

    def add_rows(self, edit_ids: Sequence[str], sizes: Sequence[int], keys: Tensor) -> None:
        """Add edits that have no keys yet: the i-th has the next `sizes[i]` of the keys `[n, r]`, which are copied."""
        rows = keys.detach().cpu().numpy()
        first, end = len(self._owners), len(self._owners) + len(rows)
        if end > len(self._vectors) or self._rows_in_use[0] != first:
            self._move(end)
        self._rows_in_use[0] = end
        self._vectors[first:end], self._alive[first:end] = rows, True
        self._assign_rows(edit_ids, sizes)
        self._living += len(rows)
        self._largest_norm = max(self._largest_norm, float(_norms(rows).max(initial=0)))

    def remove(self, edit_id: str) -> None:
        if self._shared:
            self._move(len(self._owners))
        rows = self._entries.pop(edit_id)
        self._vectors[rows], self._alive[rows] = 0, False
        self._living -= rows.stop - rows.start
        if len(self._owners) - self._living > _MOST_DEAD * len(self._owners):
            self._compact()

    def _move(self, rows: int) -> None:
        """To arrays of its own for `rows` rows, and half as many again, so that adding one by one stays linear."""
        used, room = len(self._owners), rows * 3 // 2  # what is not written to takes no memory yet
        vectors, alive = np.empty((room, self.dim), dtype=np.float32), np.empty(room, dtype=np.bool_)
        vectors[:used], alive[:used] = self._vectors[:used], self._alive[:used]
        self._vectors, self._alive = vectors, alive
        self._rows_in_use, self._shared = [used], False

    def _compact(self) -> None:
        """To arrays of its own without a dead row."""
        entries, used = self._entries, len(self._owners)
        self._vectors = self._vectors[:used][self._alive[:used]]
        self._alive, self._rows_in_use, self._shared = np.ones(self._living, dtype=np.bool_), [self._living], False
        self._entries, self._owners = {}, []
        self._assign_rows([*entries], [rows.stop - rows.start for rows in entries.values()])

    def _assign_rows(self, edit_ids: Sequence[str], sizes: Sequence[int]) -> None:
        """The next rows are of these edits."""
        for edit_id, size in zip(edit_ids, sizes, strict=True):
            self._entries[edit_id] = slice(len(self._owners), len(self._owners) + size)
            self._owners += [edit_id] * size

    def search(self, query: Tensor, k: int = 1) -> list[tuple[float, str]]:
        """Float32 inner product and edit of the `k` keys nearest to a query `[r]`, best first, or all.

        FAISS scores in float32 and breaks ties by its own storage order, so its search is widened until its worst
        candidate trails the last wanted one by more than rounding can explain.
        """
        vector = np.ascontiguousarray(query.detach().cpu().numpy())
        used, wanted = len(self._owners), min(k, len(self))
        if not wanted:
            return []
        width, slack = wanted + _SPARE, self._rounding(vector)
        while True:
            width = min(width, used)
            scores, rows = (result[0] for result in _flat(vector[None], self._vectors[:used], width))
            alive = self._alive[rows] & (rows >= 0)
            enough = alive.sum() >= wanted
            if width == used or (enough and float(scores[-1]) < float(scores[alive][wanted - 1]) - slack):
                break
            width *= 2
        # Summed row by row, as no BLAS kernel promises to do: equal keys get equal scores.
        exact = (self._vectors[rows[alive]].astype(np.float64) * vector).sum(axis=1).astype(np.float32)
        owners = [self._owners[row] for row in rows[alive].tolist()]
        ranked = sorted(zip((-exact).tolist(), owners, strict=True))[:wanted]
        return [(-negated, owner) for negated, owner in ranked]

    def within(self, queries: Tensor, least: float) -> set[str]:
        """The edits with a key whose float32 inner product with one of `queries` `[m, r]` is `least` or more."""
        vectors, used = queries.detach().cpu().numpy(), len(self._owners)
        near = ((self._vectors[:used] @ vectors.T).max(axis=1) >= least) & self._alive[:used]
        return {self._owners[row] for row in np.flatnonzero(near).tolist()}

    def _rounding(self, vector: NDArray[np.float32]) -> float:
        """A bound on how far rounding can shift the difference of two scores. A float32 inner product errs by at
        most r * eps * |q| |key| (Higham 2002, section 3.1), and by the smallest normal number per term where products
        underflow. Twice for two scores, twice for safety."""
        eps, tiny = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
        return 4 * self.dim * (eps * self._largest_norm * float(_norms(vector[None])[0]) + tiny)


def _flat(queries: NDArray[np.float32], keys: NDArray[np.float32], width: int) -> tuple[Any, Any]:
    """Scores and rows `[m, width]` of the best of all keys `[n, r]` for each of `queries` `[m, r]`, best first."""
    import faiss  # here, so that importing wise stays light

    return faiss.knn(queries, keys, width, metric=faiss.METRIC_INNER_PRODUCT)


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Lengths `[n]` of `[n, r]`."""
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nr,nr->n", vectors, vectors, dtype=np.float64))
    return lengths
