"""Negatives that share something with an edit: its relation, its subject, or the look of its prompt."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

from wise.edits import Record
from wise.lab.eval.routing.drafts import Draft
from wise.lab.eval.routing.edited import UNMOVED
from wise.lab.eval.routing.material import Material
from wise.lab.eval.routing.nearness import Names
from wise.lab.eval.routing.relations import Query, template_of
from wise.lab.eval.routing.topics import topics_of
from wise.lab.eval.routing.wording import Phrases, normal, words

COMPANY = 0.05
"""A relation that so few of the most usual one's subjects have is not asked of a subject."""
PER_RECORD = 10
"""Prompts that one record contributes to a class at most."""


def same_relation_draft(material: Material) -> Draft:
    """Neighbours of the data, or else other records of the same relation."""
    others = _by_relation(material, material.pool)
    return Draft(
        name="same_relation",
        about="What was edited, asked of other subjects: neighbours from the data in a wording of the edit's relation, "
        "or where a record has none, prompts of records that were not edited and have the same relation.",
        sources=[(record.edit.id, tuple(_same_relation(material, record, others))) for record in material.records],
        why_empty="no record has a neighbour of its own relation, and no record that was not edited shares one",
    )


def _same_relation(material: Material, record: Record, others: dict[str, list[Record]]) -> Iterator[str]:
    asked = material.relations.asked(record.edit, record.paraphrases)
    own = [text for text in record.neighbours if material.relations.subject_in(text, asked.relation) is not None]
    right = [text for text in own if _is_other(material, text, record, asked)]
    yield from right
    if right or asked.relation is None:
        return
    rng = material.rng("same_relation", record)
    same = others.get(asked.relation, [])
    for other in rng.sample(same, min(PER_RECORD, len(same))):
        if _is_other(material, other.edit.prompt, record, asked):
            yield other.edit.prompt


def _is_other(material: Material, text: str, record: Record, asked: Query) -> bool:
    """`text`, which asks what the record does, asks it of a subject that was not edited. The target is none either:
    where a relation holds both ways, as that of twin cities, its answer follows from the edit."""
    target = Phrases([words(record.edit.target)])
    return not material.edited.may_ask(text, asked) and not target.within(text)


def _by_relation(material: Material, records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        relation = material.relations.of(record.edit)
        if relation is not None:
            found[relation].append(record)
    return found


def same_subject_draft(material: Material) -> Draft:
    """Probes of the data, or else the templates of other relations with this subject put in."""
    templates = {name: material.relations.templates(name) for name in material.relations.names}
    usual = _usual_company(material)
    return Draft(
        name="same_subject",
        about="Something else about the edited subject: questions from the data, or else prompts of other relations, "
        "those that it asks of like subjects where it shows which, with this subject put in. Relations that share a "
        "wording or a matter with an edit of the subject are left out.",
        sources=[(record.edit.id, _same_subject(material, record, templates, usual)) for record in material.records],
        why_empty="no record has a subject, or no other relation is surely apart from the edited one",
    )


def _same_subject(
    material: Material,
    record: Record,
    templates: dict[str, tuple[str, ...]],
    usual: dict[str, list[str]],
) -> Iterator[str]:
    subject = record.edit.subject
    if subject is None:
        return
    real = [text for text in _asked_of_subject(record) if _is_beside(material, text, subject)]
    yield from islice(real, PER_RECORD)
    if real:
        return
    relation = material.relations.of(record.edit)
    rng = material.rng("same_subject", record)
    for names in (usual.get(relation or "", []), sorted(templates)):
        shuffled = rng.sample(names, len(names))
        built = (text for name in shuffled for text in _put_in(material, subject, templates[name], rng))
        found = list(islice(built, PER_RECORD))
        if found:
            yield from found
            return


def _put_in(material: Material, subject: str, templates: Sequence[str], rng: random.Random) -> Iterator[str]:
    """One template of a relation with the subject in it, where one surely asks for no edited fact; of an edit's own
    prompt, of which fitting may have seen just this, only where there is no other."""
    telling = [template for template in templates if topics_of(template) and template.count("{}") == 1]
    for template in sorted(rng.sample(telling, len(telling)), key=material.fitted.__contains__):
        text = template.replace("{}", subject)
        if not material.edited.may_ask(text, material.relations.asked_by(template)):
            yield text
            return


def _asked_of_subject(record: Record) -> Iterator[str]:
    """Prompts of the data about the edited subject that the edit must not move."""
    for probe in record.probes:
        if probe.kind in UNMOVED:
            yield probe.queries[0].prompt
    yield from record.neighbours


def _is_beside(material: Material, text: str, subject: str) -> bool:
    """The data says that another relation is asked, which is believed unless the wording is an edited one's."""
    template = template_of(text, subject)
    if template is None or material.edited.asks(text):
        return False
    relation = material.relations.of_template(template)
    facts = material.edited.facts_of(subject)
    return all(
        (relation is None or relation != fact.relation) and not topics_of(template) <= fact.topics for fact in facts
    )


def _subjects(material: Material) -> dict[str, list[str]]:
    """Relation -> subjects that the data asks it of, in records and in neighbours."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in (*material.records, *material.pool):
        relation = material.relations.of(record.edit)
        if relation is None or record.edit.subject is None:
            continue
        found[relation].append(record.edit.subject)
        named = (material.relations.subject_in(text, relation) for text in record.neighbours)
        found[relation] += [subject for subject in named if subject is not None]
    return found


def _usual_company(material: Material) -> dict[str, list[str]]:
    """Relation -> others that the data asks of some of the same subjects, without those of which it hardly ever does.

    They are what makes sense to ask of a subject: a person has no capital.
    """
    of_subject: dict[str, set[str]] = defaultdict(set)
    for relation, subjects in _subjects(material).items():
        for subject in subjects:
            of_subject[normal(subject)].add(relation)
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for relations in of_subject.values():
        for relation in relations:
            together[relation].update(relations - {relation})
    return {
        relation: sorted(other for other, count in counts.items() if count >= COMPANY * max(counts.values()))
        for relation, counts in together.items()
        if counts
    }


def near_duplicate_draft(material: Material) -> Draft:
    """The prompt with another name in the place of its subject, one that looks like it."""
    of_relation = {relation: Names(subjects) for relation, subjects in _subjects(material).items()}
    return Draft(
        name="near_duplicate",
        about="The edited prompt with its subject replaced: by the other subject of the relation, in records or "
        "neighbours, that shares most of its runs of three letters, and by a made-up one, in which one word is that of "
        "another subject.",
        sources=[(record.edit.id, _near_duplicates(material, record, of_relation)) for record in material.records],
        why_empty="no record has a subject, or no other name is near one",
    )


def _near_duplicates(material: Material, record: Record, of_relation: dict[str, Names]) -> Iterator[str]:
    subject, asked = record.edit.subject, material.relations.asked(record.edit, record.paraphrases)
    if subject is None or asked.relation is None:
        return
    names = of_relation[asked.relation]
    rng = material.rng("near_duplicate", record)
    for candidates in (names.nearest(subject), names.made_up(subject, rng)):
        texts = (record.edit.prompt.replace(subject, name) for name in candidates)
        yield from islice((text for text in texts if _is_other(material, text, record, asked)), 1)
