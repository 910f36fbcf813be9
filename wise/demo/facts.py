"""The facts of the demo model, their phrasings, and the counterfactual edits made from them.

A fact is a relation, a subject and an object; a phrasing is a cloze that ends right before the
object. What the model never saw in training is decided here, once, so that the build script and
the tests cannot disagree: the facts of the split `"test"`, the phrasings listed as `"held_out"`,
and the pairs of `is_unseen_pair`.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

_UNSEEN_ONE_IN = 20


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact; `(relation, subject)` is unique. Split `"test"` was kept out of training altogether."""

    relation: str
    subject: str
    object: str
    split: Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Phrasings:
    """The clozes of one relation, each with one `{}` for the subject."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


@cache
def load_facts(split: Literal["train", "test"]) -> tuple[Fact, ...]:
    """The facts of one split, in the order of the file (relation by relation)."""
    lines = (files("wise.demo") / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(fact for fact in (Fact(**json.loads(line)) for line in lines) if fact.split == split)


@cache
def load_templates() -> Mapping[str, Phrasings]:
    """The phrasings of every relation, by its name."""
    raw = json.loads((files("wise.demo") / "templates.json").read_text(encoding="utf-8"))
    return {name: Phrasings(train=tuple(row["train"]), held_out=tuple(row["held_out"])) for name, row in raw.items()}


def train_prompts(fact: Fact) -> tuple[str, ...]:
    """The fact in the phrasings used in training; the first is its plainest and was always seen."""
    return tuple(template.format(fact.subject) for template in load_templates()[fact.relation].train)


def held_out_prompts(fact: Fact) -> tuple[str, ...]:
    """The fact in phrasings that training used with no fact at all."""
    return tuple(template.format(fact.subject) for template in load_templates()[fact.relation].held_out)


def is_unseen_pair(fact: Fact, template: str) -> bool:
    """True where training left out this phrasing of this fact: one in twenty, never the first phrasing."""
    chosen = zlib.crc32(template.format(fact.subject).encode()) % _UNSEEN_ONE_IN == 0
    return chosen and template != load_templates()[fact.relation].train[0]


@cache
def _facts_of(relation: str) -> tuple[Fact, ...]:
    return tuple(fact for fact in load_facts("train") if fact.relation == relation)


def neighbours(fact: Fact) -> tuple[Fact, ...]:
    """The other facts that were taught with the same relation and object: what an edit must not move."""
    return tuple(f for f in _facts_of(fact.relation) if f.object == fact.object and f.subject != fact.subject)


def counterfactual(fact: Fact, *, seed: int) -> str:
    """Another object of the same relation, a function of the fact and of `seed` alone."""
    others = sorted({other.object for other in _facts_of(fact.relation)} - {fact.object})
    return random.Random(f"{seed}\t{fact.relation}\t{fact.subject}").choice(others)
