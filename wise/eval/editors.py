"""The ways of editing that can be compared on the same records.

To add one, add a row to `EDITORS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wise.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Editor:
    """One way of editing."""

    about: str
    settings: Mapping[str, Any]
    """Fields of `WiseConfig` that make it what it is."""
    edits: bool = True
    """False for the control, which is measured without having been edited."""


EDITORS: dict[str, Editor] = {
    "wise-merge": Editor(
        about="WISE-Merge: all edits in one side memory, gated by its own activation",
        settings={"mode": "merge"},
    ),
    "wise-retrieve": Editor(
        about="WISE-Retrieve: one side memory per slot; the nearest edit key names the slot",
        settings={"mode": "retrieve"},
    ),
    "none": Editor(about="the base, not edited: the control", settings={}, edits=False),
}


def find_editor(name: str) -> Editor:
    """Raises ConfigError, naming the nearest, where there is none of this name."""
    if name not in EDITORS:
        raise ConfigError(f"editor {name!r} is not known; {did_you_mean(name, EDITORS)}")
    return EDITORS[name]
