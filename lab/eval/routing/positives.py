"""Forms in which an edit is asked for. The memory must be active at each of these prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from wise.edits import Record
from wise.lab.eval.prompting import MAX_PROMPTS
from wise.lab.eval.routing.material import Draft, Material, PromptMaker, Source
from wise.lab.eval.routing.topics import normal


def positive_drafts(material: Material) -> list[Draft]:
    talk = material.conversation
    return [
        Draft(
            name="edits",
            about="The edited prompt itself.",
            sources=[(record.edit.id, [record.edit.prompt]) for record in material.records],
            why_empty="no edited prompt fits the context",
        ),
        Draft(
            name="paraphrases",
            about="Other wordings of the edited prompt from the data, which no edit was fitted on.",
            sources=_wordings(material, lambda record: record.paraphrases),
            why_empty="the records have no paraphrases that fitting has not seen",
        ),
        Draft(
            name="free_paraphrases",
            about="Freer rewordings from the data, which no edit was fitted on.",
            sources=_wordings(material, lambda record: record.free_paraphrases),
            why_empty="the records have no free paraphrases that fitting has not seen",
        ),
        _prefixed(material),
        Draft(
            name="chat",
            about=f"The edited prompt as a user's turn: {talk.about}.",
            sources=[(record.edit.id, [talk.text(record.edit.prompt)]) for record in material.records],
            why_empty="no edited prompt fits the context in this form",
        ),
        _multi_turn(material),
    ]


def _wordings(material: Material, wordings: PromptMaker) -> list[Source]:
    """Wordings that were not fitted on and that ask for one edit only."""
    seen = {
        normal(text)
        for edit in (*material.live, *(record.edit for record in material.records))
        for text in (edit.prompt, *edit.paraphrases, *edit.locality)
    }
    uses = Counter(
        text
        for record in material.records
        for text in {normal(text) for text in (*record.paraphrases, *record.free_paraphrases)}
    )
    return [
        (
            record.edit.id,
            [text for text in wordings(record) if normal(text) not in seen and uses[normal(text)] == 1][:MAX_PROMPTS],
        )
        for record in material.records
    ]


def _prefixed(material: Material) -> Draft:
    openings = material.sentences()

    def form(record: Record) -> Iterator[str]:
        rng = material.rng("prefixed", record)
        start = rng.randrange(len(openings))
        for count in rng.choice([(1,), (2, 1)]):  # the second where the first does not fit
            yield " ".join([*openings[start : start + count], record.edit.prompt])

    return Draft(
        name="prefixed",
        about="The edited prompt behind one or two sentences of running text that names no edited subject.",
        sources=material.first_that_fit(form) if openings else (),
        why_empty="there is no sentence of running text that names no edited subject, or none fits the context",
    )


def _multi_turn(material: Material) -> Draft:
    exchanges, talk = material.exchanges, material.conversation

    def form(record: Record) -> Iterator[str]:
        rng = material.rng("multi_turn", record)
        for exchange in rng.sample(exchanges, min(3, len(exchanges))):
            yield talk.text(*exchange, record.edit.prompt)

    return Draft(
        name="multi_turn",
        about=f"A turn with an unrelated question and its answer, then the edited prompt: {talk.about}.",
        sources=material.first_that_fit(form) if exchanges else (),
        why_empty="no edited prompt fits the context behind another turn",
    )
