"""What has been edited, and whether a prompt asks for it: the guard before every class of negatives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from wise.edits import Edit, Record
from wise.lab.eval.routing.relations import Query, Relations
from wise.lab.eval.routing.wording import Phrases, Words, normal, words

UNMOVED = ("locality.gold", "ripple.relation_specificity")
"""Kinds of probes that ask for something that the edit leaves as it is. What the others ask may follow from it."""


class EditedFacts:
    """All edited facts, by the texts that ask for them and by their subjects."""

    def __init__(self, records: Sequence[Record], live: Iterable[Edit], relations: Relations) -> None:
        self._asked: set[str] = set()
        self._facts: dict[Words, list[Query]] = defaultdict(list)
        for record in records:
            wordings = (*record.paraphrases, *record.free_paraphrases)
            self._add(record.edit, wordings, relations)
            queries = [query for probe in record.probes if probe.kind not in UNMOVED for query in probe.queries]
            # An edit may also colour how a free text about its subject goes on.
            self._asked |= {normal(text) for text in (*(query.prompt for query in queries), *record.generation_prompts)}
        known = {record.edit.id for record in records}
        for edit in live:
            if edit.id not in known:
                self._add(edit, (), relations)
        self._prompts = Phrases(words(text) for text in self._asked)
        self._subjects = Phrases(self._facts)

    def _add(self, edit: Edit, wordings: Sequence[str], relations: Relations) -> None:
        self._asked |= {normal(text) for text in (edit.prompt, *edit.paraphrases, *wordings)}
        if edit.subject is not None:
            self._facts[words(edit.subject)].append(relations.asked(edit, wordings))

    def asks(self, text: str) -> bool:
        """`text` is an edited prompt or a wording of one."""
        return normal(text) in self._asked

    def states(self, text: str) -> bool:
        """An edited prompt, or a wording of one, stands somewhere in `text`."""
        return bool(self._prompts.within(text))

    def names(self, text: str) -> bool:
        """`text` names a subject that was edited, whatever it says about it."""
        return bool(self._subjects.within(text))

    def may_ask(self, text: str, asked: Query) -> bool:
        """`text`, which asks `asked`, may ask for an edited fact: it is one of the known wordings, or it names an
        edited subject and what it asks is not surely apart from what was edited about that."""
        if self.asks(text):
            return True
        return any(not asked.apart(fact) for subject in self._subjects.within(text) for fact in self._facts[subject])

    def facts_of(self, subject: str) -> list[Query]:
        """What was edited about a subject."""
        return self._facts.get(words(subject), [])
