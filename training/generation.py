"""Greedy generation to the model's own stop: the truth that edits are verified and measured by."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

BATCH = 64


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Collection[int],
    max_new_tokens: int | Sequence[int],
    batch: int = BATCH,
) -> list[list[int]]:
    """The greedy continuation of each prompt, up to and including its first stop.

    `max_new_tokens` may differ per prompt. Prompts of like length share a batch, left-padded.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: (limits[i], len(prompts[i])))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(limits[i] for i in rows),
            eos_token_id=sorted(stops),
            pad_token_id=min(stops),
        )
        ids, mask = left_pad([prompts[i] for i in rows], device=model.device)
        out = model.generate(ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :].tolist()
        for i, row in zip(rows, out, strict=True):
            end = next((n + 1 for n, token in enumerate(row) if token in stops), len(row))
            answers[i] = row[: min(end, limits[i])]
    return answers


def left_pad(rows: Sequence[Sequence[int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[batch, longest]`; pads are 0 and masked."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)
