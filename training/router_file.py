"""A trained router on disk: one safetensors file that says which base it is for and how it was trained."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wise.errors import ArtifactError
from wise.memory.fingerprint import Fingerprint
from wise.memory.key_space import KeySpace
from wise.training.router_training import LearnedSpaces

FORMAT = "wise-router"
SCHEMA_VERSION = 2
SPACES = ("relation", "subject")


def save_router(file: str | PathLike[str], learned: LearnedSpaces, base: Fingerprint) -> None:
    """Writes the file whole or not at all; its folder is made where it is not there."""
    file = Path(file)
    tensors = {f"{s}.{name}": t for s in SPACES for name, t in getattr(learned, s).tensors().items()}
    about = {"schema_version": SCHEMA_VERSION, "base": base.to_dict(), "training": training_record(learned)}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        draft.write_bytes(save(tensors, metadata={"format": FORMAT, "about": json.dumps(about, sort_keys=True)}))
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def training_record(learned: LearnedSpaces) -> dict[str, Any]:
    """What it was trained on and what came of it, ready for JSON."""
    return {field.name: getattr(learned, field.name) for field in fields(learned) if field.name not in SPACES}


def load_router(file: str | PathLike[str], base: Fingerprint) -> LearnedSpaces:
    """Raises ArtifactError where there is no router for this base, layer and all."""
    file = Path(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ArtifactError(f"{file}: is no router; give a file that `wise train-router` wrote")
        about = json.loads(metadata["about"])
        if about["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{file}: schema_version {about['schema_version']}, this release reads {SCHEMA_VERSION}; train it anew"
            )
        relation, subject = (_space(tensors, name) for name in SPACES)
        learned = LearnedSpaces(relation=relation, subject=subject, **about["training"])
        made_for = Fingerprint.from_dict(about["base"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file}: cannot be read as a router ({error}); use wise train-router") from error
    made_for.check(base)
    return learned


def _space(tensors: dict[str, Tensor], name: str) -> KeySpace:
    own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
    space = KeySpace.from_tensors(own)
    if not space.floors or not all(bool(t.isfinite().all()) for t in own.values()):
        raise ValueError(f"{name}: no floors, or numbers that are not finite")
    return space
