"""Teaching the relation reader of `hybrid` to a file: on the questions that ship, on others, or on both."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from wise.questions import stock as shipped
from wise.router.encoder import load_base
from wise.training.relations import Figures, Progress, Stock, teach

FORMAT = {"format": "wise-relations"}


def teach_reader(
    file: Path,
    stock: Stock,
    *,
    encoder: str | None,
    steps: int,
    seed: int,
    device: str | None = None,
    progress: Progress,
) -> Figures:
    """Teaches the sentence encoder at a folder or hub id, None for the installed one, and writes what it was taught.

    device: where it is taught; None is the CPU.

    Raises ConfigError where the encoder is not to be had.
    """
    model, tokenizer = load_base(encoder)
    model = model.to(device or "cpu")
    tensors, figures = teach(model, tokenizer, stock, known=shipped(), steps=steps, seed=seed, progress=progress)
    save_file(tensors, file, metadata=FORMAT)
    return figures
