"""Every error that wise raises on purpose.

    WiseError
    ├── ConfigError          (ValueError)    a setting is missing, unknown or out of range
    ├── UnsupportedModelError(ValueError)    the model has no feed-forward layer that can be wrapped
    ├── EditError            (ValueError)    an edit, or a file of edits, is not usable
    ├── ArtifactError        (ValueError)    a saved memory is incomplete, damaged or foreign
    └── StoreError           (RuntimeError)  a store is damaged, full, held by another, or lacks what was asked for
        └── RefusedError                     a version contradicts itself: the same will be refused again

A message says what was given, what was expected and what to do about it. Nothing
has been changed when one of these is raised.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class WiseError(Exception):
    """Root of the tree: `except wise.WiseError` catches all that wise raises on purpose."""


class ConfigError(WiseError, ValueError):
    """A setting is missing, unknown or out of range."""


class UnsupportedModelError(WiseError, ValueError):
    """The model has no feed-forward value projection that wise can wrap."""


class EditError(WiseError, ValueError):
    """An edit, or a file of edits, is not usable; nothing was applied."""


class ArtifactError(WiseError, ValueError):
    """A saved memory is incomplete, damaged, or belongs to another base model."""


class StoreError(WiseError, RuntimeError):
    """A store is damaged, held by another writer, on a full disk, or does not have what was asked for."""


class RefusedError(StoreError):
    """A version contradicts itself. The store is well, and takes others; the same will be refused again."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A sentence naming the nearest known words, or all of them where none is near.

    >>> did_you_mean("tie", ["ties", "linear"])
    "did you mean 'ties'?"
    """
    known = sorted(known)
    near = get_close_matches(given, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
