"""The interface of a storage backend: rows in transactions, bytes under their SHA-256, and two kinds of lock."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from wise.errors import StoreError

Execute = Callable[..., list[tuple[Any, ...]]]
"""Runs one statement, with `?` where a value goes, given the values; the rows that it answers with."""
Scan = Callable[..., Iterator[tuple[Any, ...]]]
"""The same for one that reads; its rows, one after the other."""


class Backend(ABC):
    """Where a store is kept. Everything raises StoreError, with nothing changed, where it cannot be done.

    To add one, subclass this and choose it in `Store.open` by the form of its place.
    """

    place: str
    """What to call it in a message."""
    writer: bool
    """Whether it was opened as the one writer, which alone may change what is served."""
    is_lost: bool = False
    """Whether it was closed, or is the writer and lost its session or its lock: the store must be opened again."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Execute]:
        """What the block writes is durable when it ends, or nothing of it is. One block at a time, anywhere."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Execute]:
        """The block reads one state of the rows, whatever is written meanwhile."""

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[Scan]:
        """The same for a block that takes long: it holds up no other process. Text that is not UTF-8 is given with
        surrogates in it."""

    @abstractmethod
    def put(self, data: bytes) -> str:
        """Stores bytes; they are durable on return. Answers with their digest."""

    @abstractmethod
    def get(self, digest: str) -> bytes:
        """The bytes, verified."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Digest and size of all that is stored."""

    @abstractmethod
    def remove(self, digests: Iterable[str]) -> None:
        """Removes bytes, and what an interrupted write left behind."""

    @abstractmethod
    def hold(self, digest: str) -> None:
        """Keeps `digest` from being collected until `release`, or until this process ends, however it ends."""

    @abstractmethod
    def release(self, digest: str) -> None:
        """Undoes one `hold`."""

    @abstractmethod
    def unheld(self, digest: str) -> AbstractContextManager[bool]:
        """Whether no process holds `digest`. If so, none can within the block."""

    @abstractmethod
    def faults(self, scan: Scan) -> list[str]:
        """What the database says is wrong with its own files, and with the tables and indexes of a journal."""

    @abstractmethod
    def scrub(self) -> None:
        """Leaves nothing in the database's own files of rows that were changed or removed."""

    @abstractmethod
    def close(self) -> None:
        """Releases all locks."""


@contextmanager
def closed_on_error(backend: Backend) -> Iterator[None]:
    """Closes the backend if the block raises, so that a failed open keeps no lock."""
    try:
        yield
    except BaseException:
        backend.close()
        raise


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def verified_blob(data: bytes, digest: str, place: str) -> bytes:
    """Raises StoreError where `data` are not the bytes that were stored."""
    if digest_of(data) != digest:
        raise lost_blob(digest, place, f"damaged ({len(data)} bytes of another SHA-256)")
    return data


def held_up(place: str, what: str, seconds: float) -> StoreError:
    return StoreError(
        f"{place} {what}: another process has been reading or writing it for more than {seconds:.0f} s; end that "
        "process, then try again"
    )


def lost_blob(digest: str, place: str, problem: str = "missing") -> StoreError:
    return StoreError(
        f"{place}: {digest[:16]} is {problem}; `wise store check` says which versions need it: roll back to a whole "
        "one, or restore it from a backup"
    )
