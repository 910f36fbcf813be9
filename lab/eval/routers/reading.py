"""What routers may go by, read off the base once for all of them: activations, token ids, and the text itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wise.architectures import ValueProjection
from wise.lab.eval.routing.scores import prompt_ids
from wise.lab.eval.work import BATCH, Progress
from wise.memory.layer import execution_device
from wise.model import WiseModel
from wise.training.generation import recorded_inputs, right_pad


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One text, of whose tokens the last m are routed."""

    text: str
    ids: tuple[int, ...]
    activations: Mapping[int, Tensor]
    """Block -> `[m, f]` float32 on the CPU: what enters its value projection."""

    @property
    def routed(self) -> int:
        """m: 1, or all tokens."""
        return len(next(iter(self.activations.values())))


@torch.no_grad()
def read(
    model: WiseModel,
    blocks: Sequence[ValueProjection],
    texts: Sequence[str],
    *,
    every_token: bool = False,
    name: str = "reading",
    progress: Progress | None = None,
) -> list[Reading]:
    """Runs the base over `texts`, in batches of like length; of each its last token is routed, or every one.

    Args:
        model: of which the base is read.
        blocks: value projections of blocks, of which each is read.

    Raises ConfigError for a text that has no token, or more than the context holds.
    """
    rows = [prompt_ids(model, text) for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Reading] = {}
    with model.evaluating(), model.disabled():
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            activations = _run(model, blocks, [rows[i] for i in part])
            for n, i in enumerate(part):
                end = len(rows[i])
                first = 0 if every_token else end - 1
                found[i] = Reading(
                    text=texts[i],
                    ids=tuple(rows[i]),
                    activations={block: seen[n, first:end].clone() for block, seen in activations.items()},
                )
            if progress is not None:
                progress(name, start + len(part), len(order))
    return [found[i] for i in range(len(texts))]


def _run(
    model: WiseModel, blocks: Sequence[ValueProjection], rows: Sequence[Sequence[int]]
) -> dict[int, Tensor]:
    """Block -> `[rows, longest, f]`."""
    ids, mask = right_pad(rows, device=execution_device(model.model))
    with recorded_inputs({place.layer: model.model.get_submodule(place.path) for place in blocks}) as seen:
        model.model.base_model(ids, attention_mask=mask, use_cache=False)
    # Some architectures flatten their rows.
    return {block: part.float().view(*ids.shape, -1).cpu() for block, part in seen.items()}
