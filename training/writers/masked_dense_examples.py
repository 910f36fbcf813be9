"""Training examples of a slot: rows where its edits must be active, and tokens where it must not (`merge`, `retrieve`).

An edit is active at the last token of its prompt, and at later tokens of its target only where the base would not
continue with the target by itself. Where the base needs no help ("after a city name: a full stop") an open gate would
open everywhere else too, so these tokens are negatives.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wise.edits import Edit
from wise.training.encoding import Encoder
from wise.training.generation import between_steps
from wise.training.rows import Rows
from wise.training.splice import SplicedModel
from wise.training.writers.base import SlotTask
from wise.training.writers.masked_dense_statistics import BaseStatistics

BATCH = 64
SWAPS = 4
"""Prompts of each edit with another edit's subject, whose tokens are negatives."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Cached rows of a list of edits. `bare` has one row an edit; `varied` has several, behind prefixes or reworded."""

    bare: Rows
    speaking: Tensor
    """`[edits, targets]` bool: where each bare row's edit acts."""
    varied: Rows | None
    varied_speaking: Tensor | None
    varied_of: tuple[tuple[int, ...], ...]
    """Rows of `varied` that belong to each edit."""
    slot: Tensor
    """`[edits]` which of the tasks each edit belongs to."""
    negatives: tuple[Tensor, ...]
    """Per task `[n, f]` float32: activations on which its slot must not be active."""


def prepare(
    tasks: Sequence[SlotTask], *, spliced: SplicedModel, encoder: Encoder, statistics: BaseStatistics, seed: int
) -> Examples:
    """Runs the base once over everything that fitting these slots will look at.

    The negatives of a slot come from its own edits and the base, so they do not depend on the other tasks.
    """
    edits = [edit for task in tasks for edit in task.edits]
    slot = torch.tensor([i for i, task in enumerate(tasks) for _ in task.edits])
    earlier_ids = {edit_id for task in tasks if task.start for edit_id in task.start.edit_ids}
    bare = spliced.cache([_row(encoder, edit.prompt, edit.target) for edit in edits])
    unaided = _unaided(spliced, bare)
    speaking = _speaking(unaided, bare)
    variations = [[] if edit.id in earlier_ids else _variations(edit, statistics, encoder) for edit in edits]
    flat = [row for ours in variations for row in ours]
    varied = spliced.cache(flat) if flat else None
    numbers = iter(range(len(flat)))
    negatives = []
    for i, task in enumerate(tasks):
        between_steps()
        places = (slot == i).nonzero().squeeze(1)
        rows = bare.select(places)
        plain = rows.activations[(rows.labels != -100).cpu() & ~speaking[places]]
        locality = [encoder.prompt(prompt) for edit in task.edits for prompt in edit.locality]
        swapped = _with_swapped_subjects(task.edits, unaided[places, 0].tolist(), spliced, encoder, seed)
        before = rows.context[rows.mask[:, : rows.context.shape[1]].bool()]
        tokens = [statistics.activations, before, plain, *_activations(spliced, locality), *swapped]
        negatives.append(torch.cat([part.float() for part in tokens]))
    return Examples(
        bare=bare,
        speaking=speaking,
        varied=varied,
        varied_speaking=_speaking(_unaided(spliced, varied), varied) if varied is not None else None,
        varied_of=tuple(tuple(next(numbers) for _ in ours) for ours in variations),
        slot=slot,
        negatives=tuple(negatives),
    )


def _variations(edit: Edit, statistics: BaseStatistics, encoder: Encoder) -> list[tuple[list[int], list[int]]]:
    """Rows of an edit behind each prefix and in each of its other wordings, those that fit the context."""
    texts = [*(f"{prefix} {edit.prompt}" for prefix in statistics.prefixes), *edit.paraphrases]
    rows = [_row(encoder, text, edit.target) for text in texts]
    return [(prompt, target) for prompt, target in rows if len(prompt) + len(target) <= encoder.context]


def _row(encoder: Encoder, prompt: str, target: str) -> tuple[list[int], list[int]]:
    return encoder.prompt(prompt), encoder.target(prompt, target)


@torch.no_grad()
def _unaided(spliced: SplicedModel, rows: Rows) -> Tensor:
    """`[rows, targets]` what the base says at each target position, given the target so far."""
    parts = [rows.select(part) for part in torch.split(torch.arange(len(rows)), BATCH)]
    return torch.cat([spliced.logits(part).argmax(-1) for part in parts]).cpu()


def _speaking(unaided: Tensor, rows: Rows) -> Tensor:
    """`[rows, targets]` bool: where an edit must speak."""
    labels = rows.labels.cpu()
    speaking = (unaided != labels) & (labels != -100)
    speaking[:, 0] = True
    return speaking


def _activations(spliced: SplicedModel, prompts: list[list[int]]) -> list[Tensor]:
    observed = []
    for start in range(0, len(prompts), BATCH):
        observation = spliced.observe(prompts[start : start + BATCH])
        observed.append(observation.activations[observation.mask.bool()])
    return observed


def _with_swapped_subjects(
    edits: Sequence[Edit], answers: list[int], spliced: SplicedModel, encoder: Encoder, seed: int
) -> list[Tensor]:
    """Activations at the end of the edits' prompts with one another's subjects: similar questions that are not edited.

    A prompt that asks for an edited fact is no negative. It is left out if it is an edit's prompt, and if the base
    answers it as it answers the other subject's own prompt (`answers`, the base's next token after each), since it is
    then likely the same question in other words.
    """
    order = random.Random(seed)
    subjects = [(edit.subject, answer) for edit, answer in zip(edits, answers, strict=True) if edit.subject]
    edit_prompts = {edit.prompt for edit in edits}
    prompts: list[tuple[list[int], int]] = []
    for edit in edits:
        if not edit.subject:
            continue
        for subject, answer in order.sample(subjects, min(SWAPS, len(subjects))):
            prompt = edit.prompt.replace(edit.subject, subject)
            ids = encoder.prompt(prompt)
            if prompt not in edit_prompts and len(ids) <= encoder.context:
                prompts.append((ids, answer))
    swapped = []
    for start in range(0, len(prompts), BATCH):
        rows, places = zip(*prompts[start : start + BATCH], strict=True)
        observed = spliced.observe(rows)
        swapped.append(observed.activations[:, -1][observed.next.cpu() != torch.tensor(places)])
    return swapped
