"""Runs are the sequence of places that they tell, whatever is done with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wise.memory.runs import cover, cut, joined, leading

RUNS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 4)).map(lambda r: (r[0], r[1], r[1] + r[2])),
    max_size=6,
)


def places(runs: list[tuple[str, int, int]]) -> list[tuple[str, int]]:
    return [(key, place) for key, start, stop in runs for place in range(start, stop)]


@given(RUNS, RUNS)
def test_joined_they_tell_the_same_and_the_same_places_are_the_same_runs(one, other) -> None:
    assert places(joined(one)) == places(one)
    assert (joined(one) == joined(other)) == (places(one) == places(other))


@given(RUNS, st.integers(0, 12), st.integers(0, 12))
def test_cut_they_are_a_slice(runs, start: int, stop: int) -> None:
    assert places(cut(runs, start, stop)) == places(runs)[start:stop]


@given(st.permutations([("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]))
def test_they_cover_what_they_hold_once(found) -> None:
    runs = joined((key, place, place + 1) for key, place in found)
    assert cover(runs, {"a": 3, "b": 2, "c": 0})
    assert not cover(runs, {"a": 3, "b": 3}) and not cover(runs, {"a": 3})
    assert not cover(runs[1:], {"a": 3, "b": 2}) and not cover([*runs, runs[0]], {"a": 3, "b": 2})


@pytest.mark.parametrize("wrong", [("a", 1, 1), ("a", 2, 1), ("a", -1, 2), ("a", 1, 3), ("b", 0, 1)])
def test_a_run_that_leads_elsewhere_covers_nothing(wrong: tuple[str, int, int]) -> None:
    assert cover([("a", 0, 1), ("a", 1, 2)], {"a": 2})
    assert not cover([("a", 0, 1), wrong], {"a": 2})


def test_leading_goes_by_objects_and_not_by_what_they_hold() -> None:
    one, other = [1, 2], [1, 2]
    assert leading([one, other], [one, other]) == 2
    assert leading([one, other], [one, [1, 2]]) == 1
    assert leading([one], [one, other]) == 1 and leading([], [one]) == 0
