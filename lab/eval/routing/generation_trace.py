"""The route of every token of a prompt and of the greedy answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers import PreTrainedModel

from wise.lab.editors.context import Progress, silent
from wise.lab.eval.prompting import Prompter
from wise.lab.eval.routing.scores import prompt_ids, score_rows
from wise.model import WiseModel
from wise.training.generation import greedy


@dataclass(frozen=True, kw_only=True)
class GenerationTrace:
    """A prompt and its greedy answer, token by token."""

    ids: tuple[int, ...]
    prompt_tokens: int
    """How many of them are the prompt."""
    speakers: tuple[int | None, ...]
    """The slot that spoke when the token was read, or None for the base."""

    @property
    def flips(self) -> int:
        """Changes of speaker within the answer: from the last token of the prompt to the last one read in.

        The answer's own last token is generated and never read, so its route decides nothing.
        """
        read = self.speakers[self.prompt_tokens - 1 : max(self.prompt_tokens, len(self.speakers) - 1)]
        return sum(a != b for a, b in pairwise(read))


def trace_generations(
    model: WiseModel, texts: Sequence[str], *, tokens: int, name: str, progress: Progress = silent
) -> list[GenerationTrace]:
    """The greedy answer to each text, of at most `tokens` tokens, with every route.

    name: what `progress` is told.

    Raises ConfigError where no edit is live, or a text does not fit the context.
    """
    prompts = [prompt_ids(model, text, room=1) for text in texts]

    def compute(base: PreTrainedModel, part: Sequence[list[int]]) -> list[dict[str, Any]]:
        answers = greedy(base, part, stops=model.encoder.stops, max_new_tokens=tokens)
        rows = [[*prompt, *answer] for prompt, answer in zip(part, answers, strict=True)]
        return [
            {"ids": row, "prompt_tokens": len(prompt), "speakers": scored.speakers}
            for row, prompt, scored in zip(rows, part, score_rows(model, rows), strict=True)
        ]

    with model.evaluating():
        found = Prompter(model, progress).mapped(name, prompts, compute, len, base=False)
    return [_from_json(value) for value in found]


def _from_json(value: Mapping[str, Any]) -> GenerationTrace:
    return GenerationTrace(
        ids=tuple(value["ids"]),
        prompt_tokens=value["prompt_tokens"],
        speakers=tuple(value["speakers"]),
    )
