"""Does to a service what has broken one before, and reports what happened.

    python scripts/attack_serve.py             # all attacks
    python scripts/attack_serve.py b02 b19     # those whose names begin so
    python scripts/attack_serve.py --into docs/results/service.json now     # puts them into a file of runs
    python scripts/attack_serve.py --list

Each attack is a function in `scripts/attacks/`, and gets a fresh `wise serve` of the shipped model on the loopback
interface. With PYTHONPATH set to another checkout, that one is attacked. One line for each attack goes to stdout; the
last line is one JSON object. The exit code is 1 if an attack succeeded.
"""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import attacks
from service_process import Service


def on_a_service(attack: Callable[[Service], str]) -> str:
    with tempfile.TemporaryDirectory() as name, Service(Path(name) / "store", Path(name) / "log", []) as service:
        return attack(service)


def main() -> int:
    modules = (importlib.import_module(f"attacks.{found.name}") for found in pkgutil.iter_modules(attacks.__path__))
    named = {name: attack for m in modules for name, attack in attacks.attacks_of(vars(m), on_a_service).items()}
    return attacks.main(__doc__, named)


if __name__ == "__main__":
    raise SystemExit(main())
