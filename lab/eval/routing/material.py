"""What routing classes are built from: the edited records, what is known of them, and texts that ask for none."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from wise.edits import Edit, Record
from wise.lab.eval.routing.conversation import Conversation
from wise.lab.eval.routing.edited import EditedFacts
from wise.lab.eval.routing.relations import Relations
from wise.lab.eval.routing.texts import shipped_exchanges
from wise.lab.eval.routing.wording import sentences
from wise.training.encoding import Encoder

LEAST_WORDS = 5_000
"""Words of running text that are looked through even where few tokens of it are measured."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that the builders of classes draw on; `texts`, `questions` and `exchanges` name no edited subject."""

    records: tuple[Record, ...]
    """Those whose edits are live."""
    pool: tuple[Record, ...]
    """Others, not edited."""
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
        """Tokens of a prompt."""
        return len(self.encoder.prompt(text))

    def fits(self, text: str) -> bool:
        return self.length(text) <= self.encoder.context

    def sentences(self) -> list[str]:
        """Those of the running texts that are whole and of ordinary length."""
        found = [" ".join(sentence.split()) for text in self.texts for sentence in sentences(text)]
        whole = (sentence for sentence in found if sentence[-1] in ".!?" and sentence.count('"') % 2 == 0)
        return [sentence for sentence in whole if 4 <= len(sentence.split()) <= 40]


def gather(
    records: Sequence[Record],
    *,
    live: Sequence[Edit],
    pool: Sequence[Record],
    encoder: Encoder,
    text: Sequence[str],
    questions: Sequence[str],
    seed: int,
    per_class: int,
    max_tokens: int,
) -> Material:
    """Reads relations, guards and clean texts out of what is given."""
    relations = Relations((*records, *pool), live)
    edited = EditedFacts(records, live, relations)
    rng = random.Random(f"{seed} material")
    clean = (text for text in _shuffled(text, rng) if _unrelated(text, edited))
    asked = (question for question in _shuffled(questions, rng) if _unrelated(question, edited))
    exchanges = [(q, a) for q, a in shipped_exchanges() if _unrelated(f"{q} {a}", edited)]
    ids = {record.edit.id for record in records} | {edit.id for edit in live}
    return Material(
        records=tuple(_current(records, live)),
        pool=tuple(record for record in pool if record.edit.id not in ids),
        live=tuple(live),
        encoder=encoder,
        relations=relations,
        edited=edited,
        conversation=Conversation(encoder),
        texts=tuple(_enough(clean, max(max_tokens, LEAST_WORDS))),
        questions=tuple(islice(asked, per_class)),
        exchanges=tuple(exchanges),
        seed=seed,
        per_class=per_class,
        max_tokens=max_tokens,
        fitted=frozenset(edit.prompt.replace(edit.subject, "{}") for edit in live if edit.subject),
    )


def _current(records: Sequence[Record], live: Sequence[Edit]) -> Iterator[Record]:
    """The records whose edits are live; nothing can be routed to the others, nor be held apart from them."""
    held = {edit.prompt: edit.id for edit in live}  # of a prompt that was edited again, the last edit
    return (record for record in records if held.get(record.edit.prompt) == record.edit.id)


def _unrelated(text: str, edited: EditedFacts) -> bool:
    return not edited.names(text) and not edited.states(text)


def _shuffled(texts: Sequence[str], rng: random.Random) -> list[str]:
    found = [text for text in dict.fromkeys(texts) if text.strip()]
    rng.shuffle(found)
    return found


def _enough(texts: Iterable[str], count: int) -> Iterator[str]:
    """Texts of together at least `count` words, each of which is at least about one token."""
    total = 0
    for text in texts:
        if total >= count:
            return
        total += len(text.split())
        yield text
