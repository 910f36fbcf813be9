"""Which live edits a new one could speak in: the only ones that have to be asked again (`hybrid`).

An edit answers as before unless another's gate opens somewhere in its prompt or answer. What the router would see there
is read off the base once per edit and kept in memory, so a new edit is compared with all that are live in one product,
however many they are. Found are at least those that it reaches: floors count a little less here than where they serve,
and a subject counts wherever its name's end stands in the text, also after the token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wise.edits import Edit
from wise.memory.context import ContextReader
from wise.memory.key_space import BEGINNING, ENDS
from wise.memory.slot import EditSlot
from wise.memory.state import MemoryState
from wise.training.background import Background
from wise.training.encoding import Encoder
from wise.training.evidence import BATCH, heard
from wise.training.splice import SplicedModel

AT_ONCE = 1024
"""Edits compared in one product."""
LESS = 0.02
"""What floors count less: more than half precision and another order of sums can make of a cosine."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """The tokens of one edit's prompt and answer."""

    asks: Tensor
    """`[t]` how surely a question ends at each, float32."""
    relation: Tensor
    """`[t, r]` unit, half precision, as all that is kept of vectors."""
    named: Tensor
    """`[1 or 2, t, s]` unit, see `KeySpace.named`."""


class Reach:
    """Remembers what it has read. The edits of one base, in the spaces of one router."""

    def __init__(
        self, spliced: SplicedModel, reader: ContextReader, encoder: Encoder, background: Background
    ) -> None:
        self.spliced, self.reader, self.encoder, self.background = spliced, reader, encoder, background
        self._read: dict[tuple[str, str], _Read] = {}
        """By prompt and target: an id may be given to another edit, and taken back."""

    def touched(self, state: MemoryState, fresh: Collection[str]) -> set[str]:
        """Ids of the other edits of `state` in whose prompt or answer one of `fresh` could open its gate."""
        live = {_text(edit) for edit in state.edits}
        self._read = {text: read for text, read in self._read.items() if text in live}
        old = [edit for edit in state.edits if edit.id not in fresh]
        self._look([edit for edit in old if _text(edit) not in self._read])
        slots = [s for s in state.slots if isinstance(s, EditSlot) and not set(s.edit_ids).isdisjoint(fresh)]
        if not old or not slots or state.subject_space is None or state.key_space is None:
            return set()
        keys = torch.cat([state.keys[slot.edit_ids[0]] for slot in slots])
        size = state.subject_space.parts * len(state.subject_space.projection)
        gated = torch.cat([slot.gated for slot in slots])
        least = state.key_space.floor(len(state.edits))
        floors = torch.cat([slot.key_floors for slot in slots]).clamp(min=least) - LESS
        subjects = keys[:, :size].reshape(len(keys), state.subject_space.parts, -1)
        whom = state.subject_space.floor(len(state.edits))
        if state.subject_space.parts > 1:  # the ends of names alone are looked for, and their beginnings taken as found
            subjects, whom = subjects[:, ENDS - 1 :: ENDS], (whom - BEGINNING) / (1 - BEGINNING)
        found = set()
        for start in range(0, len(old), AT_ONCE):
            part = [self._read[_text(edit)] for edit in old[start : start + AT_ONCE]]
            owner = torch.arange(len(part)).repeat_interleave(torch.tensor([len(read.asks) for read in part]))
            asks = torch.cat([read.asks for read in part])[:, None]
            relation = torch.cat([read.relation for read in part]).float() @ keys[:, size:].T
            asked = _any(relation * torch.where(gated, asks, 1) >= floors, owner, len(part))
            cosines = torch.cat([read.named for read in part], dim=1).float() @ subjects.flatten(0, 1).T
            nearest = cosines.amax(0).view(-1, *subjects.shape[:2]).amax(-1)
            named = _any(nearest >= whom - LESS, owner, len(part))
            found |= {old[start + i].id for i in (asked & named).any(-1).nonzero()[:, 0].tolist()}
        return found

    @torch.no_grad()
    def _look(self, edits: Sequence[Edit]) -> None:
        space, subject = self.background.key_space, self.background.subject_space
        if subject is None:
            raise RuntimeError("the background was measured for another mode: it has no subject space")
        for start in range(0, len(edits), BATCH):
            part = edits[start : start + BATCH]
            rows = [[*self.encoder.prompt(e.prompt), *self.encoder.target(e.prompt, e.target)] for e in part]
            activations, mask, _ = self.spliced.observe(rows)
            values = self.reader.values
            if values is None:
                raise RuntimeError("attention was not run: is it part of the model's forward?")
            vectors = heard(self.reader, activations, space.recent)
            for i, edit in enumerate(part):
                own = mask[i].bool()
                at, named = vectors[i][own], subject.named(values[i][own])
                self._read[_text(edit)] = _Read(
                    asks=space.asks(at), relation=space.keys(at).half(), named=named.half()
                )


def _text(edit: Edit) -> tuple[str, str]:
    return edit.prompt, edit.target


def _any(which: Tensor, owner: Tensor, count: int) -> Tensor:
    """`[t, k]` bool of tokens -> `[count, k]` of their owners `[t]`."""
    return torch.zeros(count, which.shape[1]).index_add(0, owner, which.float()) > 0
