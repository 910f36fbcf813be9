"""ConflictEdit (Li et al., 2024, "Unveiling the Pitfalls of Knowledge Editing"): two edits that bear on each other.

Each edit of a file's line becomes a record, both of them one group. The old answer is that of the
world, from `triples`; an edit that only makes sense after the first one has none. What must follow
from both edits is asked by a probe of the second, of kind `conflict`, and only where it is certain:

* **coverage**: both edits set one relation of one subject, so the later object holds. The relation's
  question form asks for it.
* **reverse**: the first edit gives A the parent B, the second gives B the child C. Of the two rules
  from a parent to a child, the parent of C, asked as in the first edit, is B. With the other rules
  (a work and its author, a student and the advisor) the new fact need not be the only one: no probe.
* **composite**: the rules are habits of families and countries (the spouse of a father is a mother),
  not laws, and both edits may hold at once: no probe.
"""

from __future__ import annotations

from dataclasses import replace

from wise.edits import Edit, Record
from wise.errors import EditError, did_you_mean
from wise.formats.fields import Fields, query
from wise.formats.layout import Layout
from wise.probes import Probe

TYPES = ("coverage", "reverse", "composite")

_PARENT_OF_CHILD = frozenset({("P22", "P40"), ("P25", "P40")})
"""Father or mother in the first edit, child in the second."""


def _records(fields: Fields, place: int) -> list[Record]:
    type_ = fields.text("type")
    if type_ not in TYPES:
        raise EditError(f"field 'type': {type_!r} is not known; {did_you_mean(type_, TYPES)}")
    parts = fields.required_objects("edits")
    if len(parts) != 2:
        raise EditError(f"field 'edits': a list of {len(parts)} was given, two edits were expected")
    group = f"pitfalls-{type_}-{place}"
    first, second = (_record(fields, part, f"{group}.{at}", group) for at, part in enumerate(parts))
    return [first, replace(second, probes=_follows(type_, parts[0], parts[1], first, second))]


def _record(fields: Fields, part: Fields, edit_id: str, group: str) -> Record:
    subject = part.text("subject.label").strip()
    question = part.optional_text("relation.query")
    prompt = part.text("relation.prompt").replace("{}", subject)
    return Record(
        edit=Edit(id=edit_id, prompt=prompt, target=part.text("new_object.label"), subject=subject),
        free_paraphrases=() if question is None else (question.replace("{}", subject),),
        answer=_old_answer(fields, part),
        relation=part.optional_text("relation.id"),
        group=group,
    )


def _old_answer(fields: Fields, part: Fields) -> str | None:
    """The object that the world has for the edit's subject and relation."""
    question = [part.text(path) for path in ("subject.id", "relation.id")]
    for triple in fields.objects("triples"):
        if question == [triple.text(path) for path in ("subject.id", "relation.id")]:
            return triple.optional_text("object.label")
    return None


def _follows(type_: str, first_part: Fields, second_part: Fields, first: Record, second: Record) -> tuple[Probe, ...]:
    if type_ == "coverage" and second.free_paraphrases:
        prompt, answer = second.free_paraphrases[0], second.edit.target
    elif type_ == "reverse" and (first.relation, second.relation) in _PARENT_OF_CHILD:
        prompt = first_part.text("relation.prompt").replace("{}", second.edit.target)
        answer = second_part.text("subject.label")
    else:
        return ()
    return (Probe(kind="conflict", queries=(query("edits[1]", prompt, (answer,)),)),)


PITFALLS = Layout(
    format="pitfalls", required=("edits", "type"), optional=("triples", "prerequisites", "rule"), read=_records
)
