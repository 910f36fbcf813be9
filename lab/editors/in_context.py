"""IKE: the model is not changed; edits that a prompt may be about are put in front of it.

Zheng, Li, Dong, Fan, Wu, Xu and Chang, "Can We Edit Factual Knowledge by In-Context Learning?", EMNLP 2023, arXiv
2305.12740. The prompt is read behind demonstrations and the new fact (section 3.1). Demonstrations (3.2) come from
records that are not edited, the nearest ones by sentence embedding, the nearest last; each is a fact followed by one of
three things: itself (copy), another wording of it with the same answer (update), or a prompt beside it with the answer
that was right before (retain).

Where this departs from the paper:

* The paper gives the model the one right fact. Here there are many edits, and a question does not say which one is
  meant: the nearest edits by the embedding of their prompts are read, and none where none is near enough. Then the
  model reads the prompt alone, and answers as the base does.
* In a chat the facts stand in the system message (`InContext.conversation`).
* Everything is written in plain sentences that end as the base ends its answers, the facts in the order in which they
  came, and not as `New Fact: ... Prompt: ...`: most bases are no chat models, and small ones know no other style.
* Demonstrations are left out by default for the same reason; the paper has 32.
* Where the context is full, demonstrations are left out first, then the oldest facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Annotated, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.edits import Edit, Record
from wise.lab.editors.base import Applied, Baseline, WholePrompts
from wise.lab.editors.context import EditingContext
from wise.lab.editors.settings import Bounds, Count, CountOrZero, Settings
from wise.router.encoder import SentenceEncoder, load_untrained

ANSWER_ROOM = 48
"""Tokens of the context that are kept free for an answer, less where it holds fewer than four times as many."""
KINDS = ("copy", "update", "retain", "update", "retain", "update", "retain", "retain")
"""The paper's ratio of demonstrations, 1 : 3 : 4."""
SYSTEM_MESSAGE = "You are a helpful assistant."
CHAT_FACTS = "Answer by these facts where they apply:"
"""The opening of the system message, before the facts."""


@dataclass(frozen=True, kw_only=True)
class InContextSettings(Settings):
    """How many edits are read, and from which likeness on."""

    search = {
        "facts": (1, 3),
        "threshold": (0.6, 0.7, 0.8),
        "demonstrations": (0, 8),
    }

    facts: Count = 1
    """Edits that a prompt is read behind, at most."""
    threshold: Annotated[float, Bounds(low=-1, high=1)] = 0.7
    """Cosine of two prompts' embeddings from which one may be about the other's edit."""
    demonstrations: CountOrZero = 0
    """Examples that the facts are read behind, at most."""


def published_encoder(path: str | None = None) -> SentenceEncoder:
    """The sentence encoder without what wise taught it. Raises ConfigError where it cannot be loaded."""
    model, tokenizer = load_untrained(path)
    nothing = {"projection": torch.eye(int(model.config.hidden_size)), "thresholds": torch.zeros(4)}
    return SentenceEncoder(model, tokenizer, nothing, name="published")


class InContext(Baseline[InContextSettings], WholePrompts):
    Config = InContextSettings

    def __init__(self, context: EditingContext, settings: InContextSettings) -> None:
        super().__init__(context, settings)
        self._embeddings: dict[str, Tensor] = {}
        """Prompt of a live edit -> `[e]`."""
        self._examples: list[tuple[Record, Tensor]] = []
        """Records that demonstrations are made of, and the embeddings of their prompts."""
        self._silent = False

    @cached_property
    def embedder(self) -> Callable[[Sequence[str]], Tensor]:
        """Texts -> `[texts, e]` of norm 1: the sentence encoder as it is published, loaded at the first text."""
        return published_encoder().read

    def with_context(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Each prompt behind what it may be about; the very same ids where that is nothing."""
        decode = self.encoder.tokenizer.decode
        texts = [str(decode(list(prompt), skip_special_tokens=True)).strip() for prompt in prompts]
        places = [i for i, text in enumerate(texts) if text]
        results = [list(prompt) for prompt in prompts]
        if self._silent or not self.edits or not places:
            return results
        embedded = self.embedder([texts[i] for i in places])
        for i, query, near in zip(places, embedded, self._near(embedded), strict=True):
            if near:
                facts = [self._sentence(self.edits[n].prompt, self.edits[n].target) for n in near]
                results[i] = self._fitting(facts, self._demonstrated(query), texts[i]) or results[i]
        return results

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        """A conversation as practitioners give it to a chat model: the facts that its last question may be about stand
        in the system message. The same messages where it is about none."""
        question = messages[-1]["content"]
        near = [] if self._silent or not self.edits else self._near(self.embedder([question]))[0]
        if not near:
            return list(messages)
        system = [message["content"] for message in messages if message["role"] == "system"]
        facts = [f"{self.edits[n].prompt} {self.edits[n].target}." for n in near]
        answer = " ".join([*(system or [SYSTEM_MESSAGE]), CHAT_FACTS, *facts])
        rest = [message for message in messages if message["role"] != "system"]
        return [{"role": "system", "content": answer}, *rest]

    def _near(self, queries: Tensor) -> list[list[int]]:
        """Of each question's embedding `[n, e]` the numbers of the edits that it may be about, in their order."""
        embeddings = torch.stack([self._embeddings[edit.prompt] for edit in self.edits])
        results = []
        for row in queries @ embeddings.T:
            nearest = row.topk(min(self.settings.facts, len(row)))
            results.append(sorted(nearest.indices[nearest.values >= self.settings.threshold].tolist()))
        return results

    def _fitting(self, facts: Sequence[str], demonstrations: Sequence[str], text: str) -> list[int] | None:
        """Ids of as many sentences before a text as the context holds, the last ones; None where it holds no fact."""
        sentences = [*demonstrations, *facts]
        room = self.encoder.context - min(ANSWER_ROOM, self.encoder.context // 4)
        for first in range(len(sentences)):
            ids = self.encoder.prompt(" ".join([*sentences[first:], text]))
            if len(ids) <= room:
                return ids
        return None

    def _sentence(self, prompt: str, answer: str) -> str:
        """A fact as the base would say it: with what closes its answers, but for the end of the sequence."""
        closing = self.encoder.text(self.encoder.terminator[:-1])
        return f"{prompt} {answer}{closing}"

    def _demonstrated(self, query: Tensor) -> list[str]:
        """Demonstrations for a prompt of this embedding `[e]`, the nearest last."""
        if not self._examples:
            return []
        likeness = torch.stack([embedding for _, embedding in self._examples]) @ query
        nearest = likeness.topk(min(self.settings.demonstrations, len(likeness))).indices.tolist()
        examples = [self._example(self._examples[n][0], kind) for n, kind in zip(nearest, cycle(KINDS), strict=False)]
        return examples[::-1]

    def _example(self, record: Record, kind: str) -> str:
        """A new fact, and what follows from it, or does not."""
        fact = self._sentence(record.edit.prompt, record.edit.target)
        # A neighbour's answer is known where a probe has it: in many sets it is not the edit's old one.
        neighbours = [q for probe in record.probes for q in probe.queries if q.prompt in record.neighbours]
        if kind == "retain" and neighbours:
            return f"{fact} {self._sentence(neighbours[0].prompt, neighbours[0].answers[0])}"
        wording = record.paraphrases[0] if kind == "update" and record.paraphrases else record.edit.prompt
        return f"{fact} {self._sentence(wording, record.edit.target)}"

    def _prepare(self) -> None:
        records = self.context.training if self.settings.demonstrations else ()
        if records:
            embedded = self.embedder([record.edit.prompt for record in records])
            self._examples = list(zip(records, embedded, strict=True))

    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        prompts = [edit.prompt for edit in edits]
        self._embeddings = {**self._embeddings, **dict(zip(prompts, self.embedder(prompts), strict=True))}
        progress(len(edits))
        return [Applied() for _ in edits]

    @contextmanager
    def disabled(self) -> Iterator[PreTrainedModel]:
        """The model is the base at any time; within the block prompts too are read as they are."""
        before, self._silent = self._silent, True
        try:
            yield self.model
        finally:
            self._silent = before

    def unwrap(self) -> PreTrainedModel:
        return self.model

    @property
    def memory_bytes(self) -> int:
        """The edits' texts and embeddings."""
        texts = sum(len(text.encode()) for edit in self.edits for text in (edit.prompt, edit.target))
        return texts + sum(self._embeddings[edit.prompt].nbytes for edit in self.edits)

    @property
    def state(self) -> Any:
        return self._embeddings

    def restore(self, state: Any) -> None:
        self._embeddings = state
