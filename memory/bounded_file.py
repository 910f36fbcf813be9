"""Files from elsewhere, looked at before they are read: what they are, where they lie and how large they are."""

from __future__ import annotations

import stat
from pathlib import Path

from wise.errors import ArtifactError

MOST_JSON = 16 * 2**20
"""Bytes of a file of settings: the largest of ours have a few thousand."""
MOST_TEXT = 2**30
"""Bytes of the edits, or the tickets, of a memory: those of a million edits have less."""
MOST_HEADER = 2**20
"""Bytes of the header of a safetensors file: it names some ten tensors, however many edits there are."""

_POINTER = b"version https://git-lfs.github.com/spec/"


def unfetched(file: Path) -> str | None:
    """Why a file is not the one that its name says: it is a Git LFS pointer. None for any other file."""
    try:
        with file.open("rb") as stream:
            begins = stream.read(len(_POINTER))
    except OSError:  # reading it will say why
        return None
    return "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`" if begins == _POINTER else None


def bounded(file: Path, most: int | None) -> Path:
    """The file itself, which lies in its folder and is no device, pipe or link to another place.

    The hub's cache is made of links to a folder beside the snapshots; these are followed.

    most: bytes that it may have; None for any number.

    Raises ArtifactError, with nothing read, where it is anything else.
    """
    folder = file.parent.resolve()
    path = file.resolve()
    homes = [folder, *([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])]
    if path.parent not in homes:
        raise ArtifactError(f"{file.name}: is a link to {path}, out of its folder; put the file itself there")
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ArtifactError(f"{file.name}: is missing; copy the folder again, or take an older save") from None
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{file.name}: is a folder, a pipe or a device, not a file; copy the folder again")
    pointer = unfetched(path)
    if pointer is not None:
        raise ArtifactError(f"{file.name}: {pointer}")
    if most is not None and status.st_size > most:
        raise ArtifactError(f"{file.name}: has {status.st_size:,} bytes, and {most:,} are read at the most")
    return path


def check_header(file: Path) -> None:
    """Raises ArtifactError where a safetensors file has a header that ours cannot have, before it is parsed."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if MOST_HEADER < size <= file.stat().st_size:  # one that is longer than the file is refused as it is read
        raise ArtifactError(f"{file.name}: its header has {size:,} bytes, and {MOST_HEADER:,} are read at the most")
