"""The fields of each published editing set, and how a file's format is recognised.

Sets whose fields map one by one onto a `Record` are rows of a table (`wise.lab.formats.table`); sets
whose records are built differently have a module each. What holds for all of them, because it
decides what a figure means:

* a **paraphrase** is another wording of the same question. Text that only mentions the subject
  (CounterFact's generation prompts), another name of the subject or a conclusion from the
  edit (KnowEdit's portability), and wordings that lost the subject are not;
* a **neighbour** is a prompt that the edit must not move. KnowEdit's "Forgetfulness" prompts
  are not: they ask the edited question itself, with the new answer named and ruled out;
* a **probe** is a question whose right answer after the edit the set itself states. One that asks the
  very prompt of the edit measures nothing of its own and is left out, and so is one without an answer.

Published sets have defects that their users know and step over. They are stepped over here
too, each with a note for the log: a subject that the prompt does not hold is dropped, an empty
test prompt is left out, and a zsRE record with an empty `alt` asks for no edit. Our own format
has no such licence.
"""

from __future__ import annotations

from wise.errors import EditError
from wise.lab.formats.conflict_edit import PITFALLS
from wise.lab.formats.fields import JsonRow, Note, has
from wise.lab.formats.layout import Layout
from wise.lab.formats.mquake import CASES, FACTS
from wise.lab.formats.ripple import RIPPLE_EDITS
from wise.lab.formats.table import FORMS
from wise.lab.formats.unke import UNKE

__all__ = ["FORMATS", "LAYOUTS", "Layout", "Note", "JsonRow", "holds_facts", "recognise"]

LAYOUTS: tuple[Layout, ...] = (*FORMS, CASES, FACTS, RIPPLE_EDITS, UNKE, PITFALLS)

FORMATS: tuple[str, ...] = ("auto", *sorted({layout.format for layout in LAYOUTS}))
"""What may be asked for."""


def holds_facts(row: JsonRow) -> bool:
    """Whether this is a record of ROME's known facts, which states an answer and wants no other."""
    return {"subject", "attribute", "prompt"} <= row.keys()


def recognise(row: JsonRow, format: str) -> Layout:
    """The layout that a file has, by its first record.

    Where several fit, the one that knows most of the record's fields; with `format="auto"` it
    must find there what it cannot do without, or know half of the fields (so that a misspelt
    field is named rather than the whole file refused).

    Raises:
        EditError: no layout of this format fits; names the fields found.
    """
    if holds_facts(row):
        raise EditError(
            "this file holds facts that are known, not edits: field 'attribute' is the right answer, and no other "
            "one is wanted; trace the facts with `wise locate`, or read them with `wise.lab.formats.facts.read_facts`"
        )
    layouts = [layout for layout in LAYOUTS if format in ("auto", layout.format)]
    best = max(layouts, key=lambda layout: (layout.marked(row), len(layout.fields & row.keys())))
    known = len(best.fields & row.keys())
    if format != "auto" or 2 * known >= len(row) or all(has(row, path) for path in best.required):
        return best
    raise EditError(
        f"no known format has these fields: {', '.join(sorted(row))}; known formats are "
        f"{', '.join(FORMATS[1:])}, and ours has at least 'prompt' and 'target'"
    )
