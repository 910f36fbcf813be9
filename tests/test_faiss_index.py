"""Searches of every kind: what they find is true, whatever happened before, and how much they find is measured."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from wise.errors import ConfigError
from wise.memory import faiss_index
from wise.memory.faiss_index import Hnsw, IvfPq, Kind, Sizes
from wise.memory.keys import KeyHits, KeyIndex

NEVER = 2**62
ALWAYS: dict[Kind, Sizes] = {
    "flat": Sizes(hnsw=NEVER, ivf_pq=NEVER),
    "hnsw": Sizes(hnsw=1, ivf_pq=NEVER),
    "ivf-pq": Sizes(hnsw=1, ivf_pq=2),
}
APPROXIMATE: tuple[Kind, ...] = ("hnsw", "ivf-pq")
DIM = 10  # not a whole number of codes
CLUSTERS = 12
each_kind = pytest.mark.parametrize("kind", list(ALWAYS))
each_approximate = pytest.mark.parametrize("kind", APPROXIMATE)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny searches: on a busy machine the threads' waiting for each other is all their time."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def clustered(count: int, seed: int, dim: int = DIM) -> Tensor:
    """Unit keys `[count, dim]` about a few centres, the same for every seed, as those of edits are about relations."""
    centres = torch.randn(CLUSTERS, dim, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    chosen = centres[torch.randint(CLUSTERS, (count,), generator=random)]
    return normalize(chosen + torch.randn(count, dim, generator=random), dim=1)


def filled(kind: Kind, keys: Tensor) -> KeyIndex:
    index = KeyIndex(keys.shape[1], sizes=ALWAYS[kind])
    index.add_all((f"{i:05}", i % 7, key[None]) for i, key in enumerate(keys))
    return index


def near(keys: Tensor, count: int, noise: float = 0.2) -> Tensor:
    """`[count, dim]` queries, each close to one of `keys`."""
    random = torch.Generator().manual_seed(5)
    meant = keys[torch.randint(len(keys), (count,), generator=random)]
    return normalize(meant + noise * torch.randn(meant.shape, generator=random) / keys.shape[1] ** 0.5, dim=1)


def rows(hits: KeyHits) -> list[list[tuple[float, int, str]]]:
    both = zip(hits.scores.tolist(), hits.slots.tolist(), hits.edit_ids, strict=True)
    return [list(zip(*row, strict=True)) for row in both]


def assert_true(hits: KeyHits, queries: Tensor, alive: dict[str, tuple[int, Tensor]], k: int) -> None:
    """As many keys as there are, all of edits that are here, in order, with scores and slots that are theirs."""
    wanted = min(k, sum(len(keys) for _, keys in alive.values()))
    for query, found in zip(queries, rows(hits), strict=True):
        assert found == sorted(found, key=lambda hit: (-hit[0], hit[2]))
        assert [hit for hit in found if not hit[2]] == [(-torch.inf, -1, "")] * (k - wanted)
        for score, slot, edit_id in found[:wanted]:
            its_slot, keys = alive[edit_id]
            scores = (keys.double() * query.double()).sum(dim=1).float()
            assert slot == its_slot and score in scores.tolist()
            assert sum(hit[2] == edit_id for hit in found) <= len(keys)


@each_kind
@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 6), st.sampled_from(["toggle", "replace", "many"]), st.booleans()),
        max_size=12,
    ),
    seed=st.integers(0, 1000),
    k=st.integers(1, 12),
)
def test_what_is_found_is_true_after_any_history(
    kind: Kind, steps: list[tuple[int, int, str, bool]], seed: int, k: int
) -> None:
    """Edits come, go and are replaced, one by one and by dozens; some steps search in between."""
    random = torch.Generator().manual_seed(seed)
    base = clustered(150, seed)
    index = filled(kind, base)
    alive = {f"{i:05}": (i % 7, key[None]) for i, key in enumerate(base)}
    queries = clustered(4, seed + 1)
    for number, count, action, look in steps:
        numbers = range(number, number + 25) if action == "many" else (number,)
        for edit_id in (f"{n:05}" for n in numbers):
            if edit_id in alive and action != "replace":
                index.remove(edit_id)
                del alive[edit_id]
                continue
            put = index.replace if edit_id in alive else index.add
            alive[edit_id] = (count, normalize(torch.randn(count, DIM, generator=random), dim=1))
            put(edit_id, *alive[edit_id])
        if look:
            assert_true(index.search(queries, k), queries, alive, k)
    assert_true(index.search(queries, k), queries, alive, k)
    afresh = KeyIndex(DIM, sizes=ALWAYS["flat"])
    afresh.add_all((edit_id, *alive[edit_id]) for edit_id in sorted(alive, reverse=True))
    exact = rows(afresh.search(queries, k))
    assert rows(index.search(queries, k, exact=True)) == exact
    if kind == "flat":
        assert rows(index.search(queries, k)) == exact
    (keys, slots), (others, other_slots) = index.matrix(), afresh.matrix()
    assert torch.equal(keys, others) and torch.equal(slots, other_slots)


@each_approximate
def test_what_is_false_would_be_seen(kind: Kind) -> None:
    """Negative control of the check above: an index that is not told of a removal."""
    keys = clustered(150, 0)
    index = filled(kind, keys)
    queries = near(keys, 4)
    hits = index.search(queries, 3)
    alive = {f"{i:05}": (i % 7, key[None]) for i, key in enumerate(keys)}
    assert_true(hits, queries, alive, 3)
    del alive[hits.edit_ids[0][0]]
    with pytest.raises(KeyError):
        assert_true(hits, queries, alive, 3)


@each_kind
def test_the_resident_matrix_and_faiss_agree(kind: Kind) -> None:
    keys = clustered(1500, 1)
    index = filled(kind, keys)
    queries = torch.cat([near(keys, 60), clustered(60, 2)])
    resident, slots = index.matrix()
    best = (queries.double() @ resident.double().T).float().topk(5, dim=1)
    exact = index.search(queries, 5, exact=True)
    assert torch.equal(exact.scores, best.values) and torch.equal(exact.slots, slots[best.indices])
    found = index.search(queries[:60])
    assert index.kind == kind
    assert torch.equal(found.scores, best.values[:60, :1]) and torch.equal(found.slots, exact.slots[:60, :1])


@each_approximate
def test_recall_is_as_stated(kind: Kind) -> None:
    keys = clustered(3000, 3, dim=32)
    index = filled(kind, keys)
    assert index.recall(near(keys, 200), 1) >= 0.99
    assert index.recall(near(keys, 200), 10) >= 0.95
    exact = filled("flat", keys)
    assert exact.recall(clustered(50, 4, dim=32), 10) == 1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ivf-pq", {"IVF_LEAST_PROBED": 1}),
        ("ivf-pq", {"IVF_CANDIDATES": 1, "IVF_LEAST_CANDIDATES": 0}),
        ("hnsw", {"HNSW_SEARCH_EFFORT": 1, "HNSW_LINKS": 4}),
    ],
)
def test_recall_tells_an_index_that_looks_too_little(
    kind: Kind, settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, queries = clustered(3000, 3, dim=32), clustered(200, 4, dim=32)
    usual = filled(kind, keys).recall(queries, 10)
    for name, value in settings.items():
        monkeypatch.setattr(faiss_index, name, value)
    assert filled(kind, keys).recall(queries, 10) < usual - 0.05


def test_recall_is_the_share_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, queries = clustered(3000, 3, dim=32), clustered(100, 4, dim=32)
    monkeypatch.setattr(faiss_index, "IVF_LEAST_PROBED", 1)
    index = filled("ivf-pq", keys)
    pairs = zip(index.search(queries, 10).edit_ids, index.search(queries, 10, exact=True).edit_ids, strict=True)
    share = sum(len(set(found) & set(true)) for found, true in pairs) / 1000
    assert index.recall(queries, 10) == pytest.approx(share) and share < 1


def test_recall_needs_something_to_recall() -> None:
    with pytest.raises(ConfigError, match="1 queries and 0 keys"):
        KeyIndex(DIM).recall(torch.ones(1, DIM))
    with pytest.raises(ConfigError, match="0 queries and 20 keys"):
        filled("flat", clustered(20, 0)).recall(torch.ones(0, DIM))


@each_approximate
def test_an_exact_search_builds_nothing(kind: Kind) -> None:
    keys = clustered(300, 1)
    index = filled(kind, keys)
    queries = clustered(20, 2)
    assert rows(index.search(queries, 4, exact=True)) == rows(filled("flat", keys).search(queries, 4))
    assert index._cache is None
    index.search(queries)
    assert index._cache is not None


@each_approximate
def test_the_dead_are_passed_over(kind: Kind) -> None:
    """All that lies nearest is removed, more of it than one search looks at."""
    keys = clustered(600, 1)
    query = keys[:1]
    index = filled(kind, keys)
    index.search(query)
    nearest = index.search(query, 100, exact=True).edit_ids[0]
    built = index._cache
    for edit_id in nearest:
        index.remove(edit_id)
    assert index._cache is built, "too few are dead for building again"
    found = index.search(query, 5).edit_ids[0]
    assert "" not in found and not set(found) & set(nearest)
    assert found[0] == index.search(query, exact=True).edit_ids[0][0]
    dead = {int(edit_id) for edit_id in nearest}
    proposed = set(built.search(query.numpy(), 20, 1)[1][0].tolist())  # type: ignore[union-attr]
    # Negative control: a graph does propose the dead. Lists do not hold them any more.
    assert proposed <= dead if kind == "hnsw" else not proposed & dead


@each_approximate
def test_what_comes_is_found_without_building_again(kind: Kind) -> None:
    keys = clustered(400, 1)
    index = filled(kind, keys[:300])
    index.search(keys[:1])
    built = index._cache
    for i in range(300, 350):
        index.add(f"{i:05}", 0, keys[i : i + 1])
        index.replace(f"{i - 300:05}", 1, keys[i + 50 : i + 51])
    found = [edit_ids[0] for edit_ids in index.search(keys[300:]).edit_ids]
    assert found == [f"{i:05}" for i in (*range(300, 350), *range(50))]
    assert index._cache is built


@each_kind
def test_nothing_is_left_of_a_key_that_is_removed(kind: Kind) -> None:
    keys = clustered(50, 1)
    index = filled(kind, keys)
    assert keys[7].tolist() in index._table.vectors.tolist()
    index.remove("00007")
    assert keys[7].tolist() not in index._table.vectors.tolist()


@each_kind
def test_many_removals_compact_the_table(kind: Kind) -> None:
    keys = clustered(200, 1)
    index = filled(kind, keys)
    index.search(keys[:1])
    for i in range(190):
        index.remove(f"{i:05}")
        assert index._table.rows <= len(index) * 4 / 3 + 1
    assert rows(index.search(keys[195:196]))[0][0][2] == "00195"
    for _ in range(300):
        index.replace("00195", 1, keys[:1])
    assert index._table.rows < 30
    assert rows(index.search(keys[:1]))[0][0][1:] == (1, "00195")


@each_approximate
def test_what_is_built_depends_on_the_edits_alone(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the order in which they came, nor on threads: also what is missed by looking too little is the same."""
    monkeypatch.setattr(faiss_index, "HNSW_SEARCH_EFFORT", 1)
    monkeypatch.setattr(faiss_index, "IVF_LEAST_PROBED", 1)
    keys = clustered(800, 1, dim=32)
    forwards = filled(kind, keys)
    backwards = KeyIndex(32, sizes=ALWAYS[kind])
    backwards.add("other", 0, keys[:1])
    for i in reversed(range(800)):
        backwards.add(f"{i:05}", i % 7, keys[i : i + 1])
    backwards.remove("other")
    queries = clustered(100, 2, dim=32)
    faiss.omp_set_num_threads(2)
    try:
        assert rows(forwards.search(queries, 3)) == rows(backwards.search(queries, 3))
        assert forwards.recall(queries, 3) < 1
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(1)


@each_approximate
def test_searches_may_run_side_by_side(kind: Kind) -> None:
    keys, queries = clustered(600, 1), clustered(64, 2)
    expected = rows(filled(kind, keys).search(queries, 5))
    index = filled(kind, keys)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: rows(index.search(queries[i : i + 1], 5))[0], range(64)))
    assert found == expected


# -- sizes ------------------------------------------------------------------------------------


def test_the_kind_follows_the_size() -> None:
    keys = clustered(600, 1)
    index = KeyIndex(DIM, sizes=Sizes(hnsw=50, ivf_pq=200))
    kinds: list[Kind] = []
    for i, key in enumerate(keys):
        index.add(f"{i:05}", 0, key[None])
        index.search(key[None])
        kinds.append(index.kind)
    assert kinds == ["flat"] * 49 + ["hnsw"] * 150 + ["ivf-pq"] * 401
    for i in reversed(range(20, 600)):
        index.remove(f"{i:05}")
        assert index.search(keys[:1]).edit_ids == [["00000"]]
        kinds.append(index.kind)
    assert list(dict.fromkeys(kinds[600:])) == ["ivf-pq", "hnsw", "flat"]


def test_an_index_at_the_border_is_not_built_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    class Counted(Hnsw):
        def __init__(self, keys: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
            super().__init__(keys, rows)
            built.append(len(keys))

    monkeypatch.setattr(faiss_index, "Hnsw", Counted)
    keys = clustered(50, 1)
    index = KeyIndex(DIM, sizes=Sizes(hnsw=50, ivf_pq=200))
    index.add_all((f"{i:05}", 0, key[None]) for i, key in enumerate(keys))
    for _ in range(10):
        index.search(keys[:1])
        index.remove("00007")
        index.search(keys[:1])
        index.add("00007", 0, keys[7:8])
    assert built == [50]


def test_ivf_pq_is_made_anew_when_outgrown() -> None:
    keys = clustered(500, 1)
    index = filled("ivf-pq", keys[:200])
    sizes = []
    for i in range(200, 500):
        index.search(keys[:1])
        assert isinstance(index._cache, IvfPq)
        sizes.append(index._cache.built_from)
        index.add(f"{i:05}", 0, keys[i : i + 1])
    assert dict.fromkeys(sizes) == {200: None, 400: None}


@pytest.mark.parametrize(("count", "dim"), [(2, 1), (3, 5), (40, 1), (300, 7)])
def test_ivf_pq_of_few_or_odd_keys(count: int, dim: int, capfd: pytest.CaptureFixture[str]) -> None:
    keys = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    table = IvfPq(keys.numpy(), torch.arange(count).numpy())
    assert set(table.search(keys.numpy(), 1, 1000)[1].flatten().tolist()) <= set(range(count))
    assert capfd.readouterr() == ("", ""), "FAISS does not complain on stderr"


def test_sizes() -> None:
    sizes = Sizes(hnsw=10, ivf_pq=20)
    kinds = [sizes.kind(count) for count in (0, 9, 10, 19, 20, 10**9)]
    assert kinds == ["flat", "flat", "hnsw", "hnsw", "ivf-pq", "ivf-pq"]
    for hnsw, ivf_pq in ((0, 20), (21, 20), (1, 1)):
        with pytest.raises(ConfigError, match=f"hnsw={hnsw}, ivf_pq={ivf_pq}: expected"):
            Sizes(hnsw=hnsw, ivf_pq=ivf_pq)
