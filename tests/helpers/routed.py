"""The shipped model with a few facts changed, for what measures routing on real edits."""

from __future__ import annotations

from functools import cache

from tiny import reading
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.demo.facts import counterfactual, held_out_prompts, load_facts, train_prompts

EDITED = 5
"""Of the records; the edits of the others are not made."""


def records() -> list[wise.Record]:
    """Six counterfactual edits with paraphrases, and neighbours that ask other subjects for the same."""
    facts = load_facts("train")[:60:10]
    found = []
    for fact in facts:
        plain, *others = train_prompts(fact)
        beside = [other for other in load_facts("train") if other.relation == fact.relation and other not in facts]
        found.append(
            wise.Record(
                edit=wise.Edit(prompt=plain, target=counterfactual(fact, seed=0), subject=fact.subject),
                paraphrases=(*held_out_prompts(fact), *others[:2]),
                neighbours=tuple(train_prompts(other)[0] for other in beside[:3]),
                relation=fact.relation,
            )
        )
    return found


@cache
def edited(mode: str) -> wise.WiseModel:
    """The model with the first `EDITED` of `records` edited; the same object each time, so leave it as it is."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    base = AutoModelForCausalLM.from_pretrained(model_path())
    wrapped = wise.wrap(base, tokenizer, wise.WiseConfig(mode=mode), **reading(mode))
    wrapped.edit([record.edit for record in records()[:EDITED]])
    return wrapped
