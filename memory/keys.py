"""The index of edit keys: which edits lie nearest to a query, by inner product.

The keys are the truth (`key_table.py`). FAISS proposes candidates, and these are ranked by their float64 inner product
rounded to float32, ties by edit id and position. While keys are few all of them are compared, and what a search
answers is a function of the set of edits alone: not of the order in which they came, nor of the other queries in the
batch. Beyond that an approximate index is built at the first search (`faiss_index.py`) and follows what comes and goes;
it may miss a key, but scores and order of what it finds are the true ones. `exact=True` asks all keys, and
`recall` says how many of the nearest are found. No index is ever stored.

Keys and queries are compared as they are; to compare directions, normalise both first. Searches may run side by side;
nothing may be added or removed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wise.errors import ArtifactError, ConfigError, EditError, did_you_mean
from wise.memory.faiss_index import SPARE, Approximate, Kind, Sizes, build, flat
from wise.memory.key_table import KeyTable, norms

_LONGEST = float(np.finfo(np.float32).max) ** 0.5
"""Length whose square is still a float32."""
_AT_ONCE = 2**22
"""Numbers that one step of re-ranking holds: 32 MiB."""
_HINTED = 1000
"""Edits among which a like id is looked for; among more it takes seconds, and the list is no help."""


@dataclass(frozen=True, kw_only=True)
class KeyHits:
    """The nearest keys of `m` queries, best first. Where an index has fewer than `k`: -inf, -1 and ""."""

    scores: Tensor
    """`[m, k]` float32 inner products."""
    slots: Tensor
    """`[m, k]` int64."""
    edit_ids: list[list[str]]
    """`[m][k]`."""


Ranked = list[tuple[float, str, int]]
"""Score, edit id and position of the keys found for one query, best first."""


class KeyIndex:
    """Edit keys `[n, r]` float32, each owned by an edit that lives in a slot. All on the CPU."""

    def __init__(self, dim: int, *, sizes: Sizes | None = None) -> None:
        """dim: r, the size of a key. sizes: from how many keys on a search is approximate.

        Raises ConfigError if `dim` is not a whole number from 1.
        """
        if type(dim) is not int or dim < 1:
            raise ConfigError(f"dim={dim!r}: expected a whole number from 1")
        self.dim = dim
        self.sizes = sizes or Sizes()
        self._table = KeyTable(dim)
        self._cache: Approximate | None = None

    def __len__(self) -> int:
        """Number of keys."""
        return self._table.living

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """The edits that have keys here, sorted."""
        return tuple(sorted(self._table.entries))

    @property
    def kind(self) -> Kind:
        """How the next search that is not exact will be made."""
        due = self.sizes.kind(len(self))
        if self._cache is not None and self._cache.serves(len(self), due):
            return self._cache.kind
        return due

    def copy(self) -> KeyIndex:
        """The same keys in an index of their own, as of `KeyTable.copy`; what an approximate search goes by is left."""
        other = KeyIndex(self.dim, sizes=self.sizes)
        other._table = self._table.copy()
        return other

    def add(self, edit_id: str, slot: int, keys: Tensor) -> None:
        """Add the keys `[n, r]` of one edit. They are copied.

        Raises EditError, and adds nothing, if the id is already here or empty, the slot is negative,
        or the keys are not n >= 1 finite float32 vectors of size r.
        """
        self.add_all([(edit_id, slot, keys)])

    def add_all(self, edits: Iterable[tuple[str, int, Tensor]]) -> None:
        """Add many edits, each as `add` would, at a small part of the time.

        Raises EditError, and adds none, if one of them cannot be added.
        """
        edits = list(edits)
        ids: set[str] = set()
        for edit_id, slot, keys in edits:
            self._check(edit_id, slot, keys)
            if edit_id in self._table.entries or edit_id in ids:
                raise EditError(f"edit {edit_id!r} already has keys: remove it first or choose another id")
            ids.add(edit_id)
        if edits:
            found, slots, parts = zip(*edits, strict=True)
            self._append(found, slots, [each.shape[0] for each in parts], _joined(edits))

    def add_rows(self, edit_ids: Sequence[str], sizes: Sequence[int], keys: Tensor) -> None:
        """Add many edits at once, all of slot 0: the i-th has the next `sizes[i]` of the keys `[n, r]`.

        Raises EditError, and adds none, if one of them cannot be added; ConfigError if sizes and keys do not fit.
        """
        if len(edit_ids) != len(sizes) or min(sizes, default=1) < 1 or sum(sizes) != len(keys):
            raise ConfigError(f"{len(edit_ids)} edits, {len(sizes)} sizes of sum {sum(sizes)} and {len(keys)} keys")
        known = self._table.entries.keys() & {*edit_ids}
        if known or len({*edit_ids}) < len(edit_ids):
            raise EditError(f"edit {min(known, default='')!r} already has keys: remove it first or choose another id")
        if edit_ids:
            self._check(edit_ids[0], 0, keys)
            rows = keys.detach().cpu().numpy()
            _check_usable(edit_ids, sizes, rows)
            self._append(edit_ids, [0] * len(sizes), sizes, rows)

    def replace(self, edit_id: str, slot: int, keys: Tensor) -> None:
        """Put the keys `[n, r]` in the place of those that the edit has.

        Raises EditError, and changes nothing, if it has none, or where `add` would.
        """
        self._check_known(edit_id)
        self._check(edit_id, slot, keys)
        joined = _joined([(edit_id, slot, keys)])
        self._drop(edit_id)
        self._append([edit_id], [slot], [keys.shape[0]], joined)

    def remove(self, edit_id: str) -> None:
        """Forget all keys of one edit. Raises EditError if it has none."""
        self._check_known(edit_id)
        self._drop(edit_id)

    def search(self, queries: Tensor, k: int = 1, *, exact: bool = False) -> KeyHits:
        """The `k` keys with the largest inner product for each of `queries` `[m, r]`.

        Keys of equal score come in order of edit id, then of position within the edit.

        exact: compare all keys, however many. Nothing is built: also the faster way to a few answers.

        Raises ConfigError if the queries are not finite float32 vectors of size r, or `k` is under 1.
        """
        vectors = self._checked(queries, k)
        rows = len(vectors)
        scores = torch.full((rows, k), -torch.inf)
        slots = torch.full((rows, k), -1, dtype=torch.int64)
        edit_ids = [[""] * k for _ in range(rows)]
        for row, ranked in self._nearest(vectors, min(k, len(self)), exact):
            for rank, (score, edit_id, _) in enumerate(ranked):
                scores[row, rank] = score
                slots[row, rank] = self._table.entries[edit_id].slot
                edit_ids[row][rank] = edit_id
        return KeyHits(scores=scores, slots=slots, edit_ids=edit_ids)

    def within(self, queries: Tensor, least: float) -> set[str]:
        """The edits with a key whose inner product, as float32 rounds it, with one of `queries` `[m, r]` is `least` or
        more. All keys are compared. Raises ConfigError as `search` does, or where there are no queries."""
        vectors, table = self._checked(queries, 1), self._table
        if not len(vectors):
            raise ConfigError("there are no queries")
        near = ((table.vectors @ vectors.T).max(axis=1) >= least) & table.alive
        return {table.owner(row)[0] for row in np.flatnonzero(near).tolist()}

    def recall(self, queries: Tensor, k: int = 1) -> float:
        """The share of the true `k` nearest keys of `queries` `[m, r]` that a search finds; 1 where it is exact.

        Raises ConfigError as `search` does, and where there are no queries or no keys.
        """
        vectors = self._checked(queries, k)
        wanted = min(k, len(self))
        if not len(vectors) or not wanted:
            raise ConfigError(f"{len(vectors)} queries and {len(self)} keys: recall needs at least one of each")
        true, found = (
            {(row, edit_id, position) for row, ranked in answer for _, edit_id, position in ranked}
            for answer in (self._nearest(vectors, wanted, exact) for exact in (True, False))
        )
        return len(true & found) / len(true)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """The resident form for forward: keys `[n, r]`, slots `[n]` int64, by edit id and position. A copy."""
        entries = [self._table.entries[edit_id] for edit_id in self.edit_ids]
        slots = torch.tensor([entry.slot for entry in entries], dtype=torch.int64)
        counts = torch.tensor([entry.size for entry in entries], dtype=torch.int64)
        keys = torch.from_numpy(self._table.vectors)
        return keys.index_select(0, torch.from_numpy(self._table.in_order())), slots.repeat_interleave(counts)

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """What `from_state` needs: `keys` `[n, r]`, `slots` and `counts` `[e]` int64; the `e` edit ids.

        Equal for equal sets of edits, byte for byte.
        """
        ids = list(self.edit_ids)
        entries = [self._table.entries[edit_id] for edit_id in ids]
        tensors = {
            "keys": self.matrix()[0],
            "slots": torch.tensor([entry.slot for entry in entries], dtype=torch.int64),
            "counts": torch.tensor([entry.size for entry in entries], dtype=torch.int64),
        }
        return tensors, ids

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], edit_ids: Sequence[str]) -> KeyIndex:
        """The index that `state` described. Raises ArtifactError if the parts do not fit together."""
        missing = {"keys", "slots", "counts"} - set(tensors)
        if missing:
            raise ArtifactError(f"key index lacks {', '.join(sorted(missing))}: the memory is incomplete")
        keys, slots, counts = (tensors[name] for name in ("keys", "slots", "counts"))
        shapes_fit = keys.ndim == 2 and slots.shape == counts.shape == (len(edit_ids),)
        if not shapes_fit or bool((counts < 1).any()) or int(counts.sum()) != len(keys):
            raise ArtifactError(
                f"{len(edit_ids)} edit ids, slots {list(slots.shape)}, counts {list(counts.shape)} of sum "
                f"{int(counts.sum())}, keys {list(keys.shape)}: the index is damaged, restore another version"
            )
        try:
            index = cls(keys.shape[1])
            index.add_all(zip(edit_ids, slots.tolist(), torch.split(keys, counts.tolist()), strict=True))
        except (ConfigError, EditError) as error:
            raise ArtifactError(f"key index is damaged, restore another version: {error}") from error
        return index

    # -- what changes -------------------------------------------------------------------------

    def _append(
        self, edit_ids: Sequence[str], slots: Sequence[int], sizes: Sequence[int], keys: NDArray[np.float32]
    ) -> None:
        rows = self._table.append(edit_ids, slots, sizes, keys)
        if self._cache is not None:
            if self._cache.serves(len(self), self.sizes.kind(len(self))):
                self._cache.add(keys, rows)
            else:
                self._cache = None

    def _drop(self, edit_id: str) -> None:
        rows = self._table.drop(edit_id)
        if self._table.crowded:
            self._table, self._cache = self._table.compacted(), None  # rows have other numbers now
        elif self._cache is not None:
            self._cache.remove(rows)

    # -- search -------------------------------------------------------------------------------

    def _nearest(self, vectors: NDArray[np.float32], wanted: int, exact: bool) -> Iterator[tuple[int, Ranked]]:
        """For each row of `vectors`, in no order: the best `wanted` keys, or what the approximate index finds of them.

        FAISS scores in float32 and breaks ties by its own storage order, so a search of all keys is widened until its
        worst candidate trails the last wanted one by more than rounding can explain. An approximate one is widened
        until enough of its candidates are alive; where that takes all keys, all are compared.
        """
        if wanted == 0:
            return
        table, cache = self._table, None if exact else self._approximate()
        slack = self._rounding(vectors)
        pending, effort = np.arange(len(vectors)), 1
        width = wanted + SPARE if cache is None else cache.width(wanted)
        while pending.size:
            width = min(width, table.rows)
            if cache is not None and width < table.rows:
                scores, rows = cache.search(vectors[pending], width, effort)
            else:
                cache, (scores, rows) = None, flat(vectors[pending], table.vectors, width)
            alive = table.alive[rows] & (rows >= 0)
            settled = alive.sum(axis=1) >= wanted
            if cache is None:
                last = (alive.cumsum(axis=1) >= wanted).argmax(axis=1)  # of the wanted
                settled &= scores[:, -1] < scores[np.arange(len(rows)), last] - slack[pending]
                settled |= width == table.rows
            done = np.flatnonzero(settled)
            answers = self._ranked(vectors[pending[done]], rows[done], wanted)
            yield from zip(pending[done].tolist(), answers, strict=True)
            pending, width, effort = pending[~settled], 2 * width, 2 * effort

    def _ranked(
        self, queries: NDArray[np.float32], candidates: NDArray[np.int64], wanted: int
    ) -> Iterator[Ranked]:
        """The best `wanted` for each of `queries` `[m, r]` among the living of its candidates, rows `[m, width]`."""
        table = self._table
        step = max(1, _AT_ONCE // (candidates.shape[1] * self.dim))
        for start in range(0, len(queries), step):
            rows = candidates[start : start + step]
            # Summed row by row, as no BLAS kernel promises to do: equal keys get equal scores.
            products = table.vectors[rows].astype(np.float64) * queries[start : start + step, None]
            scores = products.sum(axis=2).astype(np.float32).tolist()
            for of_query, its_rows in zip(scores, rows.tolist(), strict=True):
                hits = [
                    (score, *table.owner(row))
                    for score, row in zip(of_query, its_rows, strict=True)
                    if row >= 0 and table.alive[row]
                ]
                yield sorted(hits, key=lambda hit: (-hit[0], hit[1:]))[:wanted]

    def _rounding(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """`[m]` bound on how far rounding can shift the difference of two scores.

        A float32 inner product errs by at most r * eps * |q| |key| (Higham 2002, section 3.1), and by the
        smallest normal number per term where products underflow. Twice for two scores, twice for safety.
        """
        eps, tiny = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
        return 4 * self.dim * (eps * self._table.largest_norm * norms(vectors) + tiny)

    def _approximate(self) -> Approximate | None:
        """The index that is due, built if it is not there; None where all keys are compared.

        It is whole before it is put in place, so that two searches at once do no harm.
        """
        due, cache = self.sizes.kind(len(self)), self._cache
        if cache is not None and cache.serves(len(self), due):
            return cache
        if due == "flat":
            return None
        rows = self._table.in_order()
        self._cache = cache = build(due, self._table.vectors[rows], rows)
        return cache

    # -- what is refused ----------------------------------------------------------------------

    def _check(self, edit_id: str, slot: int, keys: Tensor) -> None:
        """All of an edit but whether it is here already and its numbers are finite."""
        if not isinstance(edit_id, str) or not edit_id:
            raise EditError(f"edit id {edit_id!r}: expected a text of at least one character")
        if type(slot) is not int or not 0 <= slot < 2**63:
            raise EditError(f"edit {edit_id!r}: slot={slot!r}, expected a whole number from 0")
        reason = self._misshapen(keys)
        if reason is None and keys.shape[0] == 0:
            reason = "there are none: an edit needs at least one to be found by"
        if reason is not None:
            raise EditError(f"keys of edit {edit_id!r}: {reason}")

    def _check_known(self, edit_id: str) -> None:
        known = self._table.entries
        if edit_id not in known:
            hint = "the index is empty"
            if known:
                hint = did_you_mean(str(edit_id), known) if len(known) <= _HINTED else f"{len(known)} others have"
            raise EditError(f"edit {edit_id!r} has no keys here: {hint}")

    def _checked(self, queries: Tensor, k: int) -> NDArray[np.float32]:
        reason = self._misshapen(queries)
        if reason is not None:
            raise ConfigError(f"queries: {reason}")
        vectors = np.ascontiguousarray(queries.detach().cpu().numpy())
        if not (norms(vectors) <= _LONGEST).all():
            raise ConfigError(f"queries: {_NOT_FINITE}")
        if type(k) is not int or k < 1:
            raise ConfigError(f"k={k!r}: expected a whole number from 1")
        return vectors

    def _misshapen(self, vectors: Tensor) -> str | None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            return f"shape {list(vectors.shape)}, expected [n, {self.dim}]"
        if vectors.dtype != torch.float32:
            return f"dtype {vectors.dtype}, expected torch.float32: convert with .float()"
        return None


_NOT_FINITE = "NaN, infinity or a length beyond float32: they cannot be compared"


def _joined(edits: Sequence[tuple[str, int, Tensor]]) -> NDArray[np.float32]:
    """A copy of all their keys `[n, r]`. Raises EditError, with the edit, where one is not finite."""
    with torch.no_grad():
        keys: NDArray[np.float32] = torch.cat([each if each.is_cpu else each.cpu() for _, _, each in edits]).numpy()
    _check_usable([edit_id for edit_id, _, _ in edits], [each.shape[0] for _, _, each in edits], keys)
    return keys


def _check_usable(edit_ids: Sequence[str], sizes: Sequence[int], keys: NDArray[np.float32]) -> None:
    """Raises EditError, with the edit, where one of the keys `[n, r]` is not finite."""
    usable = norms(keys) <= _LONGEST
    if not usable.all():
        edit_id = edit_ids[int(np.searchsorted(np.cumsum(sizes), usable.argmin(), side="right"))]
        raise EditError(f"keys of edit {edit_id!r}: {_NOT_FINITE}")
