"""The verbs of editing: write, replace, take out, and go back.

Each makes a new `MemoryState` beside the one that is served, and swaps it in when all is known: whatever is refused or
breaks down leaves the model as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from weakref import WeakSet

from transformers import PreTrainedModel

from wise.edits import Edit
from wise.errors import EditError
from wise.memory.state import MemoryState
from wise.training.report import DeleteReport, EditReport
from wise.training.trainer import Trainer


class Editing:
    """What `WiseModel` can do with edits."""

    if TYPE_CHECKING:
        state: MemoryState
        _snapshots: WeakSet[MemoryState]

        @property
        def is_wrapped(self) -> bool: ...
        @property
        def trainer(self) -> Trainer: ...
        def evaluating(self) -> AbstractContextManager[None]: ...
        def serving(self, state: MemoryState) -> AbstractContextManager[PreTrainedModel]: ...
        def _serve(self, state: MemoryState) -> None: ...

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The live edits, in the order in which they came."""
        return self.state.edits

    def edit(
        self, edits: Edit | Sequence[Edit], *, progress: Callable[[int], None] | None = None
    ) -> EditReport:
        """Writes edits into the side memory, and keeps those that the model then generates by itself.

        A later edit of the same prompt takes the place of an earlier one. `progress` is called with the number
        of edits that are through: half of them once all are written, all once they were asked.

        Raises EditError, with nothing changed, where an edit is not usable (`wise.Edit`), ids repeat, an edit
        does not fit the model's context, or the model was unwrapped.
        """
        self._check_wrapped()
        edits = list(edits) if isinstance(edits, Iterable) else [edits]
        for edit in edits:
            if not isinstance(edit, Edit):
                raise EditError(f"edit() takes wise.Edit records, not {type(edit).__name__}: {edit!r:.80}")
        if not edits:
            raise EditError("edit() was given no edits: expected one wise.Edit or a list of them")
        with self.evaluating():
            state, report = self.trainer.edit(self.state, edits, serve=self.serving, progress=progress)
        self._serve(state)
        return report

    def replace(self, edit: Edit) -> EditReport:
        """Writes an edit in the place of the live one that has its id, and of the one that has its prompt.

        Of the old one nothing is left, as after `delete`. It stays where the new one does not verify.

        Raises EditError, with nothing changed, where there is none to replace, or as `edit` does.
        """
        self._check_wrapped()
        if not isinstance(edit, Edit):
            raise EditError(f"replace() takes one wise.Edit, not {type(edit).__name__}: {edit!r:.80}")
        if not any(edit.id == other.id or edit.prompt == other.prompt for other in self.edits):
            raise EditError(
                f"field 'id': no live edit has the id {edit.id!r} or the prompt {edit.prompt!r:.80}; make a new one "
                "with edit()"
            )
        with self.evaluating():
            state, report = self.trainer.edit(self.state, [edit], serve=self.serving, replacing=True)
        self._serve(state)
        return report

    def delete(self, edit_ids: str | Iterable[str]) -> DeleteReport:
        """Takes edits out, so that every tensor and every output is what it would be without them.

        In `hybrid` an edit has its slot to itself, which goes with it: nothing is computed and nothing else moves. In
        `merge` and `retrieve` edits share the weights of a slot; what is left in it is written anew, from nothing,
        which takes as long as editing did, and an edit that does not verify then is reported as lost. What a deleted
        edit had replaced does not come back: that is `rollback`.

        Raises EditError, with nothing changed, for an id that is not live, or where the model was unwrapped.
        """
        self._check_wrapped()
        begun, cpu = time.perf_counter(), time.process_time()
        deleted = self.state.live([edit_ids] if isinstance(edit_ids, str) else edit_ids)
        sharing = self.state.sharing(deleted)
        state, lost = self.state.without(deleted), tuple[str, ...]()
        if sharing:
            with self.evaluating():
                state, lost = self.trainer.delete(self.state, deleted, serve=self.serving)
        self._serve(state)
        return DeleteReport(
            deleted=deleted,
            rewritten=tuple(i for i in sharing if i not in lost),
            lost=lost,
            seconds=time.perf_counter() - begun,
            cpu_seconds=time.process_time() - cpu,
        )

    def snapshot(self) -> MemoryState:
        """All that is edited, as it is now, for `rollback`. It is immutable and costs nothing to take."""
        self._snapshots.add(self.state)
        return self.state

    def rollback(self, snapshot: MemoryState) -> None:
        """Serves a snapshot of this model again, bit for bit.

        Raises EditError, with nothing changed, for anything but a snapshot that this very model gave, or where the
        model was unwrapped.
        """
        self._check_wrapped()
        if not isinstance(snapshot, MemoryState) or snapshot not in self._snapshots:
            raise EditError(
                f"rollback() was given a {type(snapshot).__name__} that is no snapshot of this model: give what its "
                "own snapshot() returned; a memory of another model or process is saved and read with save_pretrained "
                "and from_pretrained"
            )
        self._serve(snapshot)

    def _check_wrapped(self) -> None:
        if not self.is_wrapped:
            raise EditError("this model was unwrapped, so nothing would be served: wrap it again, then edit it")

    def prepare(self) -> None:
        """Measures the base, which takes seconds and which the first edit would do otherwise."""
        _ = self.trainer

    def validate(self, edits: Sequence[Edit]) -> None:
        """Raises EditError for edits that `edit` would refuse, and changes nothing."""
        self.trainer.validate(self.state, edits)

    @property
    def memory_bytes(self) -> int:
        """Bytes of slots and keys, as `save_pretrained` writes them."""
        slots = (tensor for slot in self.state.slots for tensor in slot.tensors().values())
        return sum(tensor.nbytes for tensors in (slots, self.state.keys.values()) for tensor in tensors)

    def reset(self) -> None:
        """Forgets every edit: the wrapped model is the base again."""
        self._serve(MemoryState())
