"""The key index answers like a plain search over all keys, whatever happened to it before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from wise.memory.keys import KeyIndex, _flat

DIM = 3
IDS = ("a", "b", "c", "d", "e", "f")
Ranking = list[list[tuple[float, str]]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny searches: on a busy machine the threads' waiting for each other is all their time."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def coarse(generator: torch.Generator, count: int) -> Tensor:
    """Vectors on a small grid: many are equal and many scores tie."""
    return torch.randint(-1, 2, (count, DIM), generator=generator).float()


def clustered(count: int, seed: int) -> Tensor:
    """Unit keys `[count, 10]` about a few centres, the same for every seed, as those of edits are about relations."""
    centres = torch.randn(12, 10, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    return normalize(centres[torch.randint(12, (count,), generator=random)] + torch.randn(count, 10, generator=random))


def index_of(keys: Mapping[str, Tensor], dim: int = DIM) -> KeyIndex:
    index = KeyIndex(dim)
    if keys:
        index.add_rows([*keys], [len(own) for own in keys.values()], torch.cat([*keys.values()]))
    return index


def one_each(keys: Tensor) -> dict[str, Tensor]:
    return {f"{i:05}": key[None] for i, key in enumerate(keys)}


def random_keys(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"edit-{i:03}": torch.randn(1 + i % 3, 16, generator=generator) for i in range(count)}


def brute_force(keys: Mapping[str, Tensor], queries: Tensor, k: int) -> Ranking:
    owned = [(edit_id, key) for edit_id in sorted(keys) for key in keys[edit_id]]
    if not owned:
        return [[] for _ in queries]
    scores = (queries.double() @ torch.stack([key for _, key in owned]).double().T).float()
    best = scores.sort(dim=1, descending=True, stable=True)  # stable: ties stay in order of edit id
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [[(s, owned[i][0]) for s, i in zip(values[:k], at[:k], strict=True)] for values, at in rows]


def search(index: KeyIndex, queries: Tensor, k: int = 1) -> Ranking:
    return [index.search(query, k) for query in queries]


def edits_of(hits: Ranking) -> list[list[str]]:
    return [[edit_id for _, edit_id in of_query] for of_query in hits]


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(IDS), st.integers(1, 12), st.booleans(), st.booleans()), max_size=25
    ),
    seed=st.integers(0, 1000),
    k=st.integers(1, 40),
)
def test_searches_are_brute_force_after_any_history(
    steps: list[tuple[str, int, bool, bool]], seed: int, k: int
) -> None:
    """Each step adds an edit or removes it; some go on with a copy, and what was copied keeps its own keys."""
    generator = torch.Generator().manual_seed(seed)
    queries = coarse(generator, 4)
    index, alive = KeyIndex(DIM), dict[str, Tensor]()
    left: list[tuple[KeyIndex, dict[str, Tensor]]] = []
    for edit_id, count, copies, goes_on_with_the_copy in steps:
        if copies:
            other = index.copy()
            left.append((index if goes_on_with_the_copy else other, dict(alive)))
            index = other if goes_on_with_the_copy else index
        if edit_id in alive:
            index.remove(edit_id)
            del alive[edit_id]
        else:
            alive[edit_id] = coarse(generator, count)
            index.add_rows([edit_id], [count], alive[edit_id])
        assert search(index, queries, k) == brute_force(alive, queries, k)
    for each, keys in (*left, (index, alive)):
        assert search(each, queries, k) == brute_force(keys, queries, k)
        assert {*each._entries} == {*keys} and len(each) == sum(map(len, keys.values()))
        for least in (-1.0, 0.0, 1.0, 2.0):
            near = {edit_id for edit_id, own in keys.items() if bool((own @ queries.T >= least).any())}
            assert each.within(queries, least) == near


def test_searches_are_brute_force_on_real_valued_keys() -> None:
    keys = random_keys(200)
    queries = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    assert search(index_of(keys, 16), queries, 7) == brute_force(keys, queries, 7)


def test_a_crowd_of_equal_keys_goes_to_the_first_ids() -> None:
    """More ties than one FAISS search looks at, added last to first."""
    key = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    index = index_of({f"{edit:03}": key for edit in reversed(range(300))}, 8)
    assert edits_of(search(index, key, 3)) == [["000", "001", "002"]]
    # Negative control: FAISS alone, which numbers keys as they came, does not give the last three added.
    assert _flat(key.numpy(), index._vectors[:300], 3)[1].tolist() != [[299, 298, 297]]


def test_scores_closer_than_rounding_are_ranked_exactly() -> None:
    """Large terms cancel: in float32 their order decides the score, in float64 the small term does."""
    generator = torch.Generator().manual_seed(0)
    halves = torch.randn(32, generator=generator)
    keys = {}
    for edit in range(200):
        key = torch.cat([halves, -halves])[torch.randperm(64, generator=generator)]
        keys[f"{edit:03}"] = torch.cat([torch.tensor([edit * 2**-40]), key])[None]
    index, query = index_of(keys, 65), torch.ones(1, 65)
    hits = search(index, query, 3)
    assert hits == [[(199 * 2**-40, "199"), (198 * 2**-40, "198"), (197 * 2**-40, "197")]]
    # Negative control: FAISS alone does not have the best key, numbered 199, even among its first 11.
    assert 199 not in _flat(query.numpy(), index._vectors[:200], 11)[1]


def test_searches_may_run_side_by_side() -> None:
    keys, queries = one_each(clustered(600, 1)), clustered(64, 2)
    index = index_of(keys, 10)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: index.search(query, 5), queries))
    assert found == brute_force(keys, queries, 5)


def test_the_dead_are_passed_over() -> None:
    """All that is nearest is removed, more than one search looks at; every other key is behind the zeroed ones."""
    keys = one_each(clustered(600, 1))
    query = keys["00000"]
    index = index_of({edit_id: key - 2 * query for edit_id, key in keys.items()}, 10)
    (nearest,) = edits_of(search(index, query, 100))
    for edit_id in nearest:
        index.remove(edit_id)
    assert len(index._owners) == 600, "too few are dead for compacting"
    left = {edit_id: key - 2 * query for edit_id, key in keys.items() if edit_id not in nearest}
    assert search(index, query, 5) == brute_force(left, query, 5)
    # Negative control: FAISS alone proposes the dead, whose inner product is 0.
    assert _flat(query.numpy(), index._vectors[:600], 20)[0].tolist() == [[0.0] * 20]


def test_nothing_is_left_of_a_key_that_is_removed() -> None:
    keys = one_each(clustered(50, 1))
    index = index_of(keys, 10)
    assert keys["00007"][0].tolist() in index._vectors[:50].tolist()
    index.remove("00007")
    assert keys["00007"][0].tolist() not in index._vectors[:50].tolist()


def test_many_removals_compact_the_rows() -> None:
    keys = one_each(clustered(200, 1))
    index = index_of(keys, 10)
    for i in range(190):
        index.remove(f"{i:05}")
        assert len(index._owners) <= len(index) * 4 / 3 + 1
    assert edits_of(search(index, keys["00195"])) == [["00195"]]
    for _ in range(300):
        index.remove("00195")
        index.add_rows(["00195"], [1], keys["00000"])
    assert len(index._owners) < 30
    assert edits_of(search(index, keys["00000"])) == [["00195"]]


def test_one_more_edit_moves_no_other() -> None:
    """Neither added to an index, nor to its copy: the rows are shared."""
    index = index_of(one_each(clustered(1000, 1)), 10)
    keys = clustered(100, 2)
    arrays = set()
    for i, key in enumerate(keys):
        index = index.copy()
        index.add_rows([f"more-{i}"], [1], key[None])
        arrays.add(index._vectors.__array_interface__["data"][0])
    assert len(arrays) == 1
    index.remove("more-3")  # negative control
    assert index._vectors.__array_interface__["data"][0] not in arrays


def test_an_index_of_few_keys_finds_fewer() -> None:
    index = KeyIndex(DIM)
    assert index.search(torch.ones(DIM), 2) == []
    index.add_rows(["a"], [1], torch.ones(1, DIM))
    assert index.search(torch.ones(DIM), 2) == [(3.0, "a")]
    index.remove("a")
    assert index.search(torch.ones(DIM)) == []


def test_keys_are_copied_in() -> None:
    keys = torch.ones(1, DIM, requires_grad=True)
    index = index_of({"a": keys})
    with torch.no_grad():
        keys.fill_(5)
    assert index.search(torch.ones(DIM)) == [(3.0, "a")]


def test_faiss_is_imported_by_the_first_search_only() -> None:
    code = (
        "import sys, torch; from wise.memory.keys import KeyIndex; index = KeyIndex(2);"
        "index.add_rows(['a'], [1], torch.ones(1, 2)); print('faiss' in sys.modules);"
        "index.search(torch.ones(2)); print('faiss' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
