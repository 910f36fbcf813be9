"""What has broken a service before, as functions that do it again. `scripts/attack_serve.py` runs them.

A module holds the attacks on one part, in a dictionary `ATTACKS` by name: a letter and a number, then what is done
(`b06_unknown_paths`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
