"""What every text that comes from outside must be, and how it is said where it is not.

An error names the field first, so that a reader can put the file and the line before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from reprlib import repr as shortened
from typing import Any

from wise.errors import EditError, did_you_mean


def checked_text(name: str, value: object) -> str:
    """`value`, where it is text that a tokenizer can take and that is not blank.

    Raises:
        EditError: naming the field `name`.
    """
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


def checked_prompts(name: str, value: object) -> tuple[str, ...]:
    """A list of prompts as a tuple, spaces after them taken off.

    Raises:
        EditError: naming the field and the place, such as `paraphrases[2]`.
    """
    if not isinstance(value, list | tuple):
        raise EditError(f"field {name!r}: {given(value)} was given, a list of texts was expected")
    return tuple(checked_text(f"{name}[{place}]", text).rstrip(" ") for place, text in enumerate(value))


def given(value: object) -> str:
    """What a value is, short enough for a message."""
    return "null" if value is None else f"{type(value).__name__} {shortened(value)}"


def missing(name: str, mapping: Mapping[str, Any]) -> EditError:
    """The error for a field that is not there."""
    found = ", ".join(sorted(map(str, mapping))) or "none"
    return EditError(f"field {name!r}: missing; fields found: {found}")


def check_object(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise EditError(f"field {name!r}: {given(value)} was given, an object of fields was expected")


def check_known(prefix: str, mapping: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in mapping:
        if name not in known:
            raise EditError(f"field {f'{prefix}{name}'!r}: unknown; {did_you_mean(str(name), known)}")


@contextmanager
def within(name: str) -> Iterator[None]:
    """Puts the field `name` before an `EditError` that is about a part of it."""
    try:
        yield
    except EditError as error:
        raise EditError(f"field {name!r}: {error}") from None
