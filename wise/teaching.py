"""Teaching the relation reader of `hybrid` to a file: on the questions that ship, on others, or on both."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from wise.questions import stock as shipped
from wise.router.encoder import SentenceEncoder, load_base
from wise.training.relations import Figures, Progress, Stock, measure, relation_centres, split, teach

FORMAT = {"format": "wise-relations"}
MEASURING = "measuring held-out relations"


def teach_reader(
    file: Path, stock: Stock, *, encoder: str | None, steps: int, seed: int, progress: Progress
) -> Figures:
    """Teaches the sentence encoder at a folder or hub id, None for the installed one, and writes what it was taught.

    Raises ConfigError where the encoder is not to be had.
    """
    model, tokenizer = load_base(encoder)

    def shown(what: str, done: int, total: int) -> None:
        progress(what, done, total)
        if done == total:  # the thresholds are looked for next
            progress(MEASURING, 0, 2)

    tensors = teach(model, tokenizer, stock, steps=steps, seed=seed, progress=shown)
    progress(MEASURING, 1, 2)
    reader = SentenceEncoder(model, tokenizer, tensors, name=file.name)
    if stock != shipped():  # an edit is fitted on the wordings of the shipped relation that is nearest, whoever reads
        tensors["relation_centres"] = relation_centres(reader.read, shipped()).half()
    save_file(tensors, file, metadata=FORMAT)
    figures = measure(reader.read, stock, split(stock)[1])
    progress(MEASURING, 2, 2)
    return figures
