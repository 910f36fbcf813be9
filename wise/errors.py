"""Every error that wise raises on purpose, and the checks of text from outside that raise `EditError`.

    WiseError
    ├── ConfigError          (ValueError)    a setting is missing, unknown or out of range
    ├── UnsupportedModelError(ValueError)    the model has no feed-forward layer that can be wrapped
    ├── EditError            (ValueError)    an edit, or a file of edits, is not usable
    ├── WorkerError          (RuntimeError)  processes that fit edits died again and again
    ├── ArtifactError        (ValueError)    a saved memory is incomplete, damaged or foreign
    ├── StartError           (RuntimeError)  the service cannot start, since its engine or its store fails
    └── StoreError           (RuntimeError)  a store is damaged, full, held by another, or lacks what was asked for
        ├── MissingError                     there is no store at a place
        ├── RefusedError                     a version contradicts itself: the same will be refused again
        └── ConflictError                    what was asked for does not fit what the store holds by now

A message says what was given, what was expected and what to do about it. Nothing has been changed when one of these is
raised. A message about a field names the field first, so that a reader can put the file and the line before it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from reprlib import repr as shortened
from typing import Any, TypeVar

Parsed = TypeVar("Parsed")


class WiseError(Exception):
    """Root of the tree: `except wise.WiseError` catches all that wise raises on purpose."""


class ConfigError(WiseError, ValueError):
    """A setting is missing, unknown or out of range."""


class UnsupportedModelError(WiseError, ValueError):
    """The model has no feed-forward layer beside which a memory can stand, or is built as wise cannot edit."""


class EditError(WiseError, ValueError):
    """An edit, or a file of edits, is not usable; nothing was applied."""


class WorkerError(WiseError, RuntimeError):
    """Processes that fit edits died again and again; nothing was applied."""


class ArtifactError(WiseError, ValueError):
    """A saved memory is incomplete, damaged, or belongs to another base model."""


class StartError(WiseError, RuntimeError):
    """The service cannot start, since its engine or its store fails."""


class StoreError(WiseError, RuntimeError):
    """A store is damaged, held by another writer, on a full disk, or does not have what was asked for."""


class MissingError(StoreError):
    """There is no store at a place, nor anything else; opening it as its writer makes one."""


class RefusedError(StoreError):
    """A version contradicts itself. The store is well, and takes others; the same will be refused again."""


class ConflictError(StoreError):
    """The store is well, and what was asked for does not fit what it holds by now: asking again will not help."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence naming the nearest known words, or all of them where none is near.

    >>> did_you_mean("tie", ["ties", "linear"])
    "did you mean 'ties'?"
    """
    names = sorted(names)
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def checked_text(name: str, value: object) -> str:
    """`value`, where it is text that a tokenizer can take and that is not blank. Raises EditError, naming the field."""
    if not isinstance(value, str):
        raise EditError(f"field {name!r}: {given(value)} was given, text was expected")
    if not value.strip():
        raise EditError(f"field {name!r}: empty or blank text was given; fill it in, or leave the edit out")
    if "\0" in value:
        raise EditError(f"field {name!r}: {shortened(value)} holds a NUL character; take it out")
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError:
        problem = "holds half a surrogate pair; take it out"
        raise EditError(f"field {name!r}: {shortened(value)} {problem}") from None
    return value


NAMESPACE_LENGTH = 100
"""Characters of a namespace: with a model's name it fits every route."""
_BLANK_LETTERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Invisible characters that Unicode counts among letters, marks and symbols."""
_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU")
"""Alphabets with letters that look like those of another one of them."""
_LATIN_LIKE = frozenset("асеорхуіјѕһӏԁԛԝАВЕКМНОРСТХУІЈЅԌԚԜӀαονρυικχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ")
"""Cyrillic and Greek letters that look like Latin ones."""


def checked_namespace(value: object) -> str:
    """A namespace as it is stored: in NFC. Two names that look the same are the same, or one of them is refused.

    Raises EditError if it is too long, has a blank at an end, a character that is not seen or that has a plainer form,
    or letters that can be taken for those of another alphabet.
    """
    return _checked_namespace(checked_text("namespace", value))


@lru_cache(maxsize=1024)
def _checked_namespace(value: str) -> str:
    name = unicodedata.normalize("NFC", value)
    problem = None
    if len(name) > NAMESPACE_LENGTH:
        problem = f"has {len(name)} characters; give at most {NAMESPACE_LENGTH}"
    elif name != name.strip():
        problem = "begins or ends with a blank; take it off"
    elif hidden := [c for c in name if not c.isprintable() or c in _BLANK_LETTERS or "\ufe00" <= c <= "\ufe0f"]:
        problem = f"holds the character U+{ord(hidden[0]):04X}, which is not seen; take it out"
    elif (plain := unicodedata.normalize("NFKC", name)) != name or "  " in name:
        problem = f"looks like {' '.join(plain.split())!a}; write it so"
    elif marks := [c for c in name if not c.isascii() and unicodedata.category(c)[0] == "P"]:
        problem = f"holds the character U+{ord(marks[0]):04X}; use the punctuation of ASCII"
    elif len(alike := sorted({unicodedata.name(c, "").split(" ")[0] for c in name}.intersection(_SCRIPTS))) > 1:
        problem = f"mixes letters that look alike, of {' and '.join(alike)}; use those of one alphabet"
    elif any(map(str.isalpha, name)) and all(c in _LATIN_LIKE for c in name if c.isalpha()):
        problem = "can be read as if its letters were Latin; use Latin ones, or a name that shows what they are"
    if problem is not None:
        raise EditError(f"field 'namespace': {ascii(name[:80])} {problem}")
    return name


def checked_prompts(name: str, value: object) -> tuple[str, ...]:
    """A list of prompts as a tuple, spaces after them taken off. Raises EditError, naming the place (`locality[2]`)."""
    listed = checked_list(name, value, "texts")
    return tuple(checked_text(f"{name}[{place}]", text).rstrip(" ") for place, text in enumerate(listed))


def checked_list(name: str, value: object, what: str, kind: type = object) -> tuple[Any, ...]:
    """A list as a tuple. Raises EditError, naming the field, for anything else, or items that are not of a kind."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
        raise EditError(f"field {name!r}: {given(value)} was given, a list of {what} was expected")
    return tuple(value)


@contextmanager
def within(name: str) -> Iterator[None]:
    """Puts the field `name` before an `EditError` that is about a part of it."""
    try:
        yield
    except EditError as error:
        raise EditError(f"field {name!r}: {error}") from None


def parsed_list(name: str, value: object, what: str, parse: Callable[[Any], Parsed]) -> tuple[Parsed, ...]:
    """A list, each item parsed. Raises EditError, naming the place before what `parse` refuses."""
    parsed = []
    for place, item in enumerate(checked_list(name, value, what)):
        with within(f"{name}[{place}]"):
            parsed.append(parse(item))
    return tuple(parsed)


def given(value: object) -> str:
    """What a value is, short enough for a message."""
    name = "dict" if isinstance(value, dict) else type(value).__name__
    return "null" if value is None else f"{name} {shortened(value)}"


def missing(name: str, mapping: Mapping[str, Any]) -> EditError:
    """The error for a field that is not there."""
    return EditError(f"field {name!r}: missing; fields found: {listed(mapping)}")


def listed(names: Iterable[str]) -> str:
    """Names in a message: in order, the first of many, long ones cut."""
    printable = sorted(name[:80] if name.isprintable() else ascii(name[:80]) for name in map(str, names))
    return ", ".join(printable[:20]) + (f" and {len(printable) - 20} more" if len(printable) > 20 else "") or "none"


def check_fields(name: str, value: object, known: Sequence[str], needed: Sequence[str] = (), prefix: str = "") -> None:
    """Raises EditError for what is no object, has a field that is not known, or lacks one that is needed."""
    if not isinstance(value, Mapping):
        raise EditError(f"field {name!r}: {given(value)} was given, an object of fields was expected")
    check_known(prefix, value, known)
    for field in needed:
        if field not in value:
            raise missing(field, value)


def check_known(prefix: str, mapping: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in mapping:
        if name not in known:
            raise EditError(f"field {f'{prefix}{name:.80}'!r}: unknown; {did_you_mean(f'{name:.80}', known)}")
