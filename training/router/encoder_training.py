"""Training of the relation reader: a sentence encoder learns to tell apart the relations of one subject.

The loss is InfoNCE (van den Oord et al., arXiv 1807.03748) in both directions: two wordings of one question must agree,
and the other pairs of their group are the negatives. One relation in six is held out; on these the thresholds are set
and the figures measured.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from wise.memory.folder import replaced_file
from wise.progress import Progress
from wise.router.encoder import SCALE, dequantized, load_untrained, quantized
from wise.training.router.builtin_questions import QuestionSet, builtin_questions
from wise.training.router.calibration import Figures, measure, relation_centres, relation_kinds
from wise.training.router.examples import batch, split

SIZE = 128
"""r: numbers in a vector, so that four keys in half precision take 1 KiB."""
TRAINED_BLOCKS = 4
"""Last blocks of the encoder that are trained."""
TEMPERATURE = 0.05
LEARNING_RATE = 5e-5
"""For `USUAL_STEPS` steps. With fewer steps the rate is higher."""
HEAD_RATE = 3e-4
USUAL_STEPS = 1000
WARM_UP = 20
READ_AT_ONCE = 32
"""Texts of one batch of the encoder."""
MAX_TOKENS = 96
MEASURING = "measuring held-out relations"
FORMAT = {"format": "wise-relations"}


def train_reader(
    file: Path,
    questions: QuestionSet,
    *,
    encoder: str | None,
    steps: int,
    seed: int,
    device: str | None = None,
    progress: Progress,
) -> Figures:
    """Trains the sentence encoder at a folder or hub id, None for the installed one, and writes what it learned.

    device: where it is trained; None is the CPU.

    Raises ConfigError where the encoder cannot be loaded.
    """
    model, tokenizer = load_untrained(encoder)
    model = model.to(device or "cpu")
    tensors, figures = train_encoder(
        model, tokenizer, questions, known=builtin_questions(), steps=steps, seed=seed, progress=progress
    )
    with replaced_file(file) as new:
        save_file(tensors, new, metadata=FORMAT)
    return figures


def train_encoder(
    model: Any, tokenizer: Any, questions: QuestionSet, *, known: QuestionSet, steps: int, seed: int, progress: Progress
) -> tuple[dict[str, Tensor], Figures]:
    """Trains `model`, a BERT, in place and on its device, on the questions of `questions`.

    known: relations whose wordings edits are fitted on, whichever were taught.

    Returns what `SentenceEncoder` reads, and the figures on the held-out relations. The global random state
    is not touched.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        taught, held_out = split(questions)
        network, order = TrainableEncoder(model, tokenizer), random.Random(seed)
        _descend(network, questions, taught, order, steps, progress)
        tensors = network.finish()
        progress(MEASURING, 0, 1)
        centres = relation_centres(network, known).half()  # as they are kept
        figures = measure(network, questions, held_out, centres.float())
        progress(MEASURING, 1, 1)
    names = ("threshold", "sentence_threshold", "unnamed_threshold", "nameless_threshold")
    thresholds = torch.tensor([getattr(figures, name) for name in names], dtype=torch.float64)
    found = tensors | {"thresholds": thresholds, "relation_centres": centres, "relation_kinds": relation_kinds(known)}
    return {name: tensor.cpu() for name, tensor in found.items()}, figures


def _descend(
    network: TrainableEncoder,
    questions: QuestionSet,
    taught: Mapping[str, list[str]],
    order: random.Random,
    steps: int,
    progress: Progress,
) -> None:
    parts = [p for p in network.model.parameters() if p.requires_grad]
    rate = LEARNING_RATE * (USUAL_STEPS / steps) ** 0.4
    optimizer = torch.optim.AdamW(
        [{"params": parts, "lr": rate}, {"params": [network.projection], "lr": HEAD_RATE}], weight_decay=0.01
    )
    slower = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * max(0.1, 1 - step / steps)
    )
    network.train()
    for step in range(steps):
        loss = _loss(network, *batch(questions, taught, order))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*parts, network.projection], 1.0)
        optimizer.step()
        slower.step()
        progress(f"teaching relations, loss {float(loss.detach()):.2f}", step + 1, steps)


class TrainableEncoder(torch.nn.Module):
    """An encoder with a projection behind it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        size = int(model.config.hidden_size)
        start = torch.linalg.qr(torch.randn(size, SIZE)).Q.T.contiguous().to(model.device)
        self.projection = torch.nn.Parameter(start)
        last = int(model.config.num_hidden_layers) - TRAINED_BLOCKS
        self.names = [n for n, _ in model.named_parameters() if _block(n) >= last]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.names)
        self._before = {n: p.detach().clone() for n, p in model.named_parameters() if n in self.names}

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Unit `[n, r]`. Texts of like length are read together: padding costs as much as text."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        parts = [order[start : start + READ_AT_ONCE] for start in range(0, len(order), READ_AT_ONCE)]
        vectors = torch.cat([self._read([ids[i] for i in part]) for part in parts])
        return vectors[torch.tensor(order).argsort()]

    def _read(self, ids: list[list[int]]) -> Tensor:
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.projection.device)
        states = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return normalize(linear((states * mask).sum(1) / mask.sum(1), self.projection), dim=-1)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """What was learned, quantized as it is stored. The network itself then has the quantized parameters too."""
        self.eval()
        parameters, tensors = dict(self.model.named_parameters()), {"projection": self.projection.detach()}
        for name in self.names:
            tensors[name], tensors[f"{name}{SCALE}"] = quantized(parameters[name] - self._before[name])
            parameters[name].copy_(self._before[name] + dequantized(tensors[name], tensors[f"{name}{SCALE}"]))
        return tensors


def _loss(network: TrainableEncoder, first: list[str], second: list[str], group: list[int]) -> Tensor:
    vectors = network([*first, *second])
    groups = torch.tensor(group, device=vectors.device)
    scores = vectors[: len(first)] @ vectors[len(first) :].T / TEMPERATURE
    scores = scores.masked_fill(groups[:, None] != groups[None], -1e4)
    same = torch.arange(len(first), device=vectors.device)
    return (cross_entropy(scores, same) + cross_entropy(scores.T, same)) / 2


def _block(name: str) -> int:
    """The number of the block that a parameter is of; -1 for others."""
    parts = name.split(".")
    return int(parts[parts.index("layer") + 1]) if "layer" in parts else -1
