"""Everyday facts to edit into a chat model, each with the questions that measure the edit.

208 ship with wise (`everyday.jsonl`): facts that a small chat model knows, facts of a firm or a person that no model
knows, facts without a name to hold on to, and several facts of each of twenty subjects. Half of each kind is for
fitting and choosing, half for judging.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from wise.edits import Edit, Record
from wise.errors import EditError, check_known, checked_prompts, listed
from wise.formats import JsonRow
from wise.formats.columns import Columns
from wise.formats.edit_file import each_row
from wise.formats.fields import Fields
from wise.formats.files import is_table
from wise.formats.tracked_row import unread

logger = logging.getLogger(__name__)

HALVES = ("fit", "judge")
KINDS = ("known", "private", "nameless", "several")
LISTS = ("aliases", "paraphrases", "same_subject", "neighbours")
FIELDS = ("prompt", "target", "subject", "answer", "kind", "half", *LISTS)
"""Fields of a fact in a file; `LISTS` are lists of texts."""
WORDINGS = 3
"""Of each kind, taken of a record of a published set."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact to edit, and what measures it."""

    edit: Edit
    rewordings: tuple[str, ...]
    """Ask the same; not seen in fitting."""
    free_rewordings: tuple[str, ...] = ()
    """Freer ones, counted apart."""
    same_subject: tuple[str, ...] = ()
    """Other questions about the subject: their answers must not move."""
    neighbours: tuple[str, ...] = ()
    """Questions about other subjects: their answers must not move."""
    answer: str | None = None
    kind: str = ""

    @property
    def old(self) -> str | None:
        """The old answer, where the target does not contain it."""
        return None if self.answer is None or _flat(self.answer) in _flat(self.edit.target) else self.answer


def everyday_facts(half: str | None = None, kinds: Sequence[str] = ()) -> list[Fact]:
    """The facts that ship with wise; of one half, of these of `KINDS`.

    Raises EditError for a half or a kind that there is not.
    """
    if half is not None and half not in HALVES:
        raise EditError(f"half={half!r}: expected one of {', '.join(HALVES)}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise EditError(f"kinds={unknown[0]!r}: expected some of {', '.join(KINDS)}")
    lines = (files("wise.lab.eval.chat") / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [_fact(r) for r in rows if half in (None, r["half"]) and (not kinds or r["kind"] in kinds)]


def read_facts(path: Path, columns: Mapping[str, str] | None = None) -> list[Fact]:
    """Facts of a file in the shape of `everyday.jsonl`, or of a table with these columns; all but prompt and target may
    be left out. columns: field -> column, where they differ. In a table, and with `columns`, what is not used is told
    to the log. Raises EditError, naming the line, for one that is not usable or has an unknown field."""
    named, facts, others = Columns(columns, FIELDS, lists=LISTS), list[Fact](), Counter[str]()
    for file, line, row in each_row(path):
        try:
            if not columns and not is_table(file):
                check_known("", row, FIELDS)
            facts.append(_fact(named.fields_of(row)))
        except EditError as error:
            raise EditError(f"{file}:{line}: {error}") from None
        others.update(unread(row))
    absent = named.absent()
    if absent is not None:
        raise EditError(f"{path}: {absent}")
    if others:
        logger.warning("%s: columns that are not used: %s", path, listed(others))
    return facts


def facts_of(records: Sequence[Record], *, seed: int = 0) -> list[Fact]:
    """Records of a published set, each with `WORDINGS` of its wordings and neighbours.

    Its other questions about the subject are those neighbours that name it, and, where the set tells relations apart,
    prompts of other relations asked of it, which are no wordings of its own relation as well ("X is located in").
    """
    prompts: dict[str, list[str]] = {}
    by_relation: dict[str, set[str]] = {}
    for record in records:
        if record.relation and record.edit.subject:
            prompts.setdefault(record.relation, []).append(_wording(record.edit.prompt, record))
            texts = (record.edit.prompt, *record.paraphrases)
            by_relation.setdefault(record.relation, set()).update(_flat(_wording(text, record)) for text in texts)
    order = random.Random(seed)
    results = []
    for record in records:
        others = [name for name in sorted(prompts) if name != record.relation]
        few = order.sample(others, min(WORDINGS, len(others))) if record.edit.subject else []
        relation_answers = by_relation.get(record.relation or "", set())
        apart = [[text for text in prompts[name] if _flat(text) not in relation_answers] for name in few]
        same = [order.choice(texts).replace("{}", record.edit.subject or "") for texts in apart if texts]
        named = [text for text in record.neighbours if record.edit.subject and record.edit.subject in text]
        results.append(
            Fact(
                edit=record.edit,
                rewordings=record.paraphrases[:WORDINGS],
                free_rewordings=record.free_paraphrases[:WORDINGS],
                same_subject=(*same, *named[:WORDINGS]),
                neighbours=tuple(text for text in record.neighbours if text not in named)[:WORDINGS],
                answer=record.answer,
                kind=record.relation or "",
            )
        )
    return results


def _wording(text: str, record: Record) -> str:
    return text.replace(record.edit.subject, "{}") if record.edit.subject else text


def _fact(row: JsonRow) -> Fact:
    lists = {name: checked_prompts(name, row.get(name, ())) for name in LISTS}
    fields = Fields(row)
    prompt, subject = fields.text("prompt"), fields.optional_text("subject")
    start = -1 if subject is None else prompt.casefold().find(subject.casefold())
    named = subject if subject is None or start < 0 else prompt[start : start + len(subject)]  # as the prompt writes it
    aliases = lists["aliases"] if named else ()
    return Fact(
        edit=Edit(prompt=prompt, target=fields.text("target"), subject=named, aliases=aliases),
        rewordings=lists["paraphrases"],
        same_subject=lists["same_subject"],
        neighbours=lists["neighbours"],
        answer=fields.optional_text("answer"),
        kind=fields.optional_text("kind") or "",
    )


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())
