"""What the classes of prompts are built from: the edited records, what is known about them, and unrelated texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from jinja2 import TemplateError

from wise.edits import Edit, Record
from wise.lab.eval.prompting import turn_text
from wise.lab.eval.routing.relations import EditedFacts, Relations
from wise.lab.eval.routing.topics import sentences
from wise.training.encoding import Encoder

Source = tuple[str | None, Iterable[str]]
"""Id of a record, or None, and the prompts built from it, the best first; they may be built as they are taken."""
PromptMaker = Callable[[Record], Iterable[str]]
"""Makes prompts of a record, the best first."""
TEMPLATE_FORM = "the tokenizer's chat template, up to where the answer begins"
PLAIN_FORM = 'lines "User: ..." and "Assistant: ...", since the tokenizer has no chat template that takes plain turns'
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Draft:
    name: str
    about: str
    sources: Sequence[Source]
    why_empty: str
    """What is missing where no prompt comes of it."""
    unit: str = "prompt"


def choose(draft: Draft, *, cap: int, accept: Callable[[str], bool]) -> list[tuple[str, int]]:
    """Up to `cap` different texts that `accept` takes, each with the place of its source, in the order of those. One
    from each record before a second from any; where not all can have one, those that have lie evenly over all of them,
    so that old and new edits have their share."""
    streams: dict[int, Iterator[str]] = {place: iter(texts) for place, (_, texts) in enumerate(draft.sources)}
    best: dict[str, tuple[int, int]] = {}
    depth = 0
    while streams and len(best) < cap:
        for place in evenly(list(streams)):
            text = next((text for text in streams[place] if text not in best and accept(text)), None)
            if text is None:
                del streams[place]
                continue
            best[text] = (place, depth)
            if len(best) == cap:
                break
        depth += 1
    return [(text, place) for text, (place, _) in sorted(best.items(), key=lambda item: item[1])]


def evenly(places: Sequence[int]) -> list[int]:
    """`places` in an order of which every beginning lies evenly over all (multiples of the golden ratio, modulo 1)."""
    ranked = sorted(range(len(places)), key=lambda i: (i * _GOLDEN) % 1)
    return [places[i] for i in ranked]


class Conversation:
    """Writes turns in the tokenizer's chat template, or, where it has none, as lines of a dialogue.

    The encoder reads such a text as the ids that `wise.router.chat_template.conversation_ids` gives for the same turns.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._templated = bool(getattr(encoder.tokenizer, "chat_template", None))
        if self._templated:
            try:
                self._template("a", "b", "c")
            except (TemplateError, ValueError, TypeError, KeyError):
                self._templated = False

    @property
    def about(self) -> str:
        return TEMPLATE_FORM if self._templated else PLAIN_FORM

    def text(self, *turns: str) -> str:
        """`turns`, the user's and the model's by turns, the user's first and last, ready to be answered."""
        return self._template(*turns) if self._templated else _plain(*turns)

    def _template(self, *turns: str) -> str:
        messages = [{"role": "assistant" if place % 2 else "user", "content": turn} for place, turn in enumerate(turns)]
        return turn_text(self._encoder, messages)


def _plain(*turns: str) -> str:
    lines = [f"{'Assistant' if place % 2 else 'User'}: {turn}" for place, turn in enumerate(turns)]
    return "\n".join([*lines, "Assistant:"])


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that the builders of classes draw on; `texts`, `questions` and `exchanges` name no edited subject."""

    records: tuple[Record, ...]
    """Those whose edits are live."""
    pool: tuple[Record, ...]
    live: tuple[Edit, ...]
    encoder: Encoder
    relations: Relations
    edited: EditedFacts
    conversation: Conversation
    texts: tuple[str, ...]
    questions: tuple[str, ...]
    exchanges: tuple[tuple[str, str], ...]
    seed: int
    per_class: int
    max_tokens: int
    fitted: frozenset[str]
    """Templates of the live edits' own prompts: fitting keeps silent on some of them with other subjects put in."""

    def rng(self, name: str, record: Record) -> random.Random:
        """Chance for one record in one class, the same whatever else is built."""
        return random.Random(f"{self.seed} {name} {record.edit.id}")

    def length(self, text: str) -> int:
        return len(self.encoder.prompt(text))

    def fits(self, text: str) -> bool:
        return self.length(text) <= self.encoder.context

    def first_that_fit(self, make: PromptMaker) -> list[Source]:
        """For each record the first of the prompts that `make` makes of it and that fits the context."""
        return [(record.edit.id, islice(filter(self.fits, make(record)), 1)) for record in self.records]

    def sentences(self) -> list[str]:
        """Those of the running texts that are whole and of ordinary length."""
        results = [" ".join(sentence.split()) for text in self.texts for sentence in sentences(text)]
        whole = (sentence for sentence in results if sentence[-1] in ".!?" and sentence.count('"') % 2 == 0)
        return [sentence for sentence in whole if 4 <= len(sentence.split()) <= 40]
