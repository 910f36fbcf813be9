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
from wise.memory.key_space import BEGINNING, ENDS, KeySpace
from wise.memory.slot import EditSlot
from wise.memory.state import MemoryState
from wise.training.background import Background
from wise.training.encoding import Encoder
from wise.training.evidence import BATCH, heard
from wise.training.splice import SplicedModel

AT_ONCE = 1024
"""Edits of a block, or so: they are compared in one product."""
LESS = 0.02
"""What floors count less: more than half precision and another order of sums can make of a cosine."""


Text = tuple[str, str]
"""Prompt and target of an edit: an id may be given to another edit, and taken back."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """The tokens of the prompts and answers of some edits, those of one behind those of another."""

    texts: tuple[Text, ...]
    owner: Tensor
    """`[t]` whose each token is, by its place in `texts`."""
    asks: Tensor
    """`[t]` how surely a question ends at each, float32."""
    relation: Tensor
    """`[t, r]` unit, half precision, as all that is kept of vectors."""
    named: Tensor
    """`[1 or 2, t, s]` unit, see `KeySpace.named`."""

    def only(self, texts: Collection[Text]) -> _Block:
        """What it has of these."""
        kept = [place for place, text in enumerate(self.texts) if text in texts]
        if len(kept) == len(self.texts):
            return self
        number = torch.full((len(self.texts),), -1)
        number[kept] = torch.arange(len(kept))
        own = number[self.owner] >= 0
        return _Block(
            texts=tuple(self.texts[place] for place in kept),
            owner=number[self.owner][own],
            asks=self.asks[own],
            relation=self.relation[own],
            named=self.named[:, own],
        )

    def behind(self, other: _Block) -> _Block:
        """The two as one."""
        return _Block(
            texts=other.texts + self.texts,
            owner=torch.cat([other.owner, self.owner + len(other.texts)]),
            asks=torch.cat([other.asks, self.asks]),
            relation=torch.cat([other.relation, self.relation]),
            named=torch.cat([other.named, self.named], dim=1),
        )

    def any(self, tokens: Tensor, owner: Tensor) -> Tensor:
        """`[t, k]` bool of tokens -> `[texts, k]` of their owners `[t]`."""
        return torch.zeros(len(self.texts), tokens.shape[1]).index_add(0, owner, tokens.float()) > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Wanted:
    """The keys of new edits, `k` in all, and from where on they count."""

    relation: Tensor
    """`[k, r]`"""
    gated: Tensor
    """`[k]` bool."""
    floors: Tensor
    """`[k]`"""
    subjects: Tensor
    """`[k, parts, s]`"""
    subject_floor: float

    @classmethod
    def of(cls, slots: Sequence[EditSlot], state: MemoryState, space: KeySpace, subject: KeySpace) -> _Wanted:
        keys = torch.cat([state.keys[slot.edit_ids[0]] for slot in slots])
        size = subject.parts * len(subject.projection)
        least = space.floor(len(state.edits))
        subjects, whom = keys[:, :size].reshape(len(keys), subject.parts, -1), subject.floor(len(state.edits))
        if subject.parts > 1:  # the ends of names alone are looked for, and their beginnings taken as found
            subjects, whom = subjects[:, ENDS - 1 :: ENDS], (whom - BEGINNING) / (1 - BEGINNING)
        return cls(
            relation=keys[:, size:],
            gated=torch.cat([slot.gated for slot in slots]),
            floors=torch.cat([slot.key_floors for slot in slots]).clamp(min=least) - LESS,
            subjects=subjects,
            subject_floor=whom - LESS,
        )

    def found_in(self, block: _Block) -> list[Text]:
        """Whom of a block they could speak in. Of whom is asked only of those of whom anything is asked."""
        relation = block.relation.float() @ self.relation.T
        reached = relation * torch.where(self.gated, block.asks[:, None], 1) >= self.floors
        asked = block.any(reached, block.owner)
        own = asked.any(-1)[block.owner]
        cosines = block.named[:, own].float() @ self.subjects.flatten(0, 1).T
        nearest = cosines.amax(0).view(-1, *self.subjects.shape[:2]).amax(-1)
        named = block.any(nearest >= self.subject_floor, block.owner[own])
        return [block.texts[place] for place in (asked & named).any(-1).nonzero()[:, 0].tolist()]


class Reach:
    """Remembers what it has read. The edits of one base, in the spaces of one router."""

    def __init__(
        self, spliced: SplicedModel, reader: ContextReader, encoder: Encoder, background: Background
    ) -> None:
        self.spliced, self.reader, self.encoder, self.background = spliced, reader, encoder, background
        self._blocks: list[_Block] = []

    def touched(self, state: MemoryState, fresh: Collection[str]) -> set[str]:
        """Ids of the other edits of `state` in whose prompt or answer one of `fresh` could open its gate."""
        live = {_text(edit) for edit in state.edits}
        self._blocks = [kept for kept in (block.only(live) for block in self._blocks) if kept.texts]
        known = {text for block in self._blocks for text in block.texts}
        old = {_text(edit): edit for edit in state.edits if edit.id not in fresh}
        self._look([edit for text, edit in old.items() if text not in known])
        slots = [s for s in state.slots if isinstance(s, EditSlot) and not set(s.edit_ids).isdisjoint(fresh)]
        if not old or not slots or state.subject_space is None or state.key_space is None:
            return set()
        wanted = _Wanted.of(slots, state, state.key_space, state.subject_space)
        return {old[text].id for block in self._blocks for text in wanted.found_in(block) if text in old}

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
            own = mask.bool()
            vectors = heard(self.reader, activations, space.recent)[own]
            named = [subject.named(values[row][seen]).half() for row, seen in enumerate(own)]
            block = _Block(
                texts=tuple(map(_text, part)),
                owner=own.nonzero()[:, 0].cpu(),
                asks=space.asks(vectors),
                relation=space.keys(vectors).half(),
                named=torch.cat(named, dim=1),
            )
            full = not self._blocks or len(self._blocks[-1].texts) >= AT_ONCE
            self._blocks.append(block if full else block.behind(self._blocks.pop()))


def _text(edit: Edit) -> Text:
    return edit.prompt, edit.target
