"""What every editor is given: the base, its encoder, a corpus, records to learn from, and a cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from wise.architectures import TargetModule, locate
from wise.config import WiseConfig
from wise.edits import Edit, Record
from wise.errors import ConfigError
from wise.lab.editors.settings import LayerSettings
from wise.memory.artifact import digest_of_json
from wise.memory.fingerprint import Fingerprint, fingerprint
from wise.memory.folder import replaced_file
from wise.memory.modules import execution_device, recorded_inputs
from wise.progress import Progress, silent
from wise.training.encoding import Encoder
from wise.training.generation import right_pad, sample

logger = logging.getLogger(__name__)

TokenRow = tuple[list[int], list[int]]
"""Ids of a prompt, and of what follows it."""
SAMPLED = 64
"""Texts that the base is asked for at once, where there is no corpus."""
ROWS = 64
BEGINNING = 10
"""Tokens of a text that prompts are put behind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EditingContext:
    """One base, and everything that editors may learn from beside the edits themselves."""

    model: PreTrainedModel
    encoder: Encoder
    """The same for all editors: targets end as the base ends its own answers."""
    texts: tuple[str, ...] | None = None
    """A corpus for statistics; None lets the base speak for itself."""
    training: tuple[Record, ...] = ()
    """Records that are not edited, for editors that are trained themselves."""
    unrelated: tuple[str, ...] = ()
    """Everyday prompts in the form in which edits are asked for; without any, those of `training` stand for them."""
    cache: Path | None = None
    """Folder in which what takes long to compute is kept."""
    progress: Progress = silent

    @property
    def device(self) -> torch.device:
        return execution_device(self.model)

    @cached_property
    def depth(self) -> int:
        return self.projection(0).depth

    def projection(self, layer: int) -> TargetModule:
        """The value projection of a block. Raises ConfigError where there is no such block."""
        return locate(self.model, WiseConfig(layer=layer), linear=True)

    def chosen(self, settings: LayerSettings) -> TargetModule:
        """The value projection of the block that the settings ask for."""
        layer = int(settings.layer_fraction * self.depth) if settings.layer is None else settings.layer
        return self.projection(layer)

    @cached_property
    def base(self) -> Fingerprint:
        """Which base this is, taken before anything was edited."""
        return fingerprint(self.model, self.projection(0))

    def row(self, edit: Edit, prompt: str | None = None) -> TokenRow:
        """Ids of an edit's prompt, or of another wording of it, and of its target with what ends it."""
        prompt = edit.prompt if prompt is None else prompt
        return self.encoder.prompt(prompt), self.encoder.target(prompt, edit.target)

    def corpus(self, tokens: int, *, length: int, seed: int = 0) -> Iterator[list[int]]:
        """Rows of ids, each of at most `length`, until there are `tokens`; of the corpus, or in the base's own words.

        Raises ConfigError where the corpus is shorter than that.
        """
        length = min(length, self.encoder.context)
        remaining = tokens
        for row in self._sampled(length, seed) if self.texts is None else self._read(length):
            yield row[:remaining]
            remaining -= len(row)
            if remaining <= 0:
                return
        raise ConfigError(
            f"the corpus has {tokens - remaining} tokens and {tokens} were asked for; give more text, or leave the "
            "corpus out and let the base speak for itself"
        )

    def beginnings(self, count: int, *, seed: int) -> list[str]:
        """Short texts of the corpus, or in the base's own words, that a prompt may stand behind."""
        rows = self.corpus(count * BEGINNING, length=BEGINNING, seed=seed)
        return [self.encoder.text(row) for row in islice(rows, count)]

    def corpus_digest(self) -> str:
        return digest_of_json(self.texts)

    def _read(self, length: int) -> Iterator[list[int]]:
        for text in self.texts or ():
            yield from cut(self.encoder, text, length)

    def _sampled(self, length: int, seed: int) -> Iterator[list[int]]:
        rows = self.encoder.starts(SAMPLED)
        tokens = length - max(map(len, rows))
        while True:
            yield from sample(self.model, rows, stops=self.encoder.stops, tokens=tokens, seed=seed)
            seed += 1

    def cached(self, kind: str, key: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `compute` gives, from the cache where it was computed before for this very base and `key`.

        The file's own metadata must say the same as its name; one that is damaged is computed anew.
        """
        if self.cache is None:
            return compute()
        identity = {"kind": kind, "base": self.base.digest, **key}
        about = json.dumps(identity, sort_keys=True)
        file = self.cache / f"{kind}-{digest_of_json(identity)[:20]}.safetensors"
        if file.exists():
            with suppress(SafetensorError, OSError), safe_open(file, framework="pt") as opened:
                if (opened.metadata() or {}).get("about") == about:
                    return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            logger.warning("%s is damaged, or not what its name says; it is computed anew", file)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
        self.cache.mkdir(parents=True, exist_ok=True)
        with replaced_file(file) as new:
            save_file(tensors, new, metadata={"about": about})
        return tensors


def cut(encoder: Encoder, text: str, length: int) -> Iterator[list[int]]:
    """The ids of a text in rows of at most `length`. Every row begins as a prompt does: with a beginning-of-sequence
    where the encoder or its tokenizer puts one."""
    ids = encoder.prompt(text)
    begin = ids[:1] if ids[:1] == [encoder.tokenizer.bos_token_id] else []
    size = length - len(begin)
    for start in range(len(begin), len(ids), size):
        yield [*begin, *ids[start : start + size]]


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood, in nats, per row: `[batch, places, vocabulary]` and `[batch, places]`, -100 where
    nothing is predicted, -> `[batch]`."""
    labelled = labels != -100  # on a large vocabulary the other places take long
    losses = torch.nn.functional.cross_entropy(logits[labelled].float(), labels[labelled], reduction="none")
    return row_means(losses, labelled)


def row_means(each: Tensor, labelled: Tensor) -> Tensor:
    """`[n]` values at the True places of `[rows, places]` -> `[rows]`."""
    sums: Tensor = torch.zeros(labelled.shape, device=each.device).masked_scatter(labelled, each).sum(-1)
    return sums / labelled.sum(-1).clamp(min=1)


def padded_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts and targets, right-padded: ids, attention mask, and labels, each `[batch, longest - 1]`.

    The label at a place is the token that comes next, where that is one of the target's; -100 elsewhere. The last token
    of a target is predicted and not read.
    """
    ids, mask = right_pad([[*prompt, *target][:-1] for prompt, target in rows], device=device)
    labels = torch.full(ids.shape, -100)
    for label_row, (prompt, target) in zip(labels, rows, strict=True):
        label_row[len(prompt) - 1 : len(prompt) - 1 + len(target)] = torch.tensor(list(target))
    return ids, mask, labels.to(device)


@torch.no_grad()
def target_losses(context: EditingContext, rows: Sequence[TokenRow]) -> list[float]:
    """Mean negative log-likelihood of each target in nats, read after its prompt by the model as it now is."""
    results: list[float] = []
    for start in range(0, len(rows), ROWS):
        ids, mask, labels = padded_rows(rows[start : start + ROWS], context.device)
        logits = context.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        results += mean_loss(logits, labels).tolist()
    return results


def module_inputs(model: PreTrainedModel, paths: Sequence[str], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Path -> what goes into that module in one forward."""
    with recorded_inputs({path: model.get_submodule(path) for path in paths}) as inputs:
        model(ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    return inputs


def as_weight(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix `[d, f]` the way round that a linear layer keeps its weight, and the other way."""
    return matrix.T if isinstance(module, Conv1D) else matrix
