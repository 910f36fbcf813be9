"""Facts that a model may already know: a prompt about a subject, and the right answer.

They are what causal tracing looks for in a model (Meng et al., 2022, "Locating and Editing Factual
Associations in GPT"): a prompt that names its subject, whose answer the unedited model gives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

from wise.edits import Record
from wise.errors import EditError, checked_text
from wise.formats import JsonRow, holds_facts
from wise.formats.columns import Columns
from wise.formats.edit_file import RecordParser, check_limit, each_row
from wise.formats.fields import Fields

logger = logging.getLogger(__name__)

KNOWN = ("prompt", "subject", "attribute", "relation_id")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact. Spaces after the prompt and white space around the answer are taken off.

    Raises EditError where a text is blank or of the wrong type, or the prompt does not name the subject.
    """

    prompt: str
    """What is asked; ends right before the answer."""
    subject: str
    answer: str
    """The right one, of the world and not of an edit."""
    relation: str | None = None
    """Name of what is asked about the subject, such as a Wikidata property."""
    source: str = ""
    """Where it was read, such as `facts.jsonl:12`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                checked_text(field.name, value)
        object.__setattr__(self, "prompt", self.prompt.rstrip(" "))
        for name in ("subject", "answer"):
            object.__setattr__(self, name, getattr(self, name).strip())
        if self.subject not in self.prompt:
            raise EditError(f"field 'subject': {self.subject!r} does not occur in the prompt {self.prompt!r}")


def read_facts(
    path: str | PathLike[str],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Fact]:
    """Reads ROME's known facts, or the facts that the edits of any file of `wise.formats.edit_file` replace, each once.
    An edit without a subject or without the answer that was right before holds no fact; how many were left out is told
    to the log.

    path, format and columns: as of `wise.formats.edit_file.read_records`; where `columns` names one for `attribute`,
    the right answer, the file is one of known facts. limit: read no more than this many facts.

    Raises EditError for the first problem in the file, or where no fact is left.
    """
    path = Path(path)
    check_limit(limit)
    columns_of_known = Columns(columns, KNOWN) if "attribute" in (columns or {}) else None
    parser = RecordParser(format, None if columns_of_known else columns)
    facts_by_key: dict[tuple[str, str], Fact] = {}
    without = 0
    for file, line, row in each_row(path):
        if columns_of_known or (not columns and holds_facts(row)):
            facts = [_fact_of_row(file, line, columns_of_known.fields_of(row) if columns_of_known else row)]
        else:
            records = parser.add(file, line, row)
            facts = list(_facts_of_records(records))
            without += len(records) - len(facts)
        for fact in facts:
            facts_by_key.setdefault((fact.prompt, fact.answer), fact)
        if limit is not None and len(facts_by_key) >= limit:
            break
    absent = columns_of_known.absent() if columns_of_known else None
    if absent is not None:
        raise EditError(f"{path}: {absent}")
    parser.log_warnings(str(path))
    if without:
        logger.warning("%s: %d edits name no subject or no old answer, and hold no fact", path, without)
    if not facts_by_key:
        raise EditError(
            f"{path}: holds no fact; give known facts (prompt, subject, attribute), or edits with a subject "
            "and the answer that was right before"
        )
    return list(facts_by_key.values())[:limit]


def _fact_of_row(path: Path, line: int, row: JsonRow) -> Fact:
    fields = Fields(row)
    try:
        return Fact(
            prompt=fields.text("prompt"),
            subject=fields.text("subject"),
            answer=fields.text("attribute"),
            relation=fields.optional_text("relation_id"),
            source=f"{path.name}:{line}",
        )
    except EditError as error:
        raise EditError(f"{path}:{line}: {error}") from None


def _facts_of_records(records: list[Record]) -> Iterator[Fact]:
    for record in records:
        if record.edit.subject is not None and record.answer is not None:
            yield Fact(
                prompt=record.edit.prompt,
                subject=record.edit.subject,
                answer=record.answer,
                relation=record.relation,
                source=record.source,
            )
