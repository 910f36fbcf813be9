"""The router's scores on prompts, before any answer is generated. A gate opens where its score reaches 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.errors import ConfigError
from wise.explain import read_rows
from wise.lab.editors.context import Progress, silent
from wise.lab.eval.prompting import Prompter
from wise.memory.side_memory import NO_SLOT, SideMemory
from wise.memory.state import MemoryState
from wise.model import WiseModel


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
    def speakers(self) -> tuple[int | None, ...]:
        """The slot that speaks at each token, or None for the base."""
        return tuple(slot if value >= 1 else None for value, slot in zip(self.values, self.slots, strict=True))


def score_prompts(
    model: WiseModel, texts: Sequence[str], *, name: str, every_token: bool = False, progress: Progress = silent
) -> list[Scored]:
    """The evidence at the last token of each prompt, or at every token of it.

    name: what `progress` is told.

    Raises ConfigError where the model has no live edit, or a prompt has no token or more than the context holds.
    """
    rows = [prompt_ids(model, text) for text in texts]
    served(model)

    def compute(_: PreTrainedModel, part: Sequence[list[int]]) -> list[dict[str, Any]]:
        kept = [_tail(scored, None if every_token else 1) for scored in score_rows(model, part)]
        return [{"values": s.values, "slots": s.slots, "edits": s.edits} for s in kept]

    with model.evaluating():
        found = Prompter(model, progress).mapped(name, rows, compute, len, base=False)
    return [_from_json(value) for value in found]


def gate_ratios(model: WiseModel, prompts: Sequence[str]) -> Tensor:
    """`[n]` evidence at the last token of each prompt: the gate opens from 1. 0 for a model without edits."""
    if model.layer.memory is None:
        return torch.zeros(len(prompts))
    found = score_prompts(model, prompts, name="routing.ratios")
    return torch.tensor([scored.values[-1] for scored in found])


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
    found = []
    for i, row in enumerate(rows):
        told, nearest = (part[i, : len(row)].tolist() for part in (slots, keys))
        found.append(
            Scored(
                values=tuple(values[i, : len(row)].tolist()),
                slots=tuple(told),
                edits=tuple(_edit(model.state, slot, key) for slot, key in zip(told, nearest, strict=True)),
            )
        )
    return found


def _edit(state: MemoryState, slot: int, key: int) -> str | None:
    """Of a key, or of a slot that is an edit's own."""
    if key >= 0:
        return state.key_owners[key]
    return None if slot == NO_SLOT or state.slots[slot].shared else state.slots[slot].edit_ids[0]


def _tail(scored: Scored, count: int | None) -> Scored:
    start = 0 if count is None else -count
    return Scored(values=scored.values[start:], slots=scored.slots[start:], edits=scored.edits[start:])


def _from_json(value: Mapping[str, Any]) -> Scored:
    return Scored(values=tuple(value["values"]), slots=tuple(value["slots"]), edits=tuple(value["edits"]))
