"""What has broken a service before, as functions that do it again. `scripts/attack_serve.py` runs them.

A module holds the attacks on one part, in a dictionary `ATTACKS` by name: a letter and a number, then what is done
(`b06_unknown_paths`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service_process import Service


class AttackError(Exception):
    """The service did what it must not; the message says what was seen."""


@dataclass(frozen=True)
class Attack:
    """One way to break a service."""

    what: str
    """One sentence: what is done, and what must hold."""
    run: Callable[[Service], str]
    """Returns what was measured, in a few words. Raises AttackError if the service did not hold."""
    options: tuple[str, ...] = ()
    """Of `wise serve`; `{folder}` is a folder of the attack's own."""


def record(file: str, run: str, results: Mapping[str, Any]) -> None:
    """Puts results by name into one run of a JSON file, beside those that it has: the page of results is made of it."""
    path = Path(file)
    found = json.loads(path.read_text()) if path.exists() else {}
    found[run] = dict(sorted({**found.get(run, {}), **results}.items()))
    path.write_text(json.dumps(found, indent=1) + "\n")
