"""Everyday facts to edit into a chat model, each with the questions that measure the edit.

108 ship with wise (`everyday.jsonl`): facts that a small chat model knows, facts of a firm or a person that no model
knows, and facts without a name to hold on to. Half of each kind is for fitting and choosing, half for judging.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from wise.edits import Edit, Record
from wise.errors import EditError
from wise.formats.files import rows

HALVES = ("fit", "judge")
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
    """What was right before."""
    kind: str = ""

    @property
    def old(self) -> str | None:
        """The old answer, where the target does not contain it."""
        return None if self.answer is None or _flat(self.answer) in _flat(self.edit.target) else self.answer


def everyday_facts(half: str | None = None, kinds: Sequence[str] = ()) -> list[Fact]:
    """The facts that ship with wise; of one half, of these kinds (`known`, `private`, `nameless`).

    Raises EditError for a half that there is not.
    """
    if half is not None and half not in HALVES:
        raise EditError(f"half={half!r}: expected one of {', '.join(HALVES)}")
    lines = (files("wise.lab.eval.chat") / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [_fact(r) for r in rows if half in (None, r["half"]) and (not kinds or r["kind"] in kinds)]


def read_facts(path: Path) -> list[Fact]:
    """Facts of a file, in the shape of `everyday.jsonl`; `aliases`, `kind` and `half` may be left out.

    Raises EditError, naming the line, for one that is not usable.
    """
    results = []
    with closing(rows(path)) as numbered:
        for line, row in numbered:
            try:
                results.append(_fact(row))
            except (KeyError, TypeError, ValueError) as error:
                raise EditError(f"{path}:{line}: {error}") from error
    return results


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
        known = by_relation.get(record.relation or "", set())
        apart = [[text for text in prompts[name] if _flat(text) not in known] for name in few]
        same = [order.choice(others_).replace("{}", record.edit.subject or "") for others_ in apart if others_]
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
    """The text with `{}` for the subject."""
    return text.replace(record.edit.subject, "{}") if record.edit.subject else text


def _fact(row: dict[str, object]) -> Fact:
    def texts(name: str) -> tuple[str, ...]:
        value = row.get(name) or ()
        if not isinstance(value, list | tuple):
            raise TypeError(f"field {name!r}: a list of texts was expected")
        return tuple(map(str, value))

    subject = row.get("subject")
    prompt = str(row["prompt"])
    named = None if subject is None else _as_written(str(subject), prompt)
    edit = Edit(prompt=prompt, target=str(row["target"]), subject=named, aliases=texts("aliases") if named else ())
    answer = row.get("answer")
    return Fact(
        edit=edit,
        rewordings=texts("paraphrases"),
        same_subject=texts("same_subject"),
        neighbours=texts("neighbours"),
        answer=None if answer is None else str(answer),
        kind=str(row.get("kind", "")),
    )


def _as_written(subject: str, prompt: str) -> str:
    """The subject as the prompt writes it."""
    start = prompt.casefold().find(subject.casefold())
    return subject if start < 0 else prompt[start : start + len(subject)]


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())
