"""For all tests: nothing that one run learns of a base is known to the next; and the places where a store can be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from postgres import emptied, postgres_server
from stores import new_folder

os.environ["WISE_CACHE"] = ""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["folder", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a store can be made."""
    if request.param == "postgres":
        url = request.getfixturevalue("server")
        emptied(url)
        yield url
    else:
        with new_folder() as parent:
            yield str(parent / "store")
