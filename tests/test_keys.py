"""The key index answers like a plain search over its own matrix, whatever happened to it before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wise.errors import ArtifactError, ConfigError, EditError
from wise.memory.faiss_index import flat
from wise.memory.keys import KeyHits, KeyIndex

DIM = 3
IDS = ("a", "b", "c", "d", "e", "f")
Ranking = list[list[tuple[float, int, str]]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny searches: on a busy machine the threads' waiting for each other is all their time."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def coarse(generator: torch.Generator, count: int, dim: int = DIM) -> Tensor:
    """Vectors on a small grid: many are equal and many scores tie."""
    return torch.randint(-1, 2, (count, dim), generator=generator).float()


def owners(index: KeyIndex) -> list[str]:
    """The edit id of each row of the matrix."""
    tensors, ids = index.state()
    counts = tensors["counts"].tolist()
    return [edit_id for edit_id, count in zip(ids, counts, strict=True) for _ in range(count)]


def brute_force(index: KeyIndex, queries: Tensor, k: int) -> Ranking:
    keys, slots = index.matrix()
    ids = owners(index)
    scores = (queries.double() @ keys.double().T).float()
    best = scores.sort(dim=1, descending=True, stable=True)  # stable: ties stay in the matrix's order
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    missing = [(-torch.inf, -1, "")] * max(0, k - len(ids))
    return [
        [(s, int(slots[i]), ids[i]) for s, i in zip(values[:k], places[:k], strict=True)] + missing
        for values, places in rows
    ]


def ranking(hits: KeyHits) -> Ranking:
    rows = zip(hits.scores.tolist(), hits.slots.tolist(), hits.edit_ids, strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def filled(count: int, dim: int = 16, seed: int = 0) -> KeyIndex:
    generator = torch.Generator().manual_seed(seed)
    index = KeyIndex(dim)
    for edit in range(count):
        index.add(f"edit-{edit:03}", edit % 5, torch.randn(1 + edit % 3, dim, generator=generator))
    return index


@settings(deadline=None, derandomize=True, max_examples=60)
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
    """Each step puts an edit in with new keys, or, if it is in, takes it out or replaces it; some search in between."""
    generator = torch.Generator().manual_seed(seed)
    queries = coarse(generator, 4)
    index = KeyIndex(DIM)
    alive: dict[str, tuple[int, Tensor]] = {}
    for edit_id, count, stays, look in steps:
        if edit_id in alive and not stays:
            index.remove(edit_id)
            del alive[edit_id]
        else:
            put = index.replace if edit_id in alive else index.add
            alive[edit_id] = (count % 3, coarse(generator, count))
            put(edit_id, *alive[edit_id])
        if look:
            assert ranking(index.search(queries, k)) == brute_force(index, queries, k)
    assert ranking(index.search(queries, k)) == brute_force(index, queries, k)
    fresh = KeyIndex(DIM)
    for edit_id in sorted(alive, reverse=True):
        fresh.add(edit_id, *alive[edit_id])
    assert_same_bytes(index, fresh)
    assert ranking(fresh.search(queries, k)) == ranking(index.search(queries, k))


def assert_same_bytes(one: KeyIndex, other: KeyIndex) -> None:
    (tensors, ids), (others, other_ids) = one.state(), other.state()
    assert ids == other_ids and tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_searches_are_brute_force_on_real_valued_keys() -> None:
    index = filled(200)
    queries = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    assert ranking(index.search(queries, 7)) == brute_force(index, queries, 7)


def test_a_crowd_of_equal_keys_goes_to_the_first_ids() -> None:
    """More ties than one FAISS search looks at, added last to first."""
    index = KeyIndex(8)
    key = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    for edit in reversed(range(300)):
        index.add(f"{edit:03}", edit, key)
    hits = index.search(key.repeat(40, 1), 3)
    assert hits.edit_ids == [["000", "001", "002"]] * 40
    assert hits.slots.tolist() == [[0, 1, 2]] * 40
    # Negative control: FAISS alone, which numbers keys as they came, does not give the last three added.
    assert flat(key.numpy(), index._table.vectors, 3)[1].tolist() != [[299, 298, 297]]


def test_scores_closer_than_rounding_are_ranked_exactly() -> None:
    """Large terms cancel: in float32 their order decides the score, in float64 the small term does."""
    generator = torch.Generator().manual_seed(0)
    index = KeyIndex(65)
    halves = torch.randn(32, generator=generator)
    for edit in range(200):
        key = torch.cat([halves, -halves])[torch.randperm(64, generator=generator)]
        index.add(f"{edit:03}", 0, torch.cat([torch.tensor([edit * 2**-40]), key])[None])
    query = torch.ones(1, 65)
    hits = index.search(query, 3)
    assert hits.edit_ids == [["199", "198", "197"]]
    assert hits.scores.tolist() == [[199 * 2**-40, 198 * 2**-40, 197 * 2**-40]]
    # Negative control: FAISS alone does not have the best key, numbered 199, even among its first 11.
    assert 199 not in flat(query.numpy(), index._table.vectors, 11)[1]


def test_a_query_is_answered_alone_as_in_a_batch() -> None:
    index = filled(150, dim=48)
    queries = torch.randn(70, 48, generator=torch.Generator().manual_seed(2))
    together = ranking(index.search(queries, 4))
    assert together == [ranking(index.search(query[None], 4))[0] for query in queries]


def test_what_is_missing_is_marked() -> None:
    index = KeyIndex(DIM)
    empty = index.search(torch.ones(2, DIM), 2)
    assert ranking(empty) == [[(-torch.inf, -1, "")] * 2] * 2
    index.add("a", 4, torch.ones(1, DIM))
    assert ranking(index.search(torch.ones(1, DIM), 2)) == [[(3.0, 4, "a"), (-torch.inf, -1, "")]]
    assert index.search(torch.ones(0, DIM), 2).scores.shape == (0, 2)
    index.remove("a")
    assert ranking(index.search(torch.ones(1, DIM))) == [[(-torch.inf, -1, "")]]
    assert [part.shape for part in index.matrix()] == [(0, DIM), (0,)]


def test_hits_have_the_stated_types() -> None:
    hits = filled(3).search(torch.ones(2, 16), 2)
    assert hits.scores.dtype == torch.float32 and hits.scores.shape == (2, 2)
    assert hits.slots.dtype == torch.int64 and hits.slots.shape == (2, 2)


def test_the_matrix_is_in_order_of_edit_id_and_position() -> None:
    index = KeyIndex(1)
    index.add("b", 7, torch.tensor([[3.0], [4.0]]))
    index.add("a", 8, torch.tensor([[1.0], [2.0]]))
    keys, slots = index.matrix()
    assert keys.flatten().tolist() == [1, 2, 3, 4] and slots.tolist() == [8, 8, 7, 7]
    assert index.edit_ids == ("a", "b") and len(index) == 4


def test_removing_is_exact() -> None:
    index, untouched = filled(20), filled(20)
    index.search(torch.ones(1, 16))
    index.add("edit-010-extra", 1, torch.ones(5, 16))
    assert index.search(torch.ones(1, 16)).edit_ids == [["edit-010-extra"]]
    index.remove("edit-010-extra")
    assert_same_bytes(index, untouched)
    queries = torch.randn(9, 16, generator=torch.Generator().manual_seed(3))
    assert ranking(index.search(queries, 5)) == ranking(untouched.search(queries, 5))


def test_state_round_trips() -> None:
    index = filled(12)
    restored = KeyIndex.from_state(*index.state())
    assert_same_bytes(restored, index)
    queries = torch.randn(9, 16, generator=torch.Generator().manual_seed(3))
    assert ranking(restored.search(queries, 5)) == ranking(index.search(queries, 5))
    restored.add("more", 0, torch.ones(1, 16))
    assert_same_bytes(KeyIndex.from_state(*KeyIndex(DIM).state()), KeyIndex(DIM))


def test_keys_are_copied_in() -> None:
    keys = torch.ones(1, DIM, requires_grad=True)
    index = KeyIndex(DIM)
    index.add("a", 0, keys)
    with torch.no_grad():
        keys.fill_(5)
    index.matrix()[0].fill_(6)
    assert index.matrix()[0].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 0, torch.ones(1, DIM)), "edit id ''"),
        (("a", 0, torch.ones(1, DIM)), "'a' already has keys"),
        (("b", -1, torch.ones(1, DIM)), "slot=-1"),
        (("b", True, torch.ones(1, DIM)), "slot=True"),
        (("b", 0, torch.ones(1, DIM + 1)), r"shape \[1, 4\], expected \[n, 3\]"),
        (("b", 0, torch.ones(DIM)), r"shape \[3\]"),
        (("b", 0, torch.ones(0, DIM)), "there are none"),
        (("b", 0, torch.ones(1, DIM).double()), "dtype torch.float64"),
        (("b", 0, torch.tensor([[1.0, torch.nan, 0.0]])), "NaN"),
        (("b", 0, torch.tensor([[1.0, torch.inf, 0.0]])), "infinity"),
        (("b", 0, torch.full((1, DIM), 1e30)), "length beyond float32"),
    ],
)
def test_bad_keys_are_refused_and_change_nothing(arguments: tuple[Any, Any, Any], message: str) -> None:
    index, before = KeyIndex(DIM), KeyIndex(DIM)
    for each in (index, before):
        each.add("a", 0, torch.ones(2, DIM))
    with pytest.raises(EditError, match=message):
        index.add(*arguments)
    assert_same_bytes(index, before)


def test_many_edits_are_added_as_one_by_one() -> None:
    alone, together = filled(40), KeyIndex(16)
    tensors, ids = alone.state()
    keys = tensors["keys"].split(tensors["counts"].tolist())
    edits = list(zip(ids, tensors["slots"].tolist(), keys, strict=True))
    together.add_all(reversed(edits[:30]))
    together.add_all(iter(edits[30:]))
    together.add_all([])
    assert_same_bytes(alone, together)
    queries = torch.randn(9, 16, generator=torch.Generator().manual_seed(3))
    assert ranking(alone.search(queries, 5)) == ranking(together.search(queries, 5))


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (("b", 0, torch.ones(1, DIM)), "'b' already has keys"),
        (("old", 0, torch.ones(1, DIM)), "'old' already has keys"),
        (("d", -1, torch.ones(1, DIM)), "slot=-1"),
        (("d", 0, torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.nan, 0.0]])), "keys of edit 'd': NaN"),
    ],
)
def test_of_many_edits_one_that_is_bad_is_named_and_none_is_added(last: tuple[str, int, Tensor], message: str) -> None:
    index = KeyIndex(DIM)
    index.add("old", 0, torch.ones(2, DIM))
    good = [("b", 0, torch.ones(3, DIM)), ("c", 1, torch.ones(1, DIM))]
    with pytest.raises(EditError, match=message):
        index.add_all([*good, last, ("e", 0, torch.ones(1, DIM))])
    assert index.edit_ids == ("old",) and len(index) == 2
    index.add_all(good)
    assert index.edit_ids == ("b", "c", "old")


def test_replacing_is_removing_and_adding() -> None:
    index, afresh = KeyIndex(DIM), KeyIndex(DIM)
    index.add("a", 0, torch.zeros(3, DIM))
    index.add("b", 1, torch.ones(1, DIM))
    index.replace("a", 2, 2 * torch.ones(1, DIM))
    afresh.add("b", 1, torch.ones(1, DIM))
    afresh.add("a", 2, 2 * torch.ones(1, DIM))
    assert_same_bytes(index, afresh)
    assert ranking(index.search(torch.ones(1, DIM), 2)) == [[(6.0, 2, "a"), (3.0, 1, "b")]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c", 0, torch.ones(1, DIM)), "'c' has no keys here"),
        (("a", -1, torch.ones(1, DIM)), "slot=-1"),
        (("a", 0, torch.ones(0, DIM)), "there are none"),
        (("a", 0, torch.full((1, DIM), torch.inf)), "infinity"),
    ],
)
def test_a_replacement_that_is_refused_changes_nothing(arguments: tuple[str, int, Tensor], message: str) -> None:
    index, before = filled(3), filled(3)
    for each in (index, before):
        each.add("a", 0, torch.ones(2, 16))
    edit_id, slot, keys = arguments
    with pytest.raises(EditError, match=message):
        index.replace(edit_id, slot, keys[:, :1].expand(-1, 16))
    assert_same_bytes(index, before)


def test_an_unknown_edit_cannot_be_removed() -> None:
    index = KeyIndex(DIM)
    with pytest.raises(EditError, match="the index is empty"):
        index.remove("paris")
    index.add("paris", 0, torch.ones(1, DIM))
    with pytest.raises(EditError, match="did you mean 'paris'"):
        index.remove("pari")
    index.add_all((f"edit-{i:05}", 0, torch.ones(1, DIM)) for i in range(2000))
    with pytest.raises(EditError, match="'pari' has no keys here: 2001 others have"):
        index.remove("pari")


def test_bad_queries_are_refused() -> None:
    index = KeyIndex(DIM)
    with pytest.raises(ConfigError, match=r"queries: shape \[1, 2\]"):
        index.search(torch.ones(1, 2))
    with pytest.raises(ConfigError, match="NaN"):
        index.search(torch.full((1, DIM), torch.nan))
    with pytest.raises(ConfigError, match="k=0"):
        index.search(torch.ones(1, DIM), 0)
    with pytest.raises(ConfigError, match="dim=0"):
        KeyIndex(0)


def test_damaged_state_is_refused() -> None:
    tensors, ids = filled(4).state()
    for change, edit_ids, message in [
        ({"keys": tensors["keys"][:-1]}, ids, "restore another version"),
        ({"counts": tensors["counts"].flip(0) - 1}, ids, "restore another version"),
        ({"slots": tensors["slots"][:-1]}, ids, "restore another version"),
        ({"slots": tensors["slots"] - 1}, ids, "slot=-1"),
        ({"keys": tensors["keys"] / 0}, ids, "NaN"),
        ({}, ids[:-1], "3 edit ids"),
        ({}, [*ids[:-1], ids[0]], "already has keys"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            KeyIndex.from_state({**tensors, **change}, edit_ids)
    with pytest.raises(ArtifactError, match="lacks counts"):
        KeyIndex.from_state({"keys": tensors["keys"], "slots": tensors["slots"]}, ids)


def test_faiss_is_imported_by_the_first_search_only() -> None:
    code = (
        "import sys, torch; from wise.memory.keys import KeyIndex; index = KeyIndex(2);"
        "index.add('a', 0, torch.ones(1, 2)); index.matrix(); print('faiss' in sys.modules);"
        "index.search(torch.ones(1, 2)); print('faiss' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
