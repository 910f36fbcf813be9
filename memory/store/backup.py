"""Backups: a whole store copied into a new folder, of one moment, while another process writes it.

The rows are copied in one step. Then every file is copied that they need, which never changes; if one was collected in
between, the rows are copied again. The copy is checked as a whole, and stands in its place only if it is whole. A
restored store is a copy of a backup.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from wise.errors import StoreError
from wise.memory.folder import replaced_folder, write_private
from wise.memory.store.backends.base import Backend
from wise.memory.store.backends.sqlite import BLOBS, JOURNAL_FILE, LOCK_FILE, SqliteBackend, make_private
from wise.memory.store.check import Findings, check
from wise.memory.store.checked import FILE, write_checked
from wise.memory.store.journal import Journal
from wise.memory.store.versions import read_manifest
from wise.progress import Progress

TRIES = 10
"""Copies of the rows before it is given up: a store would have to collect versions all the time."""


def copy_store(backend: Backend, target: Path, progress: Progress) -> Findings:
    """Copies a store that is open into `target`, which must not be there or be empty. Returns what a check found of it.

    Raises StoreError, with no target made, where the store is not in a folder, the target holds anything, what would be
    copied is not whole, or the disk does not take it; ArtifactError where the target is a file.
    """
    if not isinstance(backend, SqliteBackend):
        raise StoreError(
            f"{backend.place}: everything of a store in PostgreSQL is in its schema 'wise'; back it up with "
            "`pg_dump --schema=wise --format=custom --file=FILE URL`, restore it with `pg_restore --dbname=URL FILE`, "
            "then run `wise store check URL`"
        )
    if target.is_dir() and any(target.iterdir()):
        raise StoreError(f"{target} is there already and is not overwritten; give the name of a new folder")
    try:
        with replaced_folder(target, ours=()) as new:
            return _checked_copy(backend, new, progress)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{target}: nothing was copied: {error}; see to the disk, then try again") from error


def _checked_copy(backend: SqliteBackend, new: Path, progress: Progress) -> Findings:
    new.chmod(0o700)
    make_private(new / BLOBS)
    _copy(backend, new, progress)
    with closing(SqliteBackend(new, writer=False)) as copy:
        findings, whole = check(copy, progress=progress)
    if findings.problems:
        raise StoreError(
            f"{backend.place} is not whole, and nothing was copied: {findings.problems[0]} "
            f"({len(findings.problems)} problems; `wise store check` names all)"
        )
    write_checked(new / FILE, whole)
    return findings


def _copy(backend: SqliteBackend, new: Path, progress: Progress) -> None:
    for _ in range(TRIES):
        (new / JOURNAL_FILE).unlink(missing_ok=True)
        progress("rows", 0, 1)
        backend.copy_rows(new / JOURNAL_FILE)
        with closing(sqlite3.connect(new / JOURNAL_FILE)) as connection:
            connection.execute("PRAGMA secure_delete=ON")  # not every build of SQLite overwrites by itself
            connection.execute("DELETE FROM commands")  # their senders wait at the other store
            connection.commit()
        (new / LOCK_FILE).touch(0o600)
        progress("rows", 1, 1)
        if _copy_files(backend, new, progress):
            return
    raise StoreError(f"{backend.place}: versions are collected faster than they can be copied; try again later")


def _copy_files(backend: SqliteBackend, new: Path, progress: Progress) -> bool:
    """Copies what the versions of the copied rows need. False where a version was collected meanwhile."""
    with closing(SqliteBackend(new, writer=False)) as copy:
        versions = [version for version in Journal(copy).versions() if not version.collected]
    needed: dict[str, None] = {}
    try:
        for manifest in dict.fromkeys(version.manifest for version in versions):
            needed[manifest] = None
            needed |= dict.fromkeys(sorted(read_manifest(backend, manifest).blobs))
        for place, digest in enumerate(needed, start=1):
            progress("files", place, len(needed))
            if not (new / BLOBS / digest).exists():
                write_private(new / BLOBS / digest, backend.get(digest))
    except StoreError:
        collected = {version.number for version in Journal(backend).versions() if version.collected}
        if not collected & {version.number for version in versions}:
            raise
        return False
    for file in (new / BLOBS).iterdir():
        if file.name not in needed:
            file.unlink()
    return True
