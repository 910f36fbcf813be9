"""What a check found whole, so that the next one need not understand it again: `checked.json` beside a store.

It holds a digest of each page of rows as they lie in the journal, and the manifests whose versions were verified. A
page whose digest is the same is not taken apart again, but every byte of it is read; so is every file of a version. So
a check from here finds what was damaged since, as a complete one does. It trusts this file, as a complete one does not:
a process that may write the store could write it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from wise import __version__
from wise.memory.artifact import digest_of_json, sealed
from wise.memory.folder import replaced_file, write_private

FILE = "checked.json"
FORMAT = "wise-checked"
PAGE = 1000
"""Rows of a page."""
Page = list[tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Checked:
    events: tuple[str, ...] = ()
    """Of each page, its digest."""
    tickets: tuple[str, ...] = ()
    manifests: frozenset[str] = frozenset()


NOTHING = Checked()


def read_checked(file: Path) -> Checked:
    """What the file says; nothing, where there is none, or it is not what a check by this release wrote."""
    try:
        data = json.loads(file.read_bytes())
        if data.pop("sha256") != digest_of_json(data) or data["format"] != FORMAT or data["release"] != __version__:
            return NOTHING
        return Checked(
            events=tuple(data["events"]), tickets=tuple(data["tickets"]), manifests=frozenset(data["manifests"])
        )
    except (OSError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return NOTHING


def write_checked(file: Path, checked: Checked) -> None:
    """Raises OSError where the disk does not take it."""
    data = {
        "format": FORMAT, "release": __version__, "events": checked.events, "tickets": checked.tickets,
        "manifests": sorted(checked.manifests),
    }
    with replaced_file(file) as new:
        write_private(new, sealed(data))


def pages(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[str, Page]]:
    remaining = iter(rows)
    while page := list(islice(remaining, PAGE)):
        yield hashlib.sha256(repr(page).encode()).hexdigest(), page
