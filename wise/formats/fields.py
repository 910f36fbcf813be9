"""Reads fields of a published record, and names the field in every error.

A path names a field; dots go into objects, and lists on the way are gone through where several
values are wanted. `prefix` is what goes before the path in messages, such as `requested_rewrite[0].`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from wise.edits import Edit
from wise.errors import EditError, checked_text, given, missing, within
from wise.formats.tracked_row import peek
from wise.probes import ASKS_THE_EDIT, Probe, Query

JsonRow = Mapping[str, Any]
"""One record as its file has it."""
Note = Callable[[str], None]
"""Is told in one sentence of every defect that was stepped over."""

_LIST_DASH = re.compile(r"^-\s*(?=[^\W\d_])")
"""Some zsRE rephrasings were cut out of a list and kept its dash."""

_STUBS = frozenset({"", "Reformulated Question:"})
"""What stands in WikiBigEdit where a rephrasing failed, and in others where there is none."""


def single(row: JsonRow, path: str, prefix: str = "") -> object:
    """What stands at `path`, None where nothing does; lists on the way are refused."""
    value: object = row
    keys = path.split(".")
    for depth, key in enumerate(keys):
        if value is not None:
            value = _object(prefix + ".".join(keys[:depth]), value).get(key)
    return value


def text(row: JsonRow, path: str, prefix: str = "") -> str:
    """The text that must stand at `path`."""
    value = single(row, path, prefix)
    if value is None:
        raise lacking(row, path, prefix)
    return checked_text(prefix + path, value)


def lacking(row: JsonRow, path: str, prefix: str = "") -> EditError:
    """The error for a field that must be there: it is null, or missing."""
    way = path.split(".")
    for length, key in enumerate(way):
        parent = peek(row, ".".join(way[:length])) if length else row
        if isinstance(parent, Mapping) and key in parent and parent[key] is None:
            name = prefix + ".".join(way[: length + 1])
            return EditError(f"field {name!r}: null was given; fill it in, or leave the record out")
    return missing(prefix + path, row)


def optional_text(row: JsonRow, path: str, prefix: str = "") -> str | None:
    """The text at `path`, None where there is none or it is blank."""
    value = single(row, path, prefix)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return checked_text(prefix + path, value).strip()


def number(row: JsonRow, path: str) -> str | None:
    """The record's own number or name at `path`, None where there is none."""
    value = row.get(path)
    if value is None:
        return None
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise EditError(f"field {path!r}: {given(value)} was given, a number or text was expected")
    return checked_text(path, str(value))


def texts(row: JsonRow, path: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text at `path` with its full name, such as `loc[2].prompt`; empty for a null in a list."""
    name, _, rest = path.partition(".")
    yield from texts_of(prefix + name, row.get(name), rest)


def texts_of(name: str, value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text at `path` in the value that the field `name` has."""
    for full_name, found in _walk(name, value, path):
        if not isinstance(found, str | None):
            raise EditError(f"field {full_name!r}: {given(found)} was given, text was expected")
        yield full_name, found or ""


def objects(row: JsonRow, path: str, prefix: str = "") -> Iterator[tuple[str, JsonRow]]:
    """Every object at `path` with its full name."""
    name, _, rest = path.partition(".")
    found = _walk(prefix + name, row.get(name), rest)
    yield from ((full_name, _object(full_name, value)) for full_name, value in found if value is not None)


def required_objects(row: JsonRow, path: str, prefix: str = "") -> list[tuple[str, JsonRow]]:
    """The objects of the list that must stand at `path`, at least one."""
    value = single(row, path, prefix)
    if value is None:
        raise lacking(row, path, prefix)
    found = list(objects(row, path, prefix))
    if not isinstance(value, list) or not found or len(found) != len(value):
        raise EditError(f"field {prefix + path!r}: {given(value)} was given, a list of objects was expected")
    return found


def _walk(name: str, value: object, path: str) -> Iterator[tuple[str, object]]:
    if value is None:
        return
    if isinstance(value, list):
        for place, item in enumerate(value):
            if item is None and not path:
                yield f"{name}[{place}]", None
            yield from _walk(f"{name}[{place}]", item, path)
    elif not path:
        yield name, value
    else:
        key, _, rest = path.partition(".")
        yield from _walk(f"{name}.{key}", _object(name, value).get(key), rest)


def _object(name: str, value: object) -> JsonRow:
    if not isinstance(value, Mapping):
        raise EditError(f"field {name!r}: {given(value)} was given, an object was expected")
    return value


def cleaned(prompt: str, subject: str | None = None) -> str:
    """A test prompt without the dash of a list before it and spaces after it, `subject` in the place of `{}`. Empty for
    a stub, and for a template whose subject is not known."""
    prompt = _LIST_DASH.sub("", prompt).rstrip(" ")
    prompt = prompt if subject is None else prompt.replace("{}", subject)
    return "" if prompt.strip() in _STUBS or "{}" in prompt else prompt


def prompts(
    row: JsonRow, paths: Iterable[str], known: Collection[str], note: Note, subject: str | None = None
) -> tuple[str, ...]:
    """What stands at the paths, each once, without what is already known; `subject` takes the place of `{}`."""
    found: dict[str, None] = {}
    for path in paths:
        for name, given_prompt in texts(row, path):
            prompt = cleaned(given_prompt, subject)
            if not prompt:
                note(f"field {path!r}: an empty or unfilled test prompt; left out")
            elif prompt not in known:
                found[checked_text(name, prompt)] = None
    return tuple(found)


def query(name: str, prompt: str, answers: Iterable[str]) -> Query:
    """A query, or an error that names the field it was read from."""
    with within(name):
        return Query(prompt=prompt, answers=tuple(answers))


def probe(
    kind: str, queries: Iterable[Query], edit: Edit, note: Note, *, need: str = "any", conditions: Iterable[Query] = ()
) -> Iterator[Probe]:
    """The probe, or nothing where no query is left that asks something else than `edit` does and should."""
    apart = tuple(query for query in queries if kind in ASKS_THE_EDIT or query.prompt != edit.prompt)
    if apart:
        yield Probe(kind=kind, queries=apart, need=need, conditions=tuple(conditions))
    else:
        note(f"a probe of {kind} asks the prompt of the edit itself; left out")
