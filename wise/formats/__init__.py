"""The fields of each published editing set, and how a file's format is recognised.

Sets whose fields map one by one onto a `Record` are rows of a table (`wise.formats.layouts`); sets
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
test prompt is left out, and a zsRE record with an empty `alt` asks for no edit. A field that no
layout reads is named in the log, once for a file. Our own format has no such licence.
"""

from __future__ import annotations

from wise.errors import EditError, listed
from wise.formats.conflict_edit import PITFALLS
from wise.formats.fields import JsonRow, Note
from wise.formats.layout import Layout
from wise.formats.layouts import MAPPED_LAYOUTS
from wise.formats.mquake import CASES, FACTS
from wise.formats.ripple import RIPPLE_EDITS
from wise.formats.tracked_row import peek
from wise.formats.unke import UNKE

__all__ = ["FORMATS", "LAYOUTS", "Layout", "Note", "JsonRow", "holds_facts", "recognise"]

LAYOUTS: tuple[Layout, ...] = (*MAPPED_LAYOUTS, CASES, FACTS, RIPPLE_EDITS, UNKE, PITFALLS)

FORMATS: tuple[str, ...] = ("auto", *sorted({layout.format for layout in LAYOUTS}))
"""What may be asked for."""


def holds_facts(row: JsonRow) -> bool:
    """Whether this is a record of ROME's known facts, which states an answer and wants no other."""
    return {"subject", "attribute", "prompt"} <= row.keys()


def recognise(row: JsonRow, format: str) -> Layout:
    """The layout that a record has.

    Where several find what they cannot do without, the one that knows most of the record's fields. With
    `format="auto"` one that lacks one field is taken if it knows more than half of the others: a misspelt or empty
    field is then named.

    Raises:
        EditError: no layout of this format fits; names the fields found.
    """
    if format != "wise" and holds_facts(row):
        raise EditError(
            "this file holds facts that are known, not edits: field 'attribute' is the right answer, and no other "
            "one is wanted; trace the facts with `wise locate`, or read them with `wise.lab.locate.facts.read_facts`"
        )
    layouts = [layout for layout in LAYOUTS if format in ("auto", layout.format)]
    best = max(layouts, key=lambda layout: (_complete(layout, row), layout.marked(row) + _known_fields(layout, row)))
    lacks = len(best.needed - row.keys())
    if format != "auto" or _complete(best, row) or (lacks <= 1 and 2 * _known_fields(best, row) > len(row)):
        return best
    raise EditError(
        f"no known format has these fields: {listed(row)}; known formats are "
        f"{', '.join(FORMATS[1:])}, and ours has at least 'prompt' and 'target'; "
        "columns of other names are named with `columns` (--columns prompt=question,target=answer)"
    )


def _complete(layout: Layout, row: JsonRow) -> bool:
    """Whether each required path has a value, which in every layout is a text or a list."""
    return all(not isinstance(peek(row, p), dict | None) for p in layout.required)


def _known_fields(layout: Layout, row: JsonRow) -> int:
    return len(layout.fields & row.keys())
