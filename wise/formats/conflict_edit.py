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
from wise.formats.fields import JsonRow, Note, objects, optional_text, query, required_objects, text
from wise.formats.layout import Layout
from wise.probes import Probe

TYPES = ("coverage", "reverse", "composite")

_PARENT_OF_CHILD = frozenset({("P22", "P40"), ("P25", "P40")})
"""Father or mother in the first edit, child in the second."""


def _records(row: JsonRow, place: int, note: Note) -> list[Record]:
    type_ = text(row, "type")
    if type_ not in TYPES:
        raise EditError(f"field 'type': {type_!r} is not known; {did_you_mean(type_, TYPES)}")
    parts = required_objects(row, "edits")
    if len(parts) != 2:
        raise EditError(f"field 'edits': a list of {len(parts)} was given, two edits were expected")
    group = f"pitfalls-{type_}-{place}"
    first, second = (_record(row, f"{name}.", part, f"{group}.{at}", group) for at, (name, part) in enumerate(parts))
    probes = _follows(type_, parts[0][1], parts[1][1], first, second)
    return [first, replace(second, probes=probes)]


def _record(row: JsonRow, prefix: str, part: JsonRow, own: str, group: str) -> Record:
    subject = text(part, "subject.label", prefix).strip()
    question = optional_text(part, "relation.query", prefix)
    return Record(
        edit=Edit(
            id=own, prompt=text(part, "relation.prompt", prefix).replace("{}", subject),
            target=text(part, "new_object.label", prefix), subject=subject,
        ),
        free_paraphrases=() if question is None else (question.replace("{}", subject),),
        answer=_old_answer(row, part, prefix),
        relation=optional_text(part, "relation.id", prefix),
        group=group,
    )


def _old_answer(row: JsonRow, part: JsonRow, prefix: str) -> str | None:
    """The object that the world has for the edit's subject and relation."""
    asked = [text(part, path, prefix) for path in ("subject.id", "relation.id")]
    for name, triple in objects(row, "triples"):
        if asked == [text(triple, path, f"{name}.") for path in ("subject.id", "relation.id")]:
            return optional_text(triple, "object.label", f"{name}.")
    return None


def _follows(type_: str, first_part: JsonRow, second_part: JsonRow, first: Record, second: Record) -> tuple[Probe, ...]:
    if type_ == "coverage" and second.free_paraphrases:
        prompt, answer = second.free_paraphrases[0], second.edit.target
    elif type_ == "reverse" and (first.relation, second.relation) in _PARENT_OF_CHILD:
        prompt = text(first_part, "relation.prompt", "edits[0].").replace("{}", second.edit.target)
        answer = text(second_part, "subject.label", "edits[1].")
    else:
        return ()
    return (Probe(kind="conflict", queries=(query("edits[1]", prompt, (answer,)),)),)


PITFALLS = Layout(
    format="pitfalls", required=("edits", "type"), optional=("triples", "prerequisites", "rule"), read=_records
)
