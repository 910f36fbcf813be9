"""Reads the fields of a published record, and names the field in every error.

A path names a field; dots go into objects, and lists on the way are gone through where several values are wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wise.edits import Edit
from wise.errors import EditError, checked_text, given, missing, within
from wise.formats.tracked_row import peek
from wise.probes import ASKS_THE_EDIT, Probe, Query

JsonRow = Mapping[str, Any]
"""One record as its file has it."""
Note = Callable[[str], object]
"""Called with a sentence about each defect that was stepped over."""

_LIST_DASH = re.compile(r"^-\s*(?=[^\W\d_])")
"""Some zsRE rephrasings were cut out of a list and kept its dash."""
_STUBS = frozenset({"", "Reformulated Question:"})
"""What stands in WikiBigEdit where a rephrasing failed, and in others where there is none."""


@dataclass(frozen=True)
class Fields:
    """The fields of an object: of a whole record, or of one within it."""

    row: JsonRow
    note: Note = lambda note: None
    prefix: str = ""
    """What goes before a path in messages, such as `requested_rewrite[0].`."""

    def single(self, path: str) -> object:
        """What stands at `path`, None where nothing does; lists on the way are refused."""
        value: object = self.row
        keys = path.split(".")
        for depth, key in enumerate(keys):
            if value is not None:
                value = _object(self.prefix + ".".join(keys[:depth]), value).get(key)
        return value

    def text(self, path: str) -> str:
        """The text that must stand at `path`."""
        value = self.single(path)
        if value is None:
            raise self.lacking(path)
        return checked_text(self.prefix + path, value)

    def lacking(self, path: str) -> EditError:
        """The error for a field that must be there: it is null, or missing."""
        way = path.split(".")
        for length, key in enumerate(way):
            parent = peek(self.row, ".".join(way[:length])) if length else self.row
            if isinstance(parent, Mapping) and key in parent and parent[key] is None:
                name = self.prefix + ".".join(way[: length + 1])
                return EditError(f"field {name!r}: null was given; fill it in, or leave the record out")
        return missing(self.prefix + path, self.row)

    def optional_text(self, path: str) -> str | None:
        """The text at `path`, None where there is none or it is blank."""
        value = self.single(path)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return checked_text(self.prefix + path, value).strip()

    def number(self, path: str) -> str | None:
        """The record's own number or name at `path`, None where there is none."""
        value = self.row.get(path)
        if value is None:
            return None
        if not isinstance(value, int | str) or isinstance(value, bool):
            raise EditError(f"field {path!r}: {given(value)} was given, a number or text was expected")
        return checked_text(path, str(value))

    def texts(self, path: str) -> Iterator[tuple[str, str]]:
        """Every text at `path` with its full name, such as `loc[2].prompt`; empty for a null in a list."""
        name, _, rest = path.partition(".")
        yield from texts_of(self.prefix + name, self.row.get(name), rest)

    def filled(self, path: str) -> list[str]:
        """The texts at `path` that are not blank."""
        return [text for _, text in self.texts(path) if text.strip()]

    def objects(self, path: str) -> Iterator[Fields]:
        """Every object at `path`."""
        name, _, rest = path.partition(".")
        for full_name, value in _walk(self.prefix + name, self.row.get(name), rest):
            if value is not None:
                yield Fields(_object(full_name, value), self.note, f"{full_name}.")

    def required_objects(self, path: str) -> list[Fields]:
        """The objects of the list that must stand at `path`, at least one."""
        value = self.single(path)
        if value is None:
            raise self.lacking(path)
        objects = list(self.objects(path))
        if not isinstance(value, list) or not objects or len(objects) != len(value):
            name = self.prefix + path
            raise EditError(f"field {name!r}: {given(value)} was given, a list of objects was expected")
        return objects

    def prompts(self, paths: Iterable[str], known: Collection[str], subject: str | None = None) -> tuple[str, ...]:
        """What stands at the paths, each once, without what is already known; `subject` takes the place of `{}`."""
        prompts: dict[str, None] = {}
        for path in paths:
            for name, given_prompt in self.texts(path):
                prompt = cleaned(given_prompt, subject)
                if not prompt:
                    self.note(f"field {path!r}: an empty or unfilled test prompt; left out")
                elif prompt not in known:
                    prompts[checked_text(name, prompt)] = None
        return tuple(prompts)

    def probe(
        self, kind: str, queries: Iterable[Query], edit: Edit, *, need: str = "any", conditions: Iterable[Query] = ()
    ) -> Iterator[Probe]:
        """The probe, or nothing where no query is left that asks something else than `edit` does and should."""
        apart = tuple(query for query in queries if kind in ASKS_THE_EDIT or query.prompt != edit.prompt)
        if apart:
            yield Probe(kind=kind, queries=apart, need=need, conditions=tuple(conditions))
        else:
            self.note(f"a probe of {kind} asks the prompt of the edit itself; left out")


def texts_of(name: str, value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text at `path` in the value that the field `name` has."""
    for full_name, text in _walk(name, value, path):
        if not isinstance(text, str | None):
            raise EditError(f"field {full_name!r}: {given(text)} was given, text was expected")
        yield full_name, text or ""


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
    """A test prompt without the dash of a list before it and spaces after it, `subject` in the place of `{}`.

    Empty for a stub, and for a template whose subject is not known.
    """
    prompt = _LIST_DASH.sub("", prompt).rstrip(" ")
    prompt = prompt if subject is None else prompt.replace("{}", subject)
    return "" if prompt.strip() in _STUBS or "{}" in prompt else prompt


def query(name: str, prompt: str, answers: Iterable[str]) -> Query:
    """A query, or an error that names the field it was read from."""
    with within(name):
        return Query(prompt=prompt, answers=tuple(answers))
