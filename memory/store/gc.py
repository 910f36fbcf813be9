"""Garbage collection: old versions, and the files that only they needed."""

from __future__ import annotations

from dataclasses import dataclass

from wise.errors import StoreError
from wise.memory.store.backends.base import Backend
from wise.memory.store.edit_request import Version
from wise.memory.store.failpoints import reach
from wise.memory.store.journal import Journal
from wise.memory.store.versions import read_manifest


@dataclass(frozen=True, kw_only=True)
class GcReport:
    versions: tuple[int, ...]
    pinned: tuple[int, ...]
    """Versions that would have gone, but that somebody holds."""
    blobs: int
    """Files removed."""
    bytes: int
    """Of these files."""


def collect(backend: Backend, journal: Journal, keep: int) -> GcReport:
    """See `Store.gc`. A version is noted as collected before anything of it is removed."""
    if keep < 1:
        raise StoreError(f"keep={keep}: expected a whole number from 1; the current version always stays")
    versions = [version for version in journal.versions() if not version.collected]
    kept = {version.manifest for version in versions[-keep:]}
    needed = _needed(backend, kept)
    sizes = backend.sizes()
    gone: list[Version] = []
    pinned: list[Version] = []
    old: dict[str, list[Version]] = {}  # versions of one manifest go together
    for version in versions[:-keep]:
        if version.manifest not in kept:
            old.setdefault(version.manifest, []).append(version)
    for manifest, manifest_versions in old.items():
        with backend.unheld(manifest) as unheld:
            if not unheld:
                pinned += manifest_versions
                needed |= _needed(backend, {manifest})
                continue
            with journal.writing() as (_, events):
                events.collect(manifest_versions)
            reach("version-collected")
            backend.remove([manifest])  # while no reader can hold it
        gone += manifest_versions
    unneeded = sorted(set(sizes) - needed)  # the manifests that are gone already among them
    backend.remove(unneeded)
    return GcReport(
        versions=tuple(version.number for version in gone),
        pinned=tuple(version.number for version in pinned),
        blobs=len(unneeded),
        bytes=sum(sizes[digest] for digest in unneeded),
    )


def _needed(backend: Backend, manifests: set[str]) -> set[str]:
    return manifests.union(*(read_manifest(backend, digest).blobs for digest in manifests))
