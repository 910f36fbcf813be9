"""What a router learns from: the questions of records that are not edited, and what they have in common.

For every record its prompt and all other wordings of it; for its subject also the questions of other relations, which
are the ones that are hardest to keep apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from wise.edits import Record
from wise.eval.routing.relations import Relations, template_of
from wise.training.lesson import Lesson

WORDINGS = 5
"""Paraphrases of a record that are learned from, and as many free ones."""
OTHERS = 4
"""Questions of other relations about its subject."""


def lessons_of(records: Sequence[Record], *, seed: int = 0) -> list[Lesson]:
    """The lessons that records hold; one without a subject holds none."""
    relations = Relations(records)
    alike = {name: relations.alike(name) for name in relations.names}
    return [lesson for record in records for lesson in _of(record, relations, alike, seed)]


def _of(
    record: Record, relations: Relations, alike: Mapping[str, frozenset[str]], seed: int
) -> Iterator[Lesson]:
    edit = record.edit
    relation = relations.of(edit)
    if relation is None or edit.subject is None:
        return
    wordings = dict.fromkeys((edit.prompt, *record.paraphrases[:WORDINGS]), "")
    for prompt in record.free_paraphrases[:WORDINGS]:
        wordings.setdefault(prompt, "free")
    for prompt, form in wordings.items():
        yield Lesson(
            fact=edit.id, prompt=prompt, subject=edit.subject, relation=relation, alike=alike[relation], form=form
        )
    for other, prompt in islice(_apart(record, relations, seed), OTHERS):
        yield Lesson(
            fact=edit.id, prompt=prompt, subject=edit.subject, relation=other, alike=alike[other], negative=True
        )


def _apart(record: Record, relations: Relations, seed: int) -> Iterator[tuple[str, str]]:
    """Questions about the record's subject that surely ask something else, with their relation."""
    edit, own = record.edit, relations.asked(record.edit, record.paraphrases)
    rng = random.Random(f"{seed} {edit.id}")
    names = list(relations.names)
    for name in rng.sample(names, len(names)):
        template = rng.choice(relations.templates(name))
        prompt = template.replace("{}", edit.subject or "")
        if own.apart(relations.asked_by(template)) and template_of(prompt, edit.subject) is not None:
            yield name, prompt
