"""What is asked about a subject, which questions may ask the same, and whether a prompt asks for an edit.

A record's relation is what its data calls it, or else its template: the prompt with the subject cut out. Neither is
enough to tell that two questions ask different things. Several relations read the same ("{} is located in" is country,
region and continent), and one relation has many wordings ("Who was the dad of {}?", "Who was {}'s father?"). So two
relations count as one where they share a template, of a prompt or of a paraphrase, and two questions count as apart
only where their relations differ and none of their words are about the same matter. That leaves out more than it must,
which costs prompts; the other error would count a right answer as a false route.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wise.edits import Edit, Record
from wise.lab.eval.routing.topics import Phrases, Words, normal, sentences, topics_of, words


def template_of(prompt: str, subject: str | None) -> str | None:
    """`prompt` with its subject cut out as `{}`; None where it does not hold one.

    Sentences before the last one with the subject are left out: CounterFact's paraphrases begin with unrelated text.
    """
    if subject is None or subject not in prompt:
        return None
    parts = sentences(prompt.replace(subject, "{}"))
    last = max((place for place, part in enumerate(parts) if "{}" in part), default=None)
    return None if last is None else " ".join(parts[last:])


@dataclass(frozen=True, kw_only=True)
class AskedRelation:
    """What a question asks about its subject."""

    relation: str | None
    """Name of the class of relations that read the same; None where it is not known."""
    topics: frozenset[str]

    def apart(self, other: AskedRelation) -> bool:
        both_known = bool(self.topics) and bool(other.topics)
        same = self.relation is not None and self.relation == other.relation
        return both_known and not same and self.topics.isdisjoint(other.topics)


class Relations:
    """The relations of records and edits, those that share a template taken together."""

    def __init__(self, records: Sequence[Record], edits: Iterable[Edit] = ()) -> None:
        self._parent: dict[str, str] = {}
        self._prompts: dict[str, dict[str, None]] = defaultdict(dict)
        """Relation -> templates of its records' own prompts."""
        self._around: dict[str, set[tuple[str, str]]] = defaultdict(set)
        """Relation -> what stands before and behind the subject in its templates, of prompts and of paraphrases."""
        of_prompts: list[str] = []
        every: list[str] = []
        for edit, paraphrases, name in (
            *((record.edit, record.paraphrases, record.relation) for record in records),
            *((edit, (), None) for edit in edits),
        ):
            templates = self._read(edit, paraphrases, name)
            of_prompts += templates[:1]
            every += templates
        for template in dict.fromkeys(of_prompts):
            self._prompts[self._root(normal(template))][template] = None
        for template in dict.fromkeys(every):
            before, _, behind = template.partition("{}")
            if words(before + behind):  # a subject alone reads like any text
                self._around[self._root(normal(template))].add((before, behind))
        about = {relation: frozenset().union(*map(topics_of, entry)) for relation, entry in self._prompts.items()}
        self._matters: dict[str, frozenset[str]] = about

    def _read(self, edit: Edit, paraphrases: Iterable[str], name: str | None) -> list[str]:
        """Joins the templates of an edit, its own first, and returns them."""
        first = template_of(edit.prompt, edit.subject)
        if first is None:
            return []
        wordings = (template_of(text, edit.subject) for text in (*edit.paraphrases, *paraphrases))
        templates = [first, *(wording for wording in wordings if wording is not None)]
        for node in [*map(normal, templates), *([f"relation {name}"] if name else [])]:
            one, other = sorted((self._root(normal(first)), self._root(node)))
            self._parent[other] = one
        return templates

    def _root(self, node: str) -> str:
        while self._parent.setdefault(node, node) != node:
            self._parent[node] = node = self._parent[self._parent[node]]
        return node

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._prompts))

    def templates(self, relation: str) -> tuple[str, ...]:
        """Templates of the own prompts of the records of a relation."""
        return tuple(self._prompts[relation])

    def of_template(self, template: str | None) -> str | None:
        """The relation that a template belongs to; None where no record has it."""
        key = None if template is None else normal(template)
        return None if key is None or key not in self._parent else self._root(key)

    def of(self, edit: Edit) -> str | None:
        """The relation of an edit; None where it has no subject."""
        return self.of_template(template_of(edit.prompt, edit.subject))

    def asked_relation(self, edit: Edit, wordings: Iterable[str] = ()) -> AskedRelation:
        """What an edit asks, by its own prompt, further wordings of it and the prompts of its relation."""
        texts = (edit.prompt, *edit.paraphrases, *wordings)
        templates = [template_of(text, edit.subject) or text for text in texts]
        topics = self.asked_by(templates[0])
        return AskedRelation(relation=topics.relation, topics=topics.topics.union(*map(topics_of, templates[1:])))

    def subject_in(self, text: str, relation: str | None) -> str | None:
        """The subject of `text` where it reads like a template of `relation`; of several readings the shortest."""
        results = [
            text[len(before) : len(text) - len(behind)].strip()
            for before, behind in self._around.get(relation or "", ())
            if text.startswith(before) and text.endswith(behind) and len(text) > len(before) + len(behind)
        ]
        return min((name for name in results if name), key=lambda name: (len(name), name), default=None)

    def asked_by(self, template: str) -> AskedRelation:
        """What a template asks, by its own words and the prompts of its relation."""
        relation = self.of_template(template)
        topics = self._matters.get(relation, frozenset()) if relation is not None else frozenset()
        return AskedRelation(relation=relation, topics=topics_of(template) | topics)


NEGATIVE_PROBES = ("locality.gold", "ripple.relation_specificity")
"""Kinds of probes that ask for something that the edit leaves as it is. What the others ask may follow from it."""


class EditedFacts:
    """All edited facts, by the texts that ask for them and by their subjects."""

    def __init__(self, records: Sequence[Record], live: Iterable[Edit], relations: Relations) -> None:
        self._edited_texts: set[str] = set()
        self._facts: dict[Words, list[AskedRelation]] = defaultdict(list)
        for record in records:
            wordings = (*record.paraphrases, *record.free_paraphrases)
            self._add(record.edit, wordings, relations)
            queries = [query for probe in record.probes if probe.kind not in NEGATIVE_PROBES for query in probe.queries]
            # An edit may also colour how a free text about its subject goes on.
            texts = (*(query.prompt for query in queries), *record.generation_prompts)
            self._edited_texts |= set(map(normal, texts))
        record_ids = {record.edit.id for record in records}
        for edit in live:
            if edit.id not in record_ids:
                self._add(edit, (), relations)
        self._prompts = Phrases(words(text) for text in self._edited_texts)
        self._subjects = Phrases(self._facts)

    def _add(self, edit: Edit, wordings: Sequence[str], relations: Relations) -> None:
        self._edited_texts |= {normal(text) for text in (edit.prompt, *edit.paraphrases, *wordings)}
        if edit.subject is not None:
            self._facts[words(edit.subject)].append(relations.asked_relation(edit, wordings))

    def is_edited(self, text: str) -> bool:
        """`text` is an edited prompt or a wording of one."""
        return normal(text) in self._edited_texts

    def states(self, text: str) -> bool:
        """An edited prompt, or a wording of one, stands somewhere in `text`."""
        return bool(self._prompts.within(text))

    def names(self, text: str) -> bool:
        """`text` names a subject that was edited, whatever it says about it."""
        return bool(self._subjects.within(text))

    def may_ask(self, text: str, relation: AskedRelation) -> bool:
        """`text`, which asks `relation`, may ask for an edited fact: it is one of the known wordings, or it names an
        edited subject and what it asks is not surely apart from what was edited about that."""
        if self.is_edited(text):
            return True
        return any(not relation.apart(fact) for subject in self._subjects.within(text) for fact in self._facts[subject])

    def facts_of(self, subject: str) -> list[AskedRelation]:
        return self._facts.get(words(subject), [])
