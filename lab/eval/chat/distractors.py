"""Distractors: edits that are in the router but were not trained, to measure a router with many edits.

A slot holds one edit. Another edit can change what is said only through the router. A distractor has a subject, keys
and a threshold as any edit has. It answers with another edit's answer, so an answer changes wherever it speaks wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wise.edits import Edit
from wise.memory.slot import AnswerSlot, Slot
from wise.memory.state import MemoryState
from wise.progress import Progress
from wise.router.hybrid import RouterInputs
from wise.training.encoding import Encoder
from wise.training.router.builtin_questions import builtin_questions
from wise.training.wordings import Wordings

REPORT_EVERY = 100


def with_distractors(
    state: MemoryState, edits: Sequence[Edit], *, encoder: Encoder, inputs: RouterInputs, progress: Progress
) -> MemoryState:
    """`state`, of mode `hybrid` and not empty, with a distractor for each of `edits` whose id and prompt are new."""
    wordings = Wordings(encoder, inputs.reader, builtin_questions())
    answers = [slot for slot in state.slots if isinstance(slot, AnswerSlot)]
    names = {name for edit in state.edits for name in (edit.id, edit.prompt)}
    added, slots, keys = list[Edit](), list[Slot](state.slots), dict(state.keys)
    for number, edit in enumerate(edits):
        if not {edit.id, edit.prompt} & names:
            names |= {edit.id, edit.prompt}
            vectors = wordings.keys(edit).half()
            answer = answers[len(added) % len(answers)]
            threshold = wordings.threshold(edit, vectors.float())
            slots.append(replace(answer, id=len(slots), edit_ids=(edit.id,), scores=(threshold,)))
            keys[edit.id] = vectors
            added.append(edit)
        if number % REPORT_EVERY == 0 or number == len(edits) - 1:
            progress("reading distractors", number + 1, len(edits))
    return replace(state, edits=(*state.edits, *added), slots=tuple(slots), keys=keys)
