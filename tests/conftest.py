"""For all tests: what one run learns of a base is not known to the next, drawn examples are the same each time, and a
busy machine fails none of them; and the places where a store can be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from postgres import Server, emptied, postgres
from stores import new_folder

os.environ["WISE_CACHE"] = ""
with suppress(ImportError):  # the environment of vLLM's tests has no hypothesis
    from hypothesis import settings

    settings.register_profile("tests", deadline=None, derandomize=True, database=None)
    settings.load_profile("tests")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """An empty database."""
    emptied(server.url)
    return server.url


@pytest.fixture(params=["folder", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a store can be made."""
    if request.param == "postgres":
        yield request.getfixturevalue("url")
    else:
        with new_folder() as parent:
            yield str(parent / "store")
