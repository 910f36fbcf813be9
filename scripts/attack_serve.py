"""Does to a service what has broken one before, and reports what happened.

    python scripts/attack_serve.py             # all attacks
    python scripts/attack_serve.py b02 b19     # those whose names begin so
    python scripts/attack_serve.py --into docs/results/service.json now     # puts them into a file of runs
    python scripts/attack_serve.py --list

Each attack is a function in `scripts/attacks/`, and gets a fresh `wise serve` of the shipped model on the loopback
interface. It returns what it measured, or raises AttackError with what went wrong. With PYTHONPATH set to another
checkout, that one is attacked. One line for each attack goes to stdout; the last line is one JSON object. The exit code
is 1 if an attack succeeded.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attacks
from attacks import Attack, AttackError
from service_process import Service


def all_attacks() -> dict[str, Attack]:
    """Every attack by its name."""
    modules = (importlib.import_module(f"attacks.{found.name}") for found in pkgutil.iter_modules(attacks.__path__))
    named: list[tuple[str, Attack]] = [pair for module in modules for pair in module.ATTACKS.items()]
    return dict(sorted(named))


def tried(attack: Attack) -> tuple[bool, str]:
    """Whether the service held, and what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        start = _starter(Path(folder), attack)
        service = start()
        try:
            return True, attack.run(service)
        except AttackError as error:
            return False, str(error)
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"
        finally:
            service.kill()


def _starter(folder: Path, attack: Attack) -> Callable[[], Service]:
    options = [option.replace("{folder}", str(folder)) for option in attack.options]
    return lambda: Service(folder / "store", folder / "log", options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; left out: all")
    parser.add_argument("--list", action="store_true", help="name the attacks and end")
    parser.add_argument("--into", nargs=2, metavar=("FILE", "RUN"), help="put the results into this run of a file")
    options = parser.parse_args()
    chosen = {
        name: attack
        for name, attack in all_attacks().items()
        if not options.names or name.startswith(tuple(options.names))
    }
    if options.list:
        print("\n".join(f"{name}: {attack.what}" for name, attack in chosen.items()))
        return 0
    results = {}
    for number, (name, attack) in enumerate(chosen.items(), start=1):
        print(f"{number} of {len(chosen)}: {name}", file=sys.stderr)
        begun = time.monotonic()
        held, seen = tried(attack)
        results[name] = {"held": held, "seen": seen, "seconds": round(time.monotonic() - begun, 1)}
        print(f"{name:<28} {'held' if held else 'BROKEN'}  {seen}", flush=True)
    print(json.dumps(results))
    if options.into:
        attacks.record(*options.into, results)
    return 0 if all(result["held"] for result in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
