"""MQuAKE (Zhong et al., 2023): edits whose consequence is asked by questions of several hops.

A case becomes one record per edit, together one group. The question, in its three wordings, is a
probe of the **last** of them: before that edit is made, nothing is to follow. So are the single facts
that the question goes through once all edits are made, unedited ones too: one probe that is right where
all of them are, which is what the paper's instance-wise accuracy asks. AKEW publishes the same cases
with more fields.

The single facts of MQuAKE-CF are also published as a list of questions with the sentence that a
retriever should find. They are edits without the questions that follow from them.
"""

from __future__ import annotations

from dataclasses import replace

from wise.edits import Edit, Record
from wise.errors import EditError, given
from wise.formats.fields import Fields, cleaned, query
from wise.formats.layout import Layout
from wise.probes import Probe


def _case(fields: Fields, place: int) -> list[Record]:
    case = f"mquake-{fields.number('case_id') or place}"
    rewrites = fields.required_objects("requested_rewrite")
    *records, last = (_rewrite(part, f"{case}.{at}", case) for at, part in enumerate(rewrites))
    return [*records, replace(last, probes=(*_hops(fields, last.edit), *_facts(fields, last.edit)))]


def _rewrite(part: Fields, edit_id: str, case: str) -> Record:
    template, subject = part.text("prompt"), part.text("subject").strip()
    if "{}" not in template:
        name = f"{part.prefix}prompt"
        raise EditError(f"field {name!r}: {given(template)} was given, a text with {{}} for the subject was expected")
    target = part.text("target_new.str")
    edit = Edit(id=edit_id, prompt=template.replace("{}", subject), target=target, subject=subject)
    question = part.optional_text("question")
    return Record(
        edit=edit,
        free_paraphrases=() if question is None else (question,),
        answer=part.optional_text("target_true.str"),
        relation=part.optional_text("relation_id"),
        group=case,
    )


def _hops(fields: Fields, edit: Edit) -> tuple[Probe, ...]:
    answers = [fields.text("new_answer"), *fields.filled("new_answer_alias")]
    questions = [(name, cleaned(wording)) for name, wording in fields.texts("questions")]
    queries = [query(name, wording, answers) for name, wording in questions if wording]
    if not queries:
        raise fields.lacking("questions")
    return tuple(fields.probe("multi_hop", queries, edit))


def _facts(fields: Fields, edit: Edit) -> tuple[Probe, ...]:
    """The probe that asks every single fact, none where the case does not list them."""
    queries = []
    for hop in fields.objects("new_single_hops"):
        aliases = hop.filled("answer_alias")
        answers = [hop.text("answer"), *aliases]
        queries.append(query(f"{hop.prefix}cloze", hop.text("cloze"), answers))
    return tuple(fields.probe("single_hops", queries, edit, need="all")) if queries else ()


def _fact(fields: Fields, place: int) -> list[Record]:
    target = fields.text("answer_correct").strip()
    edit = Edit(prompt=fields.text("question"), target=target)
    new, old = fields.optional_text("gold_retrieve_fact"), fields.optional_text("gold_generate")
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
