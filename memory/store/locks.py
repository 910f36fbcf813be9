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

    new: the file must not be there; None where it is.

    Raises OSError where it is a symbolic link: its holder writes into it, and that would be another file.
    """
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (os.O_EXCL if new else 0), 0o600)
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
        status = os.stat(file)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


class SharedLocks:
    """Shared locks on files, as many of one as it is held. A file that is held this way is not `unlocked`."""

    def __init__(self) -> None:
        self._handles: dict[Path, list[int]] = {}
        self._guard = Lock()

    def hold(self, file: Path) -> bool:
        """False where the file is not there any more."""
        try:
            handle = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            return False
        fcntl.flock(handle, fcntl.LOCK_SH)  # waits for a collector, which holds it only while it removes
        if not os.fstat(handle).st_nlink:
            os.close(handle)
            return False
        with self._guard:
            self._handles.setdefault(file, []).append(handle)
        return True

    def release(self, file: Path) -> None:
        with self._guard:
            handles = self._handles.pop(file, [])  # all were released where the store was closed meanwhile
            if handles:
                os.close(handles.pop())
            if handles:
                self._handles[file] = handles

    def release_all(self) -> None:
        with self._guard:
            for handle in (handle for handles in self._handles.values() for handle in handles):
                os.close(handle)
            self._handles.clear()


@contextmanager
def unlocked(file: Path) -> Iterator[bool]:
    """Whether no process holds `file`. If so, none can within the block. A missing file is free."""
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
