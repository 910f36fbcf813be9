"""The index of edit keys: which edits lie nearest to a query, by inner product.

The keys are the truth. The FAISS index is a cache over them: built at the first search, kept up to
date by `add` and `remove`, never stored. What a search answers is a function of the set of edits alone,
not of the order in which they came, nor of the other queries in the batch: FAISS proposes candidates,
and these are ranked by their float64 inner product rounded to float32, ties by edit id and position.
Keys and queries are compared as they are; to compare directions, normalise both first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wise.errors import ArtifactError, ConfigError, EditError, did_you_mean

# Candidates asked of FAISS beyond those wanted: enough that a tie at the cut rarely costs a second search.
_SPARE = 8


@dataclass(frozen=True, kw_only=True)
class KeyHits:
    """The nearest keys of `m` queries, best first. Where an index has fewer than `k`: -inf, -1 and ""."""

    scores: Tensor
    """`[m, k]` float32 inner products."""
    slots: Tensor
    """`[m, k]` int64."""
    edit_ids: list[list[str]]
    """`[m][k]`."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    slot: int
    keys: Tensor
    """`[n, r]` float32 on the CPU."""
    first: int
    """FAISS knows key i of this edit as `first + i`."""


class KeyIndex:
    """Edit keys `[n, r]` float32, each owned by an edit that lives in a slot. All on the CPU."""

    def __init__(self, dim: int) -> None:
        """dim: r, the size of a key. Raises ConfigError if it is not a whole number from 1."""
        if type(dim) is not int or dim < 1:
            raise ConfigError(f"dim={dim!r}: expected a whole number from 1")
        self.dim = dim
        self._entries: dict[str, _Entry] = {}
        self._owners: dict[int, tuple[str, int]] = {}  # FAISS id -> edit id, position
        self._next = 0
        self._largest_norm = 0.0
        self._index: Any = None

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._owners)

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """The edits that have keys here, sorted."""
        return tuple(sorted(self._entries))

    def add(self, edit_id: str, slot: int, keys: Tensor) -> None:
        """Add the keys `[n, r]` of one edit. They are copied.

        Raises EditError, and adds nothing, if the id is already here or empty, the slot is negative,
        or the keys are not n >= 1 finite float32 vectors of size r.
        """
        if not isinstance(edit_id, str) or not edit_id:
            raise EditError(f"edit id {edit_id!r}: expected a text of at least one character")
        if edit_id in self._entries:
            raise EditError(f"edit {edit_id!r} already has keys: remove it first or choose another id")
        if type(slot) is not int or not 0 <= slot < 2**63:
            raise EditError(f"edit {edit_id!r}: slot={slot!r}, expected a whole number from 0")
        reason = self._unusable(keys)
        if reason is None and len(keys) == 0:
            reason = "there are none: an edit needs at least one to be found by"
        if reason is not None:
            raise EditError(f"keys of edit {edit_id!r}: {reason}")
        entry = _Entry(slot=slot, keys=keys.detach().to("cpu", copy=True).contiguous(), first=self._next)
        if self._index is not None:
            self._index.add_with_ids(entry.keys.numpy(), _faiss_ids(entry))
        self._entries[edit_id] = entry
        self._owners.update({entry.first + i: (edit_id, i) for i in range(len(keys))})
        self._next += len(keys)
        self._largest_norm = max(self._largest_norm, float(_norms(entry.keys.numpy()).max()))

    def remove(self, edit_id: str) -> None:
        """Forget all keys of one edit. Raises EditError if it has none."""
        if edit_id not in self._entries:
            hint = did_you_mean(str(edit_id), self._entries) if self._entries else "the index is empty"
            raise EditError(f"edit {edit_id!r} has no keys here: {hint}")
        entry = self._entries.pop(edit_id)
        if self._index is not None:
            self._index.remove_ids(_faiss_ids(entry))
        for faiss_id in _faiss_ids(entry).tolist():
            del self._owners[faiss_id]

    def search(self, queries: Tensor, k: int = 1) -> KeyHits:
        """The `k` keys with the largest inner product for each of `queries` `[m, r]`.

        Keys of equal score come in order of edit id, then of position within the edit.

        Raises ConfigError if the queries are not finite float32 vectors of size r, or `k` is under 1.
        """
        reason = self._unusable(queries)
        if reason is not None:
            raise ConfigError(f"queries: {reason}")
        if type(k) is not int or k < 1:
            raise ConfigError(f"k={k!r}: expected a whole number from 1")
        vectors = np.ascontiguousarray(queries.detach().cpu().numpy())
        rows = len(vectors)
        scores = torch.full((rows, k), -torch.inf)
        slots = torch.full((rows, k), -1, dtype=torch.int64)
        edit_ids = [[""] * k for _ in range(rows)]
        for row, candidates in self._candidates(vectors, min(k, len(self))):
            for rank, (score, edit_id) in enumerate(self._ranked(vectors[row], candidates)[:k]):
                scores[row, rank] = score
                slots[row, rank] = self._entries[edit_id].slot
                edit_ids[row][rank] = edit_id
        return KeyHits(scores=scores, slots=slots, edit_ids=edit_ids)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """The resident form for forward: keys `[n, r]`, slots `[n]` int64, by edit id and position."""
        entries = [self._entries[edit_id] for edit_id in self.edit_ids]
        if not entries:
            return torch.empty(0, self.dim), torch.empty(0, dtype=torch.int64)
        counts = torch.tensor([len(entry.keys) for entry in entries])
        slots = torch.tensor([entry.slot for entry in entries], dtype=torch.int64)
        return torch.cat([entry.keys for entry in entries]), slots.repeat_interleave(counts)

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """What `from_state` needs: `keys` `[n, r]`, `slots` and `counts` `[e]` int64; the `e` edit ids.

        Equal for equal sets of edits, byte for byte.
        """
        ids = list(self.edit_ids)
        entries = [self._entries[edit_id] for edit_id in ids]
        tensors = {
            "keys": self.matrix()[0],
            "slots": torch.tensor([entry.slot for entry in entries], dtype=torch.int64),
            "counts": torch.tensor([len(entry.keys) for entry in entries], dtype=torch.int64),
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
        ends = counts.to(torch.int64).cumsum(0).tolist()
        try:
            index = cls(keys.shape[1])
            for edit_id, slot, start, end in zip(edit_ids, slots.tolist(), [0, *ends], ends, strict=False):
                index.add(edit_id, slot, keys[start:end])
        except (ConfigError, EditError) as error:
            raise ArtifactError(f"key index is damaged, restore another version: {error}") from error
        return index

    def _candidates(self, vectors: NDArray[np.float32], wanted: int) -> Iterator[tuple[int, list[int]]]:
        """For each row of `vectors`, FAISS ids among which the best `wanted` keys certainly are.

        FAISS scores in float32 and breaks ties by its own storage order, so a search is widened until its
        worst candidate trails the last wanted one by more than rounding can explain.
        """
        if wanted == 0:
            return
        index = self._faiss()
        slack = self._rounding(vectors)
        pending, width = np.arange(len(vectors)), min(wanted + _SPARE, len(self))
        while pending.size:
            scores, ids = index.search(vectors[pending], width)
            settled = scores[:, -1] < scores[:, wanted - 1] - slack[pending]
            if width == len(self):
                settled[:] = True
            for place in np.flatnonzero(settled):
                yield int(pending[place]), ids[place].tolist()
            pending, width = pending[~settled], min(2 * width, len(self))

    def _ranked(self, query: NDArray[np.float32], candidates: list[int]) -> list[tuple[float, str]]:
        """Score and edit id of each candidate, best first."""
        owners = [self._owners[faiss_id] for faiss_id in candidates]
        keys = np.stack([self._entries[edit_id].keys[position].numpy() for edit_id, position in owners])
        # Summed row by row, as no BLAS kernel promises to do: equal keys get equal scores.
        scores = (keys.astype(np.float64) * query).sum(axis=1).astype(np.float32).tolist()
        best = sorted(zip(scores, owners, strict=True), key=lambda hit: (-hit[0], hit[1]))
        return [(score, edit_id) for score, (edit_id, _) in best]

    def _rounding(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """`[m]` bound on how far rounding can shift the difference of two scores.

        A float32 inner product errs by at most r * eps * |q| |key| (Higham 2002, section 3.1), and by the
        smallest normal number per term where products underflow. Twice for two scores, twice for safety.
        """
        eps, tiny = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
        return 4 * self.dim * (eps * self._largest_norm * _norms(vectors) + tiny)

    def _faiss(self) -> Any:
        if self._index is None:
            import faiss  # here, so that importing wise stays light

            index = faiss.IndexIDMap(faiss.IndexFlatIP(self.dim))
            if self._entries:
                keys = torch.cat([entry.keys for entry in self._entries.values()]).numpy()
                index.add_with_ids(keys, np.concatenate([_faiss_ids(e) for e in self._entries.values()]))
            self._index = index
        return self._index

    def _unusable(self, vectors: Tensor) -> str | None:
        """Why `vectors` cannot be compared with the keys here, if so."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            return f"shape {list(vectors.shape)}, expected [n, {self.dim}]"
        if vectors.dtype != torch.float32:
            return f"dtype {vectors.dtype}, expected torch.float32: convert with .float()"
        if not bool(vectors.detach().square().sum(dim=1).isfinite().all()):
            return "NaN, infinity or a length beyond float32: they cannot be compared"
        return None


def _faiss_ids(entry: _Entry) -> NDArray[np.int64]:
    return np.arange(entry.first, entry.first + len(entry.keys), dtype=np.int64)


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """`[n, r] -> [n]`."""
    norms: NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return norms
