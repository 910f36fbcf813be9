"""Which base a memory belongs to: its shape, and a sample of its weights.

A memory is a change to one layer of one checkpoint; beside any other it is noise. So a sample of every parameter is
taken, which costs milliseconds and also notices a base that was fine-tuned elsewhere. The same checkpoint in another
precision has other bits but is the same base. What can be recognised there:

* A cast (bf16, fp16, float32) is recognised: rounded to the coarser precision, every sampled entry must be the same.
  A fine-tune that moved a sampled entry by more than that rounding is refused.
* In a quantized copy, the parameters that were left alone (embeddings, norms, mostly the head) are compared likewise.
  The quantized ones must be within `QUANTIZED` of the original, as a whole: 4 bits lose about 0.1, other weights differ
  by 1.4. A fine-tune that left all of the former alone and moved the latter by less looks like rounding.
* A copy that packs its weights in a way that is not known here (it has another number of entries) is another base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.architectures import TargetModule
from wise.errors import ArtifactError
from wise.memory.base_watch import adapters_of

ENTRIES = 64
"""Entries sampled from each parameter."""
KEPT = 256
"""Of all sampled entries, those kept as they are, to compare precisions by."""
STRIDE = 2_654_435_761
"""A prime: its multiples, modulo a parameter's size, fall on all rows and columns."""
QUANTIZED = 0.25
"""Norm of the difference of quantized entries over that of the entries, under which they are one weight."""
ROUNDING = 2.0**-7
"""Relative difference of two roundings of one weight, neither of which is finer: bfloat16 rounds by up to 2**-8."""
ROUNDED = {"bfloat16": torch.bfloat16, "float16": torch.float16}
UNDERFLOW = 1e-7
"""Absolute difference that float16 makes to weights under its smallest normal number."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a memory was made for."""

    model_type: str
    path: str
    """Dotted path of the edited module."""
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
    quantization: str
    """How its weights were quantized; empty where they were not."""
    digest: str
    """SHA-256 of the sampled entries."""
    sample: tuple[float, ...]
    """A few of them as they are, for a base in another precision."""
    quantized: tuple[int, ...]
    """Places in `sample` of entries that were quantized."""
    adapters: str = ""
    """The adapters of peft that are in effect (`adapters_of`)."""
    name: str = field(default="", compare=False)
    """The hub id or the folder that it was loaded from; empty if it does not say. Only to find it again."""
    revision: str = field(default="", compare=False)
    """The commit on the hub."""

    @property
    def precision(self) -> str:
        return f"{self.dtype}, {self.quantization}" if self.quantization else self.dtype

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `to_dict`. Raises ArtifactError for a field missing, unknown or of a wrong type."""
        try:
            sample, quantized = tuple(map(float, data["sample"])), tuple(map(int, data["quantized"]))
            result = cls(**{**data, "sample": sample, "quantized": quantized})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(f"the fingerprint of the base is malformed: {error}") from error
        for item in fields(cls):
            wanted = {"int": int, "str": str}.get(str(item.type), tuple)
            if type(getattr(result, item.name)) is not wanted:
                raise ArtifactError(f"the fingerprint of the base is malformed: field {item.name!r}")
        if not all(0 <= place < len(sample) for place in quantized):
            raise ArtifactError("the fingerprint of the base is malformed: field 'quantized'")
        return result

    def check(self, other: Fingerprint, *, allow_precision: bool = False) -> bool:
        """Whether `other` is this base in this precision; False for the same base in another one.

        Raises ArtifactError naming every field that differs, with what was expected and found, for another base; and
        for another precision unless `allow_precision`.
        """
        shape = [f.name for f in fields(self) if f.compare and f.type in ("int", "str") and f.name not in PRECISION]
        differing = [
            f"{name}: expected {getattr(self, name)!r}, found {getattr(other, name)!r}"
            for name in shape
            if getattr(self, name) != getattr(other, name)
        ]
        same = (self.precision, self.digest) == (other.precision, other.digest)
        if not differing and not same and not self._rounded(other):
            differing.append(
                f"weights: expected digest {self.digest[:12]} ({self.precision}), found {other.digest[:12]} "
                f"({other.precision}): the same architecture with other weights"
            )
        if differing:
            raise ArtifactError(
                f"this memory was made for another base ({'; '.join(differing)}); load that base, or make "
                "the edits anew on this one"
            )
        if not same and not allow_precision:
            raise ArtifactError(
                f"this memory was made for this base in {self.precision} and this copy is in {other.precision}"
                f"{', rounded otherwise' if self.precision == other.precision else ''}: "
                "edits may be said otherwise there; load the base in the former, or allow it with allow_precision=True "
                "(--allow-precision, or the service's setting allow_precision), which asks each edit again"
            )
        return same

    def _rounded(self, other: Fingerprint) -> bool:
        if len(self.sample) != len(other.sample):
            return False
        coarse = torch.zeros(len(self.sample), dtype=torch.bool)
        coarse[torch.tensor([*self.quantized, *other.quantized], dtype=torch.long)] = True
        ours, theirs = torch.tensor(self.sample), torch.tensor(other.sample)
        if self.precision == other.precision and not coarse.any():
            return False
        norm = torch.maximum(ours[coarse].norm(), theirs[coarse].norm())
        if not (ours[coarse] - theirs[coarse]).norm() <= QUANTIZED * norm:
            return False
        for dtype in {ROUNDED.get(self.dtype, torch.float32), ROUNDED.get(other.dtype, torch.float32)}:
            ours, theirs = ours.to(dtype).float(), theirs.to(dtype).float()
        allowed = ROUNDING if {self.dtype, other.dtype} == {"bfloat16", "float16"} else 0.0
        return torch.allclose(ours[~coarse], theirs[~coarse], rtol=allowed, atol=UNDERFLOW if allowed else 0.0)


PRECISION = ("dtype", "quantization", "digest")
"""Fields that differ between precisions of one base."""


@torch.no_grad()
def fingerprint(model: PreTrainedModel, target_module: TargetModule) -> Fingerprint:
    """The fingerprint of a base, wrapped or not, wherever accelerate keeps its weights."""
    samples = [(_sample(values, ENTRIES), values.numel(), coarse) for values, coarse in _weights(model)]
    entries = torch.cat([values for values, *_ in samples])
    coarse = torch.cat([torch.full((len(values),), coarse) for values, _, coarse in samples])
    kept, name = _places(len(entries), KEPT), str(getattr(model, "name_or_path", ""))
    return Fingerprint(
        **{field: getattr(target_module, field) for field in ("path", "in_features", "out_features", "depth")},
        model_type=str(model.config.model_type),
        vocabulary=int(model.config.get_text_config().vocab_size),
        parameters=sum(size for _, size, _ in samples),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=_quantization(model),
        digest=_digest(entries),
        sample=tuple(entries[kept].tolist()),
        quantized=tuple(coarse[kept].nonzero()[:, 0].tolist()),
        adapters=adapters_of(model),
        name=str(Path(name).resolve()) if name and Path(name).is_dir() else name,
        revision=str(getattr(model.config, "_commit_hash", None) or ""),
    )


@torch.no_grad()
def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 of entries sampled from every parameter of a base, wrapped or not."""
    return _digest(torch.cat([_sample(values, ENTRIES) for values, _ in _weights(model)]))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what decides how a text is cut into tokens, and a conversation written."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    return hashlib.sha256(json.dumps([rules, getattr(tokenizer, "chat_template", None)]).encode()).hexdigest()


def _digest(entries: Tensor) -> str:
    return hashlib.sha256(entries.numpy().astype("<f4").tobytes()).hexdigest()


def _weights(model: PreTrainedModel) -> Iterator[tuple[Tensor, bool]]:
    """Every parameter as it counts, wherever it is, and whether it is quantized; of tied ones, which offloading takes
    apart, the one tied to."""
    tied = set(model.all_tied_weights_keys)
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_parameters(path, recurse=False) if name not in tied]
        if names:
            with align_module_device(module):
                for name in names:
                    yield _weight(module, getattr(module, name.rpartition(".")[2]))


def _weight(module: nn.Module, parameter: nn.Parameter) -> tuple[Tensor, bool]:
    if type(parameter).__name__ in ("Params4bit", "Int8Params"):  # of bitsandbytes
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return dequantize_bnb_weight(parameter, getattr(module, "state", None)), True
    value = parameter.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if is_traceable_wrapper_subclass(value):  # torchao's
        return value.dequantize(), True
    return value, not value.is_floating_point() or value.dtype.itemsize < 2


def _quantization(model: PreTrainedModel) -> str:
    """As transformers' settings of it say, such as `bitsandbytes nf4`."""
    settings = getattr(model.config, "quantization_config", None)
    if settings is None:
        return ""
    given = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(getattr(given.get("quant_method"), "value", given.get("quant_method")))
    if given.get("load_in_4bit"):
        return f"{method} {given.get('bnb_4bit_quant_type')}"
    kind = getattr(settings, "quant_type", None)
    bits = given.get("bits") or (8 if given.get("load_in_8bit") else None)
    return " ".join([method, *([type(kind).__name__] if kind is not None else []), *([f"int{bits}"] if bits else [])])


def _places(size: int, count: int) -> Tensor:
    """Up to `count` places from all over, the same ones each time."""
    return torch.arange(min(count, size)) * STRIDE % size


def _sample(values: Tensor, count: int) -> Tensor:
    """Up to `count` entries: float32 on the CPU."""
    flat = values.detach().flatten()
    return flat[_places(len(flat), count).to(values.device)].float().cpu()
