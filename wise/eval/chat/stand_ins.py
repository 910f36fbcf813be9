"""Edits that stand beside those that are measured, so that many can be live where only some are written.

A slot is an edit's own, so what others say never depends on it but through the router: a stand-in has its subject, its
keys and its threshold as any edit, and in the place of its own answer that of another live edit. Where it speaks out
of turn, that is heard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from wise.edits import Edit
from wise.memory.slot import AnswerSlot, Slot
from wise.memory.state import MemoryState
from wise.questions import stock
from wise.router.hybrid import RouterInputs
from wise.training.encoding import Encoder
from wise.training.wordings import Wordings

REPORT_EVERY = 100


def beside(
    state: MemoryState,
    edits: Sequence[Edit],
    *,
    encoder: Encoder,
    inputs: RouterInputs,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> MemoryState:
    """`state`, of mode `hybrid` and not empty, with stand-ins for those of `edits` whose prompt and id are not live."""
    wordings = Wordings(encoder, inputs.reader, stock())
    answers = [slot for slot in state.slots if isinstance(slot, AnswerSlot)]
    taken = {name for edit in state.edits for name in (edit.id, edit.prompt)}
    added, slots, keys = list[Edit](), list[Slot](state.slots), dict(state.keys)
    for number, edit in enumerate(edits):
        if not {edit.id, edit.prompt} & taken:
            taken |= {edit.id, edit.prompt}
            own = wordings.keys(edit, wordings.texts(edit)).half()
            answer = answers[len(added) % len(answers)]
            threshold = wordings.threshold(edit, own.float())
            slots.append(replace(answer, id=len(slots), edit_ids=(edit.id,), scores=(threshold,)))
            keys[edit.id] = own
            added.append(edit)
        if number % REPORT_EVERY == 0 or number == len(edits) - 1:
            progress("reading edits beside", number + 1, len(edits))
    return replace(state, edits=(*state.edits, *added), slots=tuple(slots), keys=keys)
