"""UnKE (Deng et al., 2024): a question whose new answer is a whole text, and questions on parts of that text.

The questions on parts, and their answers, are lists; some published files hold them as text that
spells a Python list, which is read as the literal it is. The answers are free text, several words and up to a
sentence long, which hardly any model repeats to the letter: of a probe `unstructured` only token accuracy,
`teacher_forced`, is usable; the share of answers that are the same, `generated`, is low for every editor.
"""

from __future__ import annotations

from ast import literal_eval

from wise.edits import Edit, Record
from wise.errors import EditError, given
from wise.formats.fields import Fields, query, texts_of
from wise.formats.layout import Layout
from wise.probes import Probe


def _records(fields: Fields, place: int) -> list[Record]:
    number, prompt, target = fields.number("id"), fields.text("question"), fields.text("answer")
    edit = Edit(id="" if number is None else f"unke-{number}", prompt=prompt, target=target)
    paraphrases = fields.prompts(("para_question",), {edit.prompt})
    return [Record(edit=edit, paraphrases=paraphrases, probes=_parts(fields))]


def _parts(fields: Fields) -> tuple[Probe, ...]:
    questions, answers = _text_list(fields, "sub_question"), _text_list(fields, "sub_answer")
    if len(questions) != len(answers):
        raise EditError(
            f"field 'sub_answer': a list of {len(answers)} was given, one for each of the {len(questions)} of "
            "'sub_question' was expected"
        )
    probes = []
    for (name, question), (_, answer) in zip(questions, answers, strict=True):
        if question.strip() and answer.strip():
            probes.append(Probe(kind="unstructured", queries=(query(name, question, (answer,)),)))
        else:
            fields.note("field 'sub_question': an empty question or answer; left out")
    return tuple(probes)


def _text_list(fields: Fields, name: str) -> list[tuple[str, str]]:
    value = fields.row.get(name)
    if value is None:
        raise fields.lacking(name)
    if isinstance(value, str):
        try:
            value = literal_eval(value.strip())
        except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
            problem = "was given, which spells no list; give a list of texts"
            raise EditError(f"field {name!r}: {given(value)} {problem}") from None
    if not isinstance(value, list):
        raise EditError(f"field {name!r}: {given(value)} was given, a list of texts was expected")
    return list(texts_of(name, value))


UNKE = Layout(
    format="unke",
    required=("question", "answer", "sub_question", "sub_answer"),
    optional=("id", "para_question"),
    read=_records,
)
