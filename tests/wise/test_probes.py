"""Probes: what is asked is checked when it is made, and survives JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wise.errors import EditError
from wise.probes import ASKS_THE_EDIT, KINDS, NEEDS, OF_A_CASE, Probe, Query

QUERY = Query(prompt="Who keeps the light at Cape Velm?", answers=("Ada Thorne", "A. Thorne"))


def test_a_query_takes_white_space_off_and_each_answer_once() -> None:
    query = Query(prompt=" Who? ", answers=[" Ada ", "Bo", "Ada"])  # type: ignore[arg-type]
    assert (query.prompt, query.answers) == (" Who?", ("Ada", "Bo"))
    with pytest.raises(FrozenInstanceError):
        query.prompt = "Where?"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " "}, "field 'prompt': empty"),
        ({"prompt": None}, "field 'prompt': null"),
        ({"answers": ()}, "field 'answers': tuple .*at least one answer"),
        ({"answers": "Ada"}, "field 'answers': str"),
        ({"answers": ["Ada", 3]}, r"field 'answers\[1\]': int 3"),
        ({"answers": ["Ada", ""]}, r"field 'answers\[1\]': empty"),
    ],
)
def test_a_bad_query_names_its_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=f"^{message}"):
        Query(**({"prompt": "Who?", "answers": ("Ada",)} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "multihop"}, "field 'kind': .*did you mean 'multi_hop'"),
        ({"need": "both"}, "field 'need': .*known: all, any"),
        ({"queries": ()}, "field 'queries': none was given"),
        ({"queries": [{"prompt": "Who?"}]}, "field 'queries': list .*list of queries"),
        ({"conditions": "x"}, "field 'conditions': str .*list of queries"),
    ],
)
def test_a_bad_probe_names_its_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=f"^{message}"):
        Probe(**({"kind": "multi_hop", "queries": (QUERY,)} | fields))


def test_json_leaves_out_what_says_nothing() -> None:
    asked = {"prompt": QUERY.prompt, "answers": list(QUERY.answers)}
    assert Probe(kind="ood", queries=(QUERY,)).to_dict() == {"kind": "ood", "queries": [asked]}
    full = Probe(kind="ood", queries=(QUERY,), need="all", conditions=(QUERY,))
    assert full.to_dict() == {"kind": "ood", "queries": [asked], "need": "all", "conditions": [asked]}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([], "field 'probe': list"),
        ({"kind": "ood"}, "field 'queries': missing"),
        ({"queries": []}, "field 'kind': missing"),
        ({"kind": "ood", "queries": "x"}, "field 'queries': str"),
        ({"kind": "ood", "queries": [{"prompt": "Who?"}]}, r"field 'queries\[0\]': field 'answers': missing"),
        ({"kind": "ood", "queries": [], "query": 1}, "field 'query': unknown; did you mean 'queries'"),
        (
            {"kind": "ood", "queries": [QUERY.to_dict()], "conditions": [QUERY.to_dict(), 7]},
            r"field 'conditions\[1\]': field 'query': int 7",
        ),
    ],
)
def test_bad_json_names_its_field(mapping: Any, message: str) -> None:
    with pytest.raises(EditError, match=f"^{message}"):
        Probe.from_dict(mapping)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=9).filter(
    str.strip
)
QUERIES = st.builds(Query, prompt=TEXT, answers=st.lists(TEXT, min_size=1, max_size=3))


@settings(max_examples=60)
@given(
    st.builds(
        Probe,
        kind=st.sampled_from(KINDS),
        queries=st.lists(QUERIES, min_size=1, max_size=3),
        need=st.sampled_from(NEEDS),
        conditions=st.lists(QUERIES, max_size=2),
    )
)
def test_a_probe_survives_json(made: Probe) -> None:
    assert Probe.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_kinds_that_may_ask_the_edit_are_kinds() -> None:
    assert set(ASKS_THE_EDIT) < set(KINDS)


def test_kinds_that_count_by_case_are_kinds() -> None:
    assert set(OF_A_CASE) < set(KINDS)
