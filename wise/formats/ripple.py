"""RippleEdits (Cohen et al., 2024): edits as sentences, and what must and must not follow from each by six criteria.

An edit is published as a whole sentence with the new object at its end, beside the sentence of the
original fact. The prompt is what both begin with, up to the word that the object follows; what comes
after it is the target, and the original sentence gives the old answer. A recent fact has no original; the object
follows the last verb. The subject is published
as a number only; it is taken out of the prompt where the relation's wording shows it.

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
from wise.formats.fields import Fields, cleaned, query
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


def _records(fields: Fields, place: int) -> list[Record]:
    stem, target, answer = _split(fields)
    relation = fields.text("edit.relation")
    edit = Edit(prompt=stem, target=target, subject=_subject(stem, relation))
    probes: list[Probe] = []
    neighbours: dict[str, None] = {}
    for field in _CRITERIA:
        for test in fields.objects(field):
            probes += _probes(field, test, fields, edit)
            if field == "Relation_Specificity":
                neighbours |= {cleaned(prompt): None for _, prompt in test.texts("test_queries.prompt")}
    return [
        Record(
            edit=edit,
            probes=tuple(probes),
            neighbours=tuple(prompt for prompt in neighbours if prompt not in ("", stem)),
            answer=answer,
            relation=relation,
        )
    ]


def _split(fields: Fields) -> tuple[str, str, str | None]:
    """The prompt, the target and the old answer of the edit's sentence."""
    sentence = fields.text("edit.prompt").strip()
    edit = peek(fields.row, "edit")
    names = [name for name in ("previous_fact", "original_fact") if isinstance(edit, dict) and name in edit]
    fact = f"edit.{names[0]}" if names else "edit"
    original = fields.text(f"{fact}.prompt").strip()
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
        match = re.fullmatch(frame, stem)
        if match:
            return match["subject"]
    return None


def _probes(field: str, test: Fields, fields: Fields, edit: Edit) -> Iterator[Probe]:
    parts = test.required_objects("test_queries")
    queries = list(_queries(test, "test_queries"))
    if not queries:
        fields.note(f"field {field!r}: a test without an answer; left out")
        return
    condition = test.text("test_condition")
    if condition not in _NEEDS:
        name = f"{test.prefix}test_condition"
        raise EditError(f"field {name!r}: {given(condition)} was given, one of {', '.join(_NEEDS)} was expected")
    kind = _CRITERIA[field]
    if field == "Compositionality_II" and all(_asks_the_edit(part, fields) for part in parts):
        kind = "ripple.preservation"
    conditions = list(_queries(test, "condition_queries"))
    if field == "Subject_Aliasing":
        conditions = [query for query in conditions if query not in queries]
    yield from fields.probe(kind, queries, edit, need=_NEEDS[condition], conditions=conditions)


def _asks_the_edit(part: Fields, fields: Fields) -> bool:
    same = all(part.row.get(name) == fields.single(f"edit.{name}") for name in ("subject_id", "relation"))
    return same and part.row.get("query_type") != "two_hop"


def _queries(test: Fields, field: str) -> Iterator[Query]:
    for part in test.objects(field):
        answers = []
        for answer in part.objects("answers"):
            answers += [answer.text("value"), *answer.filled("aliases")]
        if answers:
            yield query(part.prefix.removesuffix("."), part.text("prompt"), answers)


RIPPLE_EDITS = Layout(
    format="rippleedits",
    required=("edit.prompt", "edit.relation"),
    optional=("example_type", *_CRITERIA),
    read=_records,
)
