"""RippleEdits (Cohen et al., 2024): edits as sentences, and what must and must not follow from each by six criteria.

An edit is published as a whole sentence with the new object at its end, beside the sentence of the original fact. The
prompt is what both begin with, up to the word that the object follows; what comes after it is the target, and the
original sentence gives the old answer. A recent fact has no original; the object follows the last verb. The subject is
published as a number only; it is taken out of the prompt where the relation's wording shows it.

Of the tests:

* the criteria keep their names; what the files call Forgetfulness is the paper's Preservation. A file
  that was filtered holds its preservation tests under Compositionality II; they are known by asking
  the edit's own subject and relation without a second hop, and go where they belong;
* conditions are what the unedited model must know. A subject-aliasing test names its own question,
  new answer and all, as its condition; no unedited model can meet it, so it is left out;
* questions without an answer are dropped, and a test of which none is left;
* the questions of Relation Specificity must not move: they are the neighbours too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from os.path import commonprefix
from reprlib import repr as shortened

from wise.edits import Edit, Record
from wise.errors import EditError, given
from wise.formats.fields import (
    JsonRow,
    Note,
    cleaned,
    objects,
    probe,
    query,
    required_objects,
    single,
    text,
    texts,
)
from wise.formats.layout import Layout
from wise.formats.tracked_row import peek
from wise.probes import Probe, Query

_CRITERIA = {
    "Logical_Generalization": "ripple.logical_generalization",
    "Compositionality_I": "ripple.compositionality_1",
    "Compositionality_II": "ripple.compositionality_2",
    "Subject_Aliasing": "ripple.subject_aliasing",
    "Forgetfulness": "ripple.preservation",
    "Relation_Specificity": "ripple.relation_specificity",
}
_NEEDS = {"OR": "any", "AND": "all"}

_BEFORE_OBJECT = re.compile(r"(?:^|.* )(?:is followed by|follows|is|are)(?= )")
"""A sentence up to the last word that an object follows."""

_FRAMES = (
    r"(?P<subject>.+) (?:is followed by|follows)",
    r"The \w[\w ]* which (?P<subject>.+) (?:is (?:associated with|a member of|part of|the capital of)|plays in) is",
    r"The \w[\w ]* held by (?P<subject>.+) is",
    r"The name of the award (?P<subject>.+) won is",
    r"The name of the currency in (?P<subject>.+) is",
)
"""Prompts whose wording shows the subject whatever the relation is."""
_CALLED = {"SEX_OR_GENDER": "gender", "CAPITAL": "capital city"}
"""Relations that the prompt calls by another name than their own."""


def _records(row: JsonRow, place: int, note: Note) -> list[Record]:
    stem, target, answer = _split(row)
    relation = text(row, "edit.relation")
    edit = Edit(prompt=stem, target=target, subject=_subject(stem, relation))
    probes: list[Probe] = []
    neighbours: dict[str, None] = {}
    for field in _CRITERIA:
        for name, test in objects(row, field):
            probes += _probes(field, f"{name}.", test, row, edit, note)
            if field == "Relation_Specificity":
                neighbours |= {cleaned(prompt): None for _, prompt in texts(test, "test_queries.prompt", f"{name}.")}
    return [
        Record(
            edit=edit,
            probes=tuple(probes),
            neighbours=tuple(prompt for prompt in neighbours if prompt not in ("", stem)),
            answer=answer,
            relation=relation,
        )
    ]


def _split(row: JsonRow) -> tuple[str, str, str | None]:
    """The prompt, the target and the old answer of the edit's sentence."""
    sentence = text(row, "edit.prompt").strip()
    edit = peek(row, "edit")
    names = [name for name in ("previous_fact", "original_fact") if isinstance(edit, dict) and name in edit]
    fact = f"edit.{names[0]}" if names else "edit"
    original = text(row, f"{fact}.prompt").strip()
    # A space after each keeps a sentence that ends where the other goes on from losing its last word.
    shared = _BEFORE_OBJECT.match(commonprefix([f"{sentence} ", f"{original} "]))
    stem = shared[0] if shared else ""
    target, answer = (whole[len(stem) :].strip().removesuffix(".") for whole in (sentence, original))
    if not stem or not target.strip() or not sentence.endswith("."):
        raise EditError(
            f"field 'edit.prompt': {shortened(sentence)} was given, a sentence was expected that begins like "
            f"'{fact}.prompt' up to 'is', 'are', 'follows' or 'is followed by' and ends in its object and a full stop"
        )
    return stem, target, (answer.strip() or None) if names else None


def _subject(stem: str, relation: str) -> str | None:
    called = re.escape(_CALLED.get(relation, relation.lower().replace("_", " ")))
    for frame in (rf"The (?:names? of the )?{called}s? of (?P<subject>.+) (?:is|are)", *_FRAMES):
        found = re.fullmatch(frame, stem)
        if found:
            return found["subject"]
    return None


def _probes(field: str, prefix: str, test: JsonRow, row: JsonRow, edit: Edit, note: Note) -> Iterator[Probe]:
    parts = required_objects(test, "test_queries", prefix)
    queries = list(_queries(test, "test_queries", prefix))
    if not queries:
        note(f"field {field!r}: a test without an answer; left out")
        return
    condition = text(test, "test_condition", prefix)
    if condition not in _NEEDS:
        name = f"{prefix}test_condition"
        raise EditError(f"field {name!r}: {given(condition)} was given, one of {', '.join(_NEEDS)} was expected")
    kind = _CRITERIA[field]
    if field == "Compositionality_II" and all(_asks_the_edit(part, row) for _, part in parts):
        kind = "ripple.preservation"
    conditions = list(_queries(test, "condition_queries", prefix))
    if field == "Subject_Aliasing":
        conditions = [query for query in conditions if query not in queries]
    yield from probe(kind, queries, edit, note, need=_NEEDS[condition], conditions=conditions)


def _asks_the_edit(part: JsonRow, row: JsonRow) -> bool:
    same = all(part.get(name) == single(row, f"edit.{name}") for name in ("subject_id", "relation"))
    return same and part.get("query_type") != "two_hop"


def _queries(test: JsonRow, field: str, prefix: str) -> Iterator[Query]:
    for name, part in objects(test, field, prefix):
        answers = []
        for answer_name, answer in objects(part, "answers", f"{name}."):
            answers.append(text(answer, "value", f"{answer_name}."))
            answers += [alias for _, alias in texts(answer, "aliases", f"{answer_name}.") if alias.strip()]
        if answers:
            yield query(name, text(part, "prompt", f"{name}."), answers)


RIPPLE_EDITS = Layout(
    format="rippleedits",
    required=("edit.prompt", "edit.relation"),
    optional=("example_type", *_CRITERIA),
    read=_records,
)
