"""zsRE as De Cao et al. (2021, "Editing Factual Knowledge in Language Models") published it, in the form of KILT.

A question has the answers that are right and alternatives that a model finds likely. An edit makes the first
alternative the answer; a question without one asks for no edit.
"""

from __future__ import annotations

from wise.edits import Edit, Record
from wise.formats.fields import JsonRow, Note, lacking, prompts, text, texts
from wise.formats.layout import Structure


def _records(row: JsonRow, place: int, note: Note) -> list[Record]:
    if "alternatives" not in row:
        raise lacking(row, "alternatives")
    alternatives = [found for _, found in texts(row, "alternatives") if found.strip()]
    if not alternatives:
        note("field 'alternatives': empty, so no edit is asked for; the record was skipped")
        return []
    edit = Edit(prompt=text(row, "input"), target=alternatives[0])
    answers = [found for _, found in texts(row, "output.answer") if found.strip()]
    paraphrases = prompts(row, ("filtered_rephrases",), {edit.prompt}, note)
    return [Record(edit=edit, paraphrases=paraphrases, answer=answers[0] if answers else None)]


KILT = Structure(
    format="zsre",
    required=("input", "alternatives"),
    optional=("id", "output", "filtered_rephrases", "rephrases", "prediction", "meta"),
    build=_records,
)
