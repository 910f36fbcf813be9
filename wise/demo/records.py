"""The facts of the demo model as records: a counterfactual edit of each, and the prompts that measure it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from wise.demo.facts import Fact, counterfactual, held_out_prompts, load_facts, neighbours, train_prompts
from wise.edits import Edit, Record
from wise.errors import ConfigError

NEIGHBOURS = 4
"""Prompts of each edit that must not move; two of its own relation and answer, where there are."""


def demo_records(count: int, *, seed: int) -> list[Record]:
    """Counterfactual edits of facts that the model was taught, no two alike, and the prompts that measure them.

    Raises ConfigError for more than it was taught.
    """
    return _records(count, seed, further=False)


def write_records(path: Path, count: int, *, seed: int) -> None:
    """`demo_records`, and behind them those of all other facts, as JSON lines: nothing of theirs asks the former.

    Raises ConfigError as `demo_records` does.
    """
    records = _records(count, seed, further=True)
    path.write_text("".join(json.dumps(record.to_dict(), ensure_ascii=False) + "\n" for record in records))


def _records(count: int, seed: int, *, further: bool) -> list[Record]:
    known = load_facts("train")
    if not 1 <= count <= len(known):
        raise ConfigError(f"edits={count}: the demo model was taught {len(known)} facts; ask for 1 to that many")
    order = random.Random(seed)
    edited = order.sample(known, count)
    about = {(fact.relation, fact.subject) for fact in edited}
    records = [_record(fact, about, order, seed) for fact in edited]
    if further:
        rest = [fact for fact in known if (fact.relation, fact.subject) not in about]
        order.shuffle(rest)
        records += [_record(fact, about, order, seed) for fact in rest]
    return records


def _record(fact: Fact, edited: set[tuple[str, str]], order: random.Random, seed: int) -> Record:
    """The plainest phrasing is edited; the others, and those that no training ever used, are its paraphrases."""
    plain, *others = train_prompts(fact)
    close = [other for other in neighbours(fact) if (other.relation, other.subject) not in edited]
    near = order.sample(close, min(NEIGHBOURS // 2, len(close)))
    same_relation = [other for other in load_facts("train") if other.relation == fact.relation]
    apart = [other for other in same_relation if other != fact and (other.relation, other.subject) not in edited]
    rest = [other for other in apart if other not in near]
    near += order.sample(rest, min(NEIGHBOURS - len(near), len(rest)))
    return Record(
        edit=Edit(prompt=plain, target=counterfactual(fact, seed=seed), subject=fact.subject),
        paraphrases=(*held_out_prompts(fact), *order.sample(others, 2)),
        neighbours=tuple(train_prompts(other)[0] for other in near),
        answer=fact.object,
        relation=fact.relation,
    )
