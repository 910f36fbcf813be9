"""What has broken a service or a store before, as functions that do it again, and the command that runs them.

`scripts/attack_serve.py` runs the modules of this folder, each of which attacks one part of a service;
`scripts/attack_store.py` holds attacks on a store, a memory and a pack. An attack's name begins with a letter and a
number (`b06_unknown_paths`), its docstring is one sentence: what is done, and what must hold. It returns what it
measured, in a few words, or raises AttackError.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from wise.lab.eval.results_file import write_json


class AttackError(Exception):
    """What was attacked did what it must not; the message says what was seen."""


def attacks_of(names: Mapping[str, Any], run: Callable[[Any], str]) -> dict[str, tuple[str, Callable[[], str]]]:
    """The attacks among the names of a module: what each does, and `run` with it."""
    found = {name: attack for name, attack in names.items() if re.match("[a-z][0-9]{2}_", name)}
    return {name: (attack.__doc__, partial(run, attack)) for name, attack in found.items()}


def main(about: str | None, attacks: Mapping[str, tuple[str, Callable[[], str]]]) -> int:
    """The command that runs attacks. One line for each goes to stdout; the last line is one JSON object.

    about: what the help says. attacks: by name, as `attacks_of` gives them. Returns 1 if an attack succeeded.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; left out: all")
    parser.add_argument("--list", action="store_true", help="name the attacks and end")
    parser.add_argument("--into", nargs=2, metavar=("FILE", "RUN"), help="put the results into this run of a file")
    options = parser.parse_args()
    chosen = {n: a for n, a in sorted(attacks.items()) if not options.names or n.startswith(tuple(options.names))}
    if options.list:
        print("\n".join(f"{name}: {what}" for name, (what, _) in chosen.items()))
        return 0
    results = {}
    for number, (name, (_, attack)) in enumerate(chosen.items(), start=1):
        print(f"{number} of {len(chosen)}: {name}", file=sys.stderr)
        begun = time.monotonic()
        try:
            held, seen = True, attack()
        except AttackError as error:
            held, seen = False, str(error)
        except Exception as error:
            held, seen = False, f"{type(error).__name__}: {error}"
        results[name] = {"held": held, "seen": seen, "seconds": round(time.monotonic() - begun, 1)}
        print(f"{name:<28} {'held' if held else 'BROKEN'}  {seen}", flush=True)
    print(json.dumps(results))
    if options.into:
        _record(*options.into, results)
    return 0 if all(result["held"] for result in results.values()) else 1


def _record(file: str, run: str, results: Mapping[str, Any]) -> None:
    """Puts results by name into one run of a JSON file, beside those that it has: the page of results is made of it."""
    path = Path(file)
    found = json.loads(path.read_text()) if path.exists() else {}
    found[run] = dict(sorted({**found.get(run, {}), **results}.items()))
    write_json(path, found)
