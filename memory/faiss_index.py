"""FAISS over edit keys: three kinds of search, each a cache that can be made again from the keys.

    flat      every key is compared: exact, nothing to build
    hnsw      a graph of near neighbours is walked
    ivf-pq    keys lie in lists around centres, in compressed form; a few lists are read

They propose rows of the key table; `KeyIndex` scores these anew from the keys themselves. What is built is a function
of the keys and their order alone: seeds are fixed, and building is left to one thread.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wise.errors import ConfigError

logger = logging.getLogger(__name__)

Kind = Literal["flat", "hnsw", "ivf-pq"]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and rows `[m, width]`, best first by FAISS's own arithmetic; rows of -1 where it found no more."""

SPARE = 8
"""Candidates beyond those wanted: enough that a tie at the cut, or a dead row, rarely costs a second search."""

# The figures below: synthetic clustered keys, one thread of a 2-core machine, the 10 nearest of queries that
# are related to no key. Of the 10 nearest of an edit asked again in other words all these settings find 0.99 and more.
HNSW_LINKS = 32
HNSW_BUILD_EFFORT = 80
HNSW_SEARCH_EFFORT = 192
"""Nodes kept in view: at 50,000 keys 96 / 128 / 192 / 256 find 0.77 / 0.82 / 0.89 / 0.92, in 0.12 / 0.17 / 0.28 / 0.37
of flat's time."""
IVF_LISTS = 4.0
"""Lists per square root of the number of keys. At 20,000 keys half as many find 0.78 in place of 0.93."""
IVF_PROBED = 0.05
"""Share of the lists that is read: at 100,000 keys 1/30, 1/20, 1/12 find 0.94, 0.96, 0.98, in 0.06, 0.08, 0.12 of
flat's time."""
IVF_LEAST_PROBED = 8
IVF_TRAINED_ON = 40
"""Keys per centre in training; FAISS asks for 39."""
IVF_ROUNDS = 5
"""Of training; with eight no more is found."""
PQ_DIMS = 4
"""Dimensions to a byte: with 8, 0.84 is found in place of 0.97 at 100,000 keys, with 132 candidates."""
IVF_CANDIDATES, IVF_LEAST_CANDIDATES = 6, 32
"""Per key wanted, and beyond these: their order is that of compressed keys."""
OUTGROWN = 2
"""Lists and codes are made anew once there are so many times the keys they were made from."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """From how many keys on which kind of search is used.

    A query alone takes flat 1.6 ms at 30,000 keys and 4.8 at 100,000, HNSW 1.1 and 0.6, IVF-PQ 0.4 and 0.7. Of many
    queries at once each takes flat a sixth of that, and HNSW is the slower one at 60,000 still. On these keys IVF-PQ is
    faster than HNSW, finds more and is built sooner, but must be made anew whenever the number of keys has doubled.
    So HNSW, which need not, has the middle, where that is often.
    """

    hnsw: int = 30_000
    ivf_pq: int = 60_000

    def __post_init__(self) -> None:
        if not 1 <= self.hnsw <= self.ivf_pq or self.ivf_pq < 2:
            raise ConfigError(
                f"hnsw={self.hnsw}, ivf_pq={self.ivf_pq}: expected 1 <= hnsw <= ivf_pq, and 2 keys to train IVF-PQ from"
            )

    def kind(self, count: int) -> Kind:
        """The kind for `count` keys."""
        if count >= self.ivf_pq:
            return "ivf-pq"
        return "hnsw" if count >= self.hnsw else "flat"


class Approximate(ABC):
    """A FAISS index that knows keys by their rows, and may miss some."""

    kind: ClassVar[Kind]

    def __init__(self, index: Any, count: int) -> None:
        """count: the number of keys it was built from."""
        self._index = index
        self.built_from = count

    @abstractmethod
    def width(self, wanted: int) -> int:
        """Candidates to ask for, so that the best `wanted` are likely among them."""

    @abstractmethod
    def search(self, queries: NDArray[np.float32], width: int, effort: int) -> Found:
        """`effort` times the usual work; `queries` `[m, r]`."""

    def add(self, keys: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Keys `[n, r]` that came, known by `rows` `[n]`."""
        with _one_thread():
            self._index.add_with_ids(keys, rows)

    @abstractmethod
    def remove(self, rows: NDArray[np.int64]) -> None:
        """Rows that died: they may still be proposed."""

    @abstractmethod
    def serves(self, count: int, due: Kind) -> bool:
        """Whether it still does for `count` keys, for which `due` would be built."""


class Hnsw(Approximate):
    kind = "hnsw"

    def __init__(self, keys: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        faiss = _faiss()
        graph = faiss.IndexHNSWFlat(keys.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = HNSW_BUILD_EFFORT
        super().__init__(faiss.IndexIDMap(graph), len(keys))
        self.add(keys, rows)

    def width(self, wanted: int) -> int:
        return wanted + SPARE

    def search(self, queries: NDArray[np.float32], width: int, effort: int) -> Found:
        kept = max(HNSW_SEARCH_EFFORT * effort, 2 * width)
        found: Found = self._index.search(queries, width, params=_faiss().SearchParametersHNSW(efSearch=kept))
        return found

    def remove(self, rows: NDArray[np.int64]) -> None:
        """FAISS cannot take a node out of a graph: the dead stay, until the table is compacted."""

    def serves(self, count: int, due: Kind) -> bool:
        return due != "ivf-pq"


class IvfPq(Approximate):
    kind = "ivf-pq"

    def __init__(self, keys: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        faiss = _faiss()
        count, padded = len(keys), self._padded(keys)
        lists = max(1, min(round(IVF_LISTS * count**0.5), count // IVF_TRAINED_ON))
        dim = padded.shape[1]
        bits = min(8, count.bit_length() - 1)  # a code has at most as many values as there are keys
        centres = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFPQ(centres, dim, lists, dim // PQ_DIMS, bits, faiss.METRIC_INNER_PRODUCT)
        for clustering in (index.cp, index.pq.cp):
            clustering.niter = IVF_ROUNDS
            clustering.max_points_per_centroid = IVF_TRAINED_ON
            clustering.min_points_per_centroid = 1  # else it complains of small memories on stderr
            clustering.seed = 0
        with _one_thread():
            index.train(padded)
        index.set_direct_map_type(faiss.DirectMap.Hashtable)  # what makes a removal cheap
        super().__init__(index, count)
        self.add(keys, rows)

    def width(self, wanted: int) -> int:
        return IVF_CANDIDATES * wanted + IVF_LEAST_CANDIDATES

    def search(self, queries: NDArray[np.float32], width: int, effort: int) -> Found:
        lists = self._index.nlist
        probed = min(lists, effort * max(IVF_LEAST_PROBED, round(IVF_PROBED * lists)))
        parameters = _faiss().SearchParametersIVF(nprobe=probed)
        found: Found = self._index.search(self._padded(queries), width, params=parameters)
        return found

    def add(self, keys: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        super().add(self._padded(keys), rows)

    def remove(self, rows: NDArray[np.int64]) -> None:
        faiss = _faiss()
        self._index.remove_ids(faiss.IDSelectorArray(len(rows), faiss.swig_ptr(rows)))

    def serves(self, count: int, due: Kind) -> bool:
        return count < OUTGROWN * self.built_from

    @staticmethod
    def _padded(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[n, r]` with zeros up to whole codes; no inner product changes."""
        missing = -vectors.shape[1] % PQ_DIMS
        return np.pad(vectors, ((0, 0), (0, missing))) if missing else vectors


def build(kind: Kind, keys: NDArray[np.float32], rows: NDArray[np.int64]) -> Approximate:
    """The index of kind "hnsw" or "ivf-pq" over keys `[n, r]`, known by `rows` `[n]`."""
    logger.info("building a search index of kind %s over %d keys", kind, len(keys))
    return Hnsw(keys, rows) if kind == "hnsw" else IvfPq(keys, rows)


def flat(queries: NDArray[np.float32], keys: NDArray[np.float32], width: int) -> Found:
    """The best `width` of all keys `[n, r]` for each of `queries` `[m, r]`."""
    faiss = _faiss()
    found: Found = faiss.knn(queries, keys, width, metric=faiss.METRIC_INNER_PRODUCT)
    return found


def _faiss() -> Any:
    import faiss  # here, so that importing wise stays light

    return faiss


@contextmanager
def _one_thread() -> Iterator[None]:
    """With several, FAISS does not promise in which order keys come into a graph, and so how they are linked."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
