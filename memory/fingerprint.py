"""Which base a memory belongs to: its shape, and a sample of its weights.

A memory is a change to one layer of one checkpoint; beside any other it is noise. So a sample of every
parameter is taken, which costs milliseconds and also notices a base that was fine-tuned elsewhere. The same
checkpoint in another precision has other bits but is the same base: there a few values are compared as
closely as bfloat16 can tell, and a warning is given.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.architectures import ValueProjection
from wise.errors import ArtifactError
from wise.memory.base_watch import adapters_of

logger = logging.getLogger(__name__)

ENTRIES = 64
"""Entries sampled from each parameter."""
KEPT = 16
"""Values kept as they are, to compare precisions by."""
STRIDE = 2_654_435_761
"""A prime: its multiples, modulo a parameter's size, fall on all rows and columns."""
ROUNDING = 2.0**-7
"""Relative difference that two roundings of one weight stay under: bfloat16 rounds by up to 2**-8."""
UNDERFLOW = 1e-7
"""Absolute difference that float16 makes to weights under its smallest normal number."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a memory was made for."""

    model_type: str
    path: str
    """Dotted path of the value projection."""
    in_features: int
    """f"""
    out_features: int
    """d"""
    vocabulary: int
    depth: int
    """Number of blocks."""
    parameters: int
    """Entries of all parameters, tied ones once."""
    dtype: str
    digest: str
    """SHA-256 of the sampled entries."""
    sample: tuple[float, ...]
    """A few of them as they are, for a base in another precision."""
    adapters: str = ""
    """The adapters of peft that are in effect (`adapters_of`)."""
    name: str = field(default="", compare=False)
    """The hub id or the folder that the base was loaded from; empty if it does not say. Only to find it again."""
    revision: str = field(default="", compare=False)
    """The commit on the hub."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `to_dict`. Raises ArtifactError for a field missing, unknown or of a wrong type."""
        try:
            found = cls(**{**data, "sample": tuple(map(float, data["sample"]))})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the fingerprint of the base is malformed: {error}") from error
        for own in fields(cls):
            wanted = {"int": int, "str": str}.get(str(own.type), tuple)
            if type(getattr(found, own.name)) is not wanted:
                raise ArtifactError(f"the fingerprint of the base is malformed: field {own.name!r}")
        return found

    def check(self, other: Fingerprint) -> None:
        """`other` is the base that this one was taken of; another precision of it is warned about.

        Raises ArtifactError naming every field that differs, with what was expected and found.
        """
        shape = [f.name for f in fields(self) if f.compare and f.name not in ("dtype", "digest", "sample")]
        differing = [
            f"{name}: expected {getattr(self, name)!r}, found {getattr(other, name)!r}"
            for name in shape
            if getattr(self, name) != getattr(other, name)
        ]
        if not differing and not self._same_weights(other):
            differing.append(
                f"weights: expected digest {self.digest[:12]} ({self.dtype}), found {other.digest[:12]} "
                f"({other.dtype}): the same architecture with other weights"
            )
        if differing:
            raise ArtifactError(
                f"this memory was made for another base ({'; '.join(differing)}); load that base, or make "
                "the edits anew on this one"
            )
        if self.dtype != other.dtype:
            logger.warning(
                "this memory was made for the base in %s and is put beside it in %s: scores near a threshold "
                "may fall on its other side, so check the edits",
                self.dtype,
                other.dtype,
            )

    def _same_weights(self, other: Fingerprint) -> bool:
        if self.dtype == other.dtype:
            return self.digest == other.digest
        return len(self.sample) == len(other.sample) and all(
            math.isclose(a, b, rel_tol=ROUNDING, abs_tol=UNDERFLOW)
            for a, b in zip(self.sample, other.sample, strict=True)
        )


@torch.no_grad()
def fingerprint(model: PreTrainedModel, projection: ValueProjection) -> Fingerprint:
    """The fingerprint of a base, wrapped or not, wherever accelerate keeps its weights."""
    taken = [(_sample(parameter, ENTRIES), parameter.numel()) for parameter in _parameters(model)]
    entries = torch.cat([values for values, _ in taken])
    return Fingerprint(
        model_type=str(model.config.model_type),
        path=projection.path,
        in_features=projection.in_features,
        out_features=projection.out_features,
        vocabulary=int(model.config.get_text_config().vocab_size),
        depth=projection.depth,
        parameters=sum(size for _, size in taken),
        dtype=str(model.dtype).removeprefix("torch."),
        digest=_digest(entries),
        sample=tuple(_sample(entries, KEPT).tolist()),
        adapters=adapters_of(model),
        name=_name(model),
        revision=str(getattr(model.config, "_commit_hash", None) or ""),
    )


def _name(model: PreTrainedModel) -> str:
    name = str(getattr(model, "name_or_path", ""))
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


@torch.no_grad()
def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 of entries sampled from every parameter of a base, wrapped or not."""
    return _digest(torch.cat([_sample(parameter, ENTRIES) for parameter in _parameters(model)]))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what decides how a text is cut into tokens, and a conversation written."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    return hashlib.sha256(json.dumps([rules, getattr(tokenizer, "chat_template", None)]).encode()).hexdigest()


def _digest(entries: Tensor) -> str:
    return hashlib.sha256(entries.numpy().astype("<f4").tobytes()).hexdigest()


def _parameters(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Every parameter while it is there; of tied ones, which offloading takes apart, the one tied to."""
    tied = set(model.all_tied_weights_keys)
    for path, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(path, recurse=False) if name not in tied]
        if own:
            with align_module_device(module):
                for name in own:
                    yield getattr(module, name.rpartition(".")[2])


def _sample(values: Tensor, count: int) -> Tensor:
    """Up to `count` entries from all over, the same ones each time: float32 on the CPU."""
    size = values.numel()
    places = torch.arange(min(count, size)) * STRIDE % size
    return values.detach().flatten()[places.to(values.device)].float().cpu()
