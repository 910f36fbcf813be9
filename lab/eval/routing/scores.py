"""The router's scores on prompts, before any answer is generated. A gate opens where its score reaches 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from reprlib import repr as shortened

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.errors import ConfigError
from wise.explain import read_rows
from wise.lab.eval.prompting import Prompter
from wise.memory.side_memory import NO_SLOT, SideMemory
from wise.memory.state import MemoryState
from wise.model import WiseModel
from wise.progress import Progress, silent
from wise.training.generation import greedy


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The evidence at tokens of one row."""

    values: tuple[float, ...]
    """The gate opens exactly where a value is at least 1."""
    slots: tuple[int, ...]
    """The slot that would speak; NO_SLOT where none was looked at (`hybrid`)."""
    edits: tuple[str | None, ...]
    """The edit whose key is nearest, or to which the slot belongs; None where neither says which it is."""

    @property
    def last(self) -> Scored:
        return Scored(values=self.values[-1:], slots=self.slots[-1:], edits=self.edits[-1:])

    @property
    def speakers(self) -> tuple[int | None, ...]:
        return tuple(slot if value >= 1 else None for value, slot in zip(self.values, self.slots, strict=True))


def score_prompts(
    model: WiseModel, texts: Sequence[str], *, name: str, every_token: bool = False, progress: Progress = silent
) -> list[Scored]:
    """The evidence at the last token of each prompt, or at every token of it.

    name: goes to `progress`.

    Raises ConfigError where the model has no live edit, or a prompt has no token or more than the context holds.
    """
    rows = [prompt_ids(model, text) for text in texts]
    served(model)

    def compute(_: PreTrainedModel, part: Sequence[list[int]]) -> list[Scored]:
        scored = score_rows(model, part)
        return scored if every_token else [each.last for each in scored]

    with model.evaluating():
        return Prompter(model, progress).mapped(name, rows, compute, len, base=False)


def count_flips(
    model: WiseModel, texts: Sequence[str], *, tokens: int, name: str, progress: Progress
) -> list[int]:
    """Changes of speaker within the greedy answer to each text, of at most `tokens` tokens: from the last token of the
    prompt to the last one read in; the answer's own last token is generated and never read. Raises ConfigError where no
    edit is live, or a text does not fit the context."""
    prompts = [prompt_ids(model, text, room=1) for text in texts]

    def compute(base: PreTrainedModel, part: Sequence[list[int]]) -> list[int]:
        answers = greedy(base, part, stops=model.encoder.stops, max_new_tokens=tokens)
        scored = score_rows(model, [[*prompt, *answer] for prompt, answer in zip(part, answers, strict=True)])
        return [flips(each.speakers, len(prompt)) for each, prompt in zip(scored, part, strict=True)]

    with model.evaluating():
        return Prompter(model, progress).mapped(name, prompts, compute, len, base=False)


def flips(speakers: Sequence[int | None], prompt_tokens: int) -> int:
    """Changes of speaker between the last token of the prompt and the last but one of all."""
    return sum(a != b for a, b in pairwise(speakers[prompt_tokens - 1 : max(prompt_tokens, len(speakers) - 1)]))


def gate_ratios(model: WiseModel, prompts: Sequence[str]) -> Tensor:
    """`[n]` evidence at the last token of each prompt: the gate opens from 1. 0 for a model without edits."""
    if model.layer.memory is None:
        return torch.zeros(len(prompts))
    result = score_prompts(model, prompts, name="routing.ratios")
    return torch.tensor([scored.values[-1] for scored in result])


def served(model: WiseModel) -> SideMemory:
    """The side memory in place. Raises ConfigError where there is none, so that nothing is routed."""
    memory = model.layer.memory
    if memory is None:
        raise ConfigError(
            "no edit is live, so there is no router to measure: apply edits first (an editor other than 'none', and "
            "at least one edit that verified), or leave routing out"
        )
    return memory


def prompt_ids(model: WiseModel, text: str, *, room: int = 0) -> list[int]:
    """Ids of a prompt that leaves `room` tokens of the context.

    Raises ConfigError where it has no token, or more than fit.
    """
    ids, most = model.encoder.prompt(text), model.encoder.context - room
    if not 1 <= len(ids) <= most:
        raise ConfigError(
            f"the prompt {shortened(text)} has {len(ids)} tokens, from 1 to {most} can be read here; shorten it or "
            "leave it out"
        )
    return ids


@torch.no_grad()
def score_rows(model: WiseModel, rows: Sequence[Sequence[int]]) -> list[Scored]:
    """The evidence at every token of each row of ids. Raises ConfigError where the model gives NaN."""
    memory = served(model)
    activation = read_rows(model.model, model.layer, rows)
    values, slots, keys = (part.view(activation.shape[:2]).cpu() for part in memory.evidence(activation))
    scored = []
    for i, row in enumerate(rows):
        chosen, nearest = (part[i, : len(row)].tolist() for part in (slots, keys))
        scored.append(
            Scored(
                values=tuple(values[i, : len(row)].tolist()),
                slots=tuple(chosen),
                edits=tuple(_edit(model.state, slot, key) for slot, key in zip(chosen, nearest, strict=True)),
            )
        )
    return scored


def _edit(state: MemoryState, slot: int, key: int) -> str | None:
    """Of a key, or of a slot that is an edit's own."""
    if key >= 0:
        return state.key_owners[key]
    return None if slot == NO_SLOT or state.slots[slot].shared else state.slots[slot].edit_ids[0]
