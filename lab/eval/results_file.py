"""The file of a run that `wise eval --output` writes: it is written whole, checked and read.

What reads runs (`wise compare`, the report) works on files that may come from anywhere. Everything that such a reader
relies on is checked here, once, so that a wrong file is named before anything is computed from it. Nothing heavy is
imported: two files are compared without loading torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from wise.errors import ConfigError, given
from wise.memory.folder import replaced_file

SCHEMA = 1

KEYS: dict[str, str] = {
    "edits": "number",
    "editor": "text",
    "seed": "number",
    "generated": "object",
    "teacher_forced": "object",
    "counts": "object",
    "locality": "object or null",
    "counterfact": "object or null",
    "probes": "object",
    "instances": "object or null",
    "fluency": "object or null",
    "perplexity": "object or null",
    "outcomes": "list",
    "routing": "object or null",
    "retention": "list",
    "failed_edits": "number",
    "failed": "list",
    "cpu_seconds_per_edit": "number",
    "seconds_per_edit": "number",
    "timing": "object",
    "data": "object",
    "model": "object",
    "config": "object",
    "environment": "object",
}
"""What every run has, and of which kind its value is."""

OUTCOME: dict[str, str] = {
    "record": "text",
    "measure": "text",
    "prompt": "text",
    "generated": "number from 0 to 1",
    "teacher_forced": "number from 0 to 1",
}
"""What every one of `outcomes` has and is read for."""

DIGITS = 300
"""Characters of a whole number: a float holds any of these."""

_KINDS: dict[str, tuple[type, ...]] = {
    "number": (int, float),
    "number from 0 to 1": (int, float),
    "text": (str,),
    "object": (dict,),
    "object or null": (dict, type(None)),
    "list": (list,),
}
_REMEDY = "give a file that 'wise eval --output FILE' wrote"


def read_run(path: str | PathLike[str]) -> Mapping[str, Any]:
    """The run in a file, every key of `KEYS` there and of its kind. Raises ConfigError, naming the file and what to do:
    it cannot be read, is not JSON (NaN is none either), holds a whole number that is no float, is not a run, or of
    another schema."""
    path = Path(path)
    try:
        run = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_number, parse_int=_whole_number)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {_REMEDY}") from error
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
        raise ConfigError(f"{path}: not JSON ({error}); {_REMEDY}") from error
    if isinstance(run, dict):
        _check_schema(path, run)
    _check(f"{path}: ", run, "the object of a run", KEYS)
    for place, outcome in enumerate(run["outcomes"]):
        _check(f"{path}: outcomes[{place}].", outcome, "an object", OUTCOME)
    whole: Mapping[str, Any] = run
    return whole


def with_source(run: Mapping[str, Any], about: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A run with what it does not find out itself: `about` has objects by key, such as the names of data and model."""
    return {**run, **{name: {**source, **run.get(name, {})} for name, source in about.items()}}


def write_json(file: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    with replaced_file(file) as new:
        new.write_text(json.dumps(value, allow_nan=False, indent=1) + "\n", encoding="utf-8")


def _refuse_number(name: str) -> float:
    raise ValueError(f"{name} is no number that JSON has")


def _whole_number(digits: str) -> int:
    """JSON has whole numbers of any length; what reads runs reckons in floats."""
    if len(digits) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} characters, {DIGITS} is the most that is read")
    return int(digits)


def _check_schema(path: Path, run: Mapping[str, Any]) -> None:
    if "schema" not in run:
        raise ConfigError(f"{path}: not a run, it has no schema; {_REMEDY}")
    schema = run["schema"]
    if schema == SCHEMA and type(schema) is int:
        return
    remedy = "take the wise that wrote it, or make the run again with this one"
    if isinstance(schema, int) and schema > SCHEMA:
        remedy = "a newer wise wrote it: upgrade this one, or make the run again with it"
    raise ConfigError(f"{path}: a run of schema {given(schema)}, and schema {SCHEMA} is what is read here; {remedy}")


def _check(prefix: str, content: Any, what: str, kinds: Mapping[str, str]) -> None:
    where = prefix.rstrip(".: ")
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: {given(content)} was found, {what} was expected; {_REMEDY}")
    absent = [name for name in kinds if name not in content]
    if absent:
        raise ConfigError(f"{where}: it has no {', '.join(absent)}; {_REMEDY}")
    for name, kind in kinds.items():
        value = content[name]
        right = isinstance(value, _KINDS[kind]) and not isinstance(value, bool)
        if right and kind == "number":
            right = math.isfinite(value)  # 1e999 is parsed as infinity
        if right and kind == "number from 0 to 1":
            right = 0 <= value <= 1
        if not right:
            raise ConfigError(f"{prefix}{name}: {given(value)} was found, {kind} was expected; {_REMEDY}")
