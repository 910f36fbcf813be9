"""Atomic replacement of a folder or a file: what is written becomes visible with one rename, or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wise.errors import ArtifactError

ASIDE = ".{name}.{token}.wise-old"
"""The folder that is being replaced, between the two renames. No user's own folder is called so."""
NEW = ".{name}.{token}.wise-new"
"""The folder that the new one is written to."""
FOLDERS_OPEN = hasattr(os, "O_DIRECTORY")
"""Windows opens no folders, so it can neither sync nor lock one."""


@contextmanager
def replaced_folder(folder: Path, *, ours: Collection[str]) -> Iterator[Path]:
    """Yields an empty folder to write into; when the block ends, it stands where `folder` did.

    `folder` may exist if it is empty or holds files named in `ours` only. Where the block or the renaming
    raises, everything is as it was before. When the process is killed or the power fails, `folder` is the old
    one or the new one, whole; only between the two renames it is missing, and then the old one is whole in
    `.NAME.*.wise-old` beside it, the new one in `.NAME.*.wise-new`. The next write removes the first; what is
    left of the second may be deleted by hand. Of several writes at once, the folder is that of the last, whole.

    Raises ArtifactError, with nothing touched, where `folder` is a file, holds anything else, or is the
    working directory.
    """
    check_replaceable(folder, ours)
    folder = folder.resolve()
    with _new_folder(folder) as new:
        yield new
        _sync_all(new)
        _put_in_place(new, folder, folder.with_name(ASIDE.format(name=folder.name, token=secrets.token_hex(4))))


@contextmanager
def made_once(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write into; when the block ends, it stands at `folder`. Where another process has put
    its own there meanwhile, that one stays, since it may be in use, and the new one is removed."""
    with _new_folder(folder) as new:
        yield new
        _sync_all(new)
        try:
            os.rename(new, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(new, ignore_errors=True)
        synced(folder.parent)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which is removed if the block raises."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(NEW.format(name=folder.name, token=secrets.token_hex(4)))
    new.mkdir()
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _sync_all(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        synced(path)


@contextmanager
def replaced_file(file: Path) -> Iterator[Path]:
    """Yields a path to write to. When the block ends, it stands where `file` did; if it raises, nothing is left."""
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}.new")
    try:
        yield new
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)


def write_private(file: Path, data: bytes) -> None:
    """Writes a new file for its owner alone; on return it is on the disk itself."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def check_replaceable(folder: Path, ours: Collection[str]) -> None:
    """Raises ArtifactError where `replaced_folder` would."""
    folder = folder.resolve()
    try:
        others = sorted({file.name for file in folder.iterdir()} - set(ours))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        if not folder.exists():  # it is a folder above that is a file
            return
        raise ArtifactError(f"{folder} is a file; give the name of a folder") from None
    if others:
        reason = f"holds other files ({', '.join(others[:4])}) and would be replaced as a whole"
        raise ArtifactError(f"{folder} {reason}; give a folder of its own, such as one inside it")
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise ArtifactError(f"{folder} is where this process works and stays in place; give a folder inside it")


def set_aside(folder: Path) -> list[Path]:
    """What writes that were cut off have left of `folder`, under the name that it has between the two renames."""
    name = re.compile(re.escape(ASIDE.format(name=folder.name, token="TOKEN")).replace("TOKEN", "[0-9a-f]{8}"))
    return sorted(path for path in folder.parent.glob("*.wise-old") if name.fullmatch(path.name) and path.is_dir())


def _put_in_place(new: Path, folder: Path, aside: Path) -> None:
    with _alone_in(folder.parent):
        existed = folder.exists()
        try:
            if existed:
                os.rename(folder, aside)
            os.rename(new, folder)
        except BaseException:
            if existed and not folder.exists():
                os.rename(aside, folder)
            raise
        synced(folder.parent)
        for older in set_aside(folder):
            shutil.rmtree(older, ignore_errors=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One thread of one process at a time is in such a `with` block of a folder. Others wait for its end."""
    if not FOLDERS_OPEN:
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system may lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def synced(path: Path) -> None:
    """Puts a file, or the entries of a folder, on the disk itself."""
    if not FOLDERS_OPEN and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
