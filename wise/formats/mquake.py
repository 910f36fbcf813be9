"""MQuAKE (Zhong et al., 2023): edits whose consequence is asked by questions of several hops.

A case becomes one record per edit, together one group. The question, in its three wordings, is a probe of the **last**
of them: before that edit is made, nothing is to follow. So are the single facts that the question goes through once all
edits are made, unedited ones too: one probe that is right where all of them are, which is what the paper's
instance-wise accuracy asks. AKEW publishes the same cases with more fields.

The single facts of MQuAKE-CF are also published as a list of questions with the sentence that a retriever should find.
They are edits without the questions that follow from them.
"""

from __future__ import annotations

from dataclasses import replace

from wise.edits import Edit, Record
from wise.errors import EditError, given
from wise.formats.fields import (
    JsonRow,
    Note,
    cleaned,
    lacking,
    number,
    objects,
    optional_text,
    probe,
    query,
    required_objects,
    text,
    texts,
)
from wise.formats.layout import Layout
from wise.probes import Probe


def _case(row: JsonRow, place: int, note: Note) -> list[Record]:
    case = f"mquake-{number(row, 'case_id') or place}"
    rewrites = required_objects(row, "requested_rewrite")
    records = [_rewrite(f"{name}.", part, f"{case}.{at}", case) for at, (name, part) in enumerate(rewrites)]
    last = records[-1]
    return [*records[:-1], replace(last, probes=(*_hops(row, last.edit, note), *_facts(row, last.edit, note)))]


def _rewrite(prefix: str, part: JsonRow, own: str, case: str) -> Record:
    template = text(part, "prompt", prefix)
    subject = text(part, "subject", prefix).strip()
    if "{}" not in template:
        name = f"{prefix}prompt"
        raise EditError(f"field {name!r}: {given(template)} was given, a text with {{}} for the subject was expected")
    target = text(part, "target_new.str", prefix)
    edit = Edit(id=own, prompt=template.replace("{}", subject), target=target, subject=subject)
    question = optional_text(part, "question", prefix)
    return Record(
        edit=edit,
        free_paraphrases=() if question is None else (question,),
        answer=optional_text(part, "target_true.str", prefix),
        relation=optional_text(part, "relation_id", prefix),
        group=case,
    )


def _hops(row: JsonRow, edit: Edit, note: Note) -> tuple[Probe, ...]:
    answers = [text(row, "new_answer"), *(alias for _, alias in texts(row, "new_answer_alias") if alias.strip())]
    questions = [(name, cleaned(wording)) for name, wording in texts(row, "questions")]
    queries = [query(name, wording, answers) for name, wording in questions if wording]
    if not queries:
        raise lacking(row, "questions")
    return tuple(probe("multi_hop", queries, edit, note))


def _facts(row: JsonRow, edit: Edit, note: Note) -> tuple[Probe, ...]:
    """The probe that asks every single fact, none where the case does not list them."""
    queries = []
    for name, hop in objects(row, "new_single_hops"):
        aliases = [alias for _, alias in texts(hop, "answer_alias", f"{name}.") if alias.strip()]
        answers = [text(hop, "answer", f"{name}."), *aliases]
        queries.append(query(f"{name}.cloze", text(hop, "cloze", f"{name}."), answers))
    return tuple(probe("single_hops", queries, edit, note, need="all")) if queries else ()


def _fact(row: JsonRow, place: int, note: Note) -> list[Record]:
    target = text(row, "answer_correct").strip()
    edit = Edit(prompt=text(row, "question"), target=target)
    new, old = optional_text(row, "gold_retrieve_fact"), optional_text(row, "gold_generate")
    cloze = new.removesuffix(target).strip() if new and new.endswith(target) else ""
    answer = old.removeprefix(cloze).strip() if cloze and old and old.startswith(f"{cloze} ") else None
    if answer in ("", target):  # the set holds facts that no case edits, too: they say nothing of an old answer
        answer = None
    return [Record(edit=edit, free_paraphrases=(cloze,) if cloze else (), answer=answer)]


CASES = Layout(
    format="mquake",
    required=("requested_rewrite", "questions", "new_answer"),
    optional=("case_id", "answer", "answer_alias", "new_answer_alias", "single_hops", "new_single_hops", "orig"),
    read=_case,
)
FACTS = Layout(
    format="mquake",
    required=("question", "answer_correct"),
    optional=("gold_retrieve_fact", "gold_generate", "ans_alias"),
    read=_fact,
)
