"""Ranges stand for a sequence of places, whatever is done with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wise.memory.state import common_prefix
from wise.memory.store.versions import cover, cut_ranges, join_ranges

RANGES = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 4)).map(lambda r: (r[0], r[1], r[1] + r[2])),
    max_size=6,
)


def places(ranges: list[tuple[str, int, int]]) -> list[tuple[str, int]]:
    return [(key, place) for key, start, stop in ranges for place in range(start, stop)]


@given(RANGES, RANGES)
def test_joined_they_tell_the_same_and_the_same_places_are_the_same_ranges(one, other) -> None:
    assert places(join_ranges(one)) == places(one)
    assert (join_ranges(one) == join_ranges(other)) == (places(one) == places(other))


@given(RANGES, st.integers(0, 12), st.integers(0, 12))
def test_cut_they_are_a_slice(ranges, start: int, stop: int) -> None:
    assert places(cut_ranges(ranges, start, stop)) == places(ranges)[start:stop]


@given(st.permutations([("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]))
def test_they_cover_what_they_hold_once(found) -> None:
    ranges = join_ranges((key, place, place + 1) for key, place in found)
    assert cover(ranges, {"a": 3, "b": 2, "c": 0})
    assert not cover(ranges, {"a": 3, "b": 3}) and not cover(ranges, {"a": 3})
    assert not cover(ranges[1:], {"a": 3, "b": 2}) and not cover([*ranges, ranges[0]], {"a": 3, "b": 2})


@pytest.mark.parametrize("wrong", [("a", 1, 1), ("a", 2, 1), ("a", -1, 2), ("a", 1, 3), ("b", 0, 1)])
def test_a_range_that_leads_elsewhere_covers_nothing(wrong: tuple[str, int, int]) -> None:
    assert cover([("a", 0, 1), ("a", 1, 2)], {"a": 2})
    assert not cover([("a", 0, 1), wrong], {"a": 2})


def test_a_common_prefix_goes_by_objects_and_not_by_what_they_hold() -> None:
    one, other = [1, 2], [1, 2]
    assert common_prefix([one, other], [one, other]) == 2
    assert common_prefix([one, other], [one, [1, 2]]) == 1
    assert common_prefix([one], [one, other]) == 1 and common_prefix([], [one]) == 0
