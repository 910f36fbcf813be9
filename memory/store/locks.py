"""Locks on files that the kernel releases when their holder ends, however it ends (POSIX `flock`)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock


def exclusive_lock(file: Path, *, new: bool = False) -> int | None:
    """The handle of `file`, locked for this process alone; None where another has it. Closing it releases the lock.
    new: the file must not be there; None where it is."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | (os.O_EXCL if new else 0), 0o600)
    except FileExistsError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    if identity(handle) != identity(file):  # it was removed in between
        os.close(handle)
        return exclusive_lock(file, new=new)
    return handle


def identity(file: Path | int) -> tuple[int, int] | None:
    """What tells the file behind a name or a handle from another one that takes its name; None where there is none."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class SharedLocks:
    """Shared locks on files, counted. A file that is held this way is not `unlocked`."""

    def __init__(self) -> None:
        self._handles: dict[Path, tuple[int, int]] = {}
        self._guard = Lock()

    def hold(self, file: Path) -> bool:
        """False where the file is not there any more."""
        with self._guard:
            if file in self._handles:
                handle, count = self._handles[file]
                self._handles[file] = handle, count + 1
                return True
            try:
                handle = os.open(file, os.O_RDONLY)
            except FileNotFoundError:
                return False
            fcntl.flock(handle, fcntl.LOCK_SH)  # waits for a collector, which holds it only while it removes
            if not os.fstat(handle).st_nlink:
                os.close(handle)
                return False
            self._handles[file] = handle, 1
            return True

    def release(self, file: Path) -> None:
        with self._guard:
            handle, count = self._handles.pop(file, (-1, 0))  # all were released where the store was closed meanwhile
            if count > 1:
                self._handles[file] = handle, count - 1
            elif count:
                os.close(handle)

    def release_all(self) -> None:
        with self._guard:
            for handle, _ in self._handles.values():
                os.close(handle)
            self._handles.clear()


@contextmanager
def unlocked(file: Path) -> Iterator[bool]:
    """Whether nobody holds `file`; where so, nobody can for the length of the block. One that is gone is free."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
