"""Prompts at which the memory must be silent, in classes by how near they come to an edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from wise.edits import Record
from wise.lab.eval.routing.drafts import Draft, Source, choose
from wise.lab.eval.routing.material import Material
from wise.lab.eval.routing.positives import planted
from wise.lab.eval.routing.running import long_context_draft, running_text_draft
from wise.lab.eval.routing.subjects import near_duplicate_draft, same_relation_draft, same_subject_draft

NO_QUESTIONS = "no generic question is left that names no edited subject"
OLD_ANSWER = (
    "The edited prompt answered with the old answer, then a generic question. Only its last token counts: at the end "
    "of the planted prompt the memory may rightly speak."
)


def negative_drafts(material: Material) -> list[Draft]:
    """All negative classes, in the order of the report."""
    relation = same_relation_draft(material)
    return [
        Draft(
            name="generic",
            about="Everyday questions and unfinished statements that name no edited subject.",
            sources=[(None, [question]) for question in material.questions],
            why_empty=NO_QUESTIONS,
        ),
        relation,
        same_subject_draft(material),
        near_duplicate_draft(material),
        running_text_draft(material),
        long_context_draft(material),
        Draft(
            name="old_answer",
            about=OLD_ANSWER,
            sources=_behind(material, "old_answer", planted),
            why_empty="no record has an old answer that differs from its target, or no generic question is left",
        ),
        _chat(material, relation),
        _multi_turn(material),
    ]


def _behind(material: Material, name: str, form: Callable[[Record, str], Iterable[str]]) -> list[Source]:
    """For each record `form` of it and of a generic question; of another one where that does not fit."""

    def texts(record: Record) -> Iterator[str]:
        rng = material.rng(name, record)
        for question in rng.sample(material.questions, min(3, len(material.questions))):
            yield from form(record, question)

    return [(record.edit.id, islice(filter(material.fits, texts(record)), 1)) for record in material.records]


def _chat(material: Material, relation: Draft) -> Draft:
    """Half of it generic questions, half prompts of the edited relations, or more of one where there are few of the
    other."""
    talk = material.conversation
    generic = [talk.text(question) for question in material.questions]

    def told(texts: Iterable[str]) -> Iterator[str]:
        return (talk.text(text) for text in texts)

    related = choose(
        replace(relation, sources=[(record, told(texts)) for record, texts in relation.sources]),
        cap=max(material.per_class // 2, material.per_class - len(generic)),
        accept=material.fits,
    )
    sources: list[Source] = [(None, [text]) for text in generic[: material.per_class - len(related)]]
    sources += [(relation.sources[place][0], [text]) for text, place in related]
    return Draft(
        name="chat",
        about=f"Generic questions, and the prompts of same_relation, as a user's turn: {talk.about}.",
        sources=sources,
        why_empty="no generic question or neighbour fits the context in this form",
    )


def _multi_turn(material: Material) -> Draft:
    talk = material.conversation

    def form(record: Record, question: str) -> Iterator[str]:
        yield talk.text(record.edit.prompt, record.edit.target, question)

    return Draft(
        name="multi_turn",
        about=f"A turn with the edited prompt and its target as the answer, then a generic question: {talk.about}. "
        "Only the last token counts.",
        sources=_behind(material, "multi_turn", form),
        why_empty=f"{NO_QUESTIONS}, or none fits the context behind another turn",
    )
