"""How far a gate is from opening: the router's own evidence, before any answer is generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wise.memory.layer import execution_device
from wise.model import WiseModel
from wise.training.generation import left_pad

BATCH = 64


def gate_ratios(model: WiseModel, prompts: Sequence[str]) -> Tensor:
    """`[n]` routing score over threshold at the last token of each prompt: the gate opens from 1.

    0 where no slot was asked, and for a model without edits.
    """
    ratios = torch.zeros(len(prompts))
    for start in range(0, len(prompts), BATCH):
        rows = [model.encoder.prompt(prompt) for prompt in prompts[start : start + BATCH]]
        ids, mask = left_pad(rows, device=execution_device(model))
        route = model.route(ids, mask)
        if route is not None:
            ratio = (route.score / route.threshold).view(ids.shape)[:, -1]
            ratios[start : start + BATCH] = ratio.cpu()
    return ratios
