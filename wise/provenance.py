"""Which edits spoke in texts that were generated: the texts are read once more, and every route is told.

A route depends on its token's activation and on the tokens before alone, so it is the one that was taken in generation,
however that went: in batches, in beams, from a cache, in chunks. (Sums are taken in another order there; a score that
lies within rounding of its threshold could be told otherwise than it fell.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.memory.key_space import KeySpace
from wise.memory.layer import SideMemoryLayer
from wise.memory.side_memory import NO_SLOT, Evidence, Route, SideMemory
from wise.memory.state import MemoryState
from wise.reading import read_rows
from wise.router.activation import ActivationRouter
from wise.router.nearness import Nearness, nearness
from wise.routes import Claim, RowRoutes, TokenRoute

BATCH = 16
"""Rows that are read at once."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt and what was generated after it."""

    ids: tuple[int, ...]
    """Without pads."""
    places: tuple[int, ...]
    """The column of each."""
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Provenance:
    """Tells routes of one wrapped model, with the memory that is in place."""

    model: PreTrainedModel
    layer: SideMemoryLayer
    state: MemoryState
    decode: Callable[[int], str]

    def tell(self, texts: Sequence[Text]) -> tuple[RowRoutes, ...]:
        """Raises ConfigError where the model gives NaN."""
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return tuple(routes for part in parts for routes in self._told(part))

    @torch.no_grad()
    def _told(self, texts: Sequence[Text]) -> list[RowRoutes]:
        memory = self.layer.memory
        if memory is None:
            return [self._silent(text) for text in texts]
        activation = read_rows(self.model, self.layer, [text.ids for text in texts])
        shape = activation.shape[:2]
        route, evidence = memory.route(activation), memory.evidence(activation)
        rows = []
        for i, text in enumerate(texts):
            read = slice(0, len(text.ids) - 1)
            row = _Row(
                text=text,
                state=self.state,
                route=Route(
                    slot=route.slot.view(shape)[i, read].cpu(),
                    score=route.score.view(shape)[i, read].cpu(),
                    threshold=route.threshold.view(shape)[i, read].cpu(),
                    delta=None,
                ),
                evidence=Evidence(*(part.view(shape)[i, read].cpu() for part in evidence)),
                near=self._near(memory, activation[i], read),
                whole=isinstance(memory.router, ActivationRouter),
            )
            rows.append(row.told(self.decode))
        return rows

    def _near(self, memory: SideMemory, activation: Tensor, read: slice) -> Nearness | None:
        """None in `hybrid`, where a decision itself names the edit that came nearest, and without keys."""
        if not self.state.keys or not isinstance(self.state.key_space, KeySpace):
            return None
        return nearness(self.state, memory, activation).select(read)

    def _silent(self, text: Text) -> RowRoutes:
        pairs = zip(text.places[:-1], text.ids[:-1], strict=True)
        tokens = tuple(
            TokenRoute(place=place, token=self.decode(i), score=0.0, threshold=float("inf"), fired=None, missed=None)
            for place, i in pairs
        )
        return RowRoutes(tokens=tokens, prompt_tokens=text.prompt_tokens, missed=None, missed_at=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """What is known of the `t` tokens of one text that were read."""

    text: Text
    state: MemoryState
    route: Route
    evidence: Evidence
    near: Nearness | None
    whole: bool
    """The memory speaks as a whole (`merge`), so no edit is preferred to another."""

    def told(self, decode: Callable[[int], str]) -> RowRoutes:
        opened = self.route.open.tolist()
        chosen = [self._chosen(token, key) for token, key in enumerate(self.evidence.key.tolist())]
        fired = {claim.edit for claim, spoke in zip(chosen, opened, strict=True) if spoke and claim is not None}
        tokens = tuple(
            TokenRoute(
                place=self.text.places[token],
                token=decode(self.text.ids[token]),
                score=float(self.route.score[token]),
                threshold=float(self.route.threshold[token]),
                fired=chosen[token] if spoke else None,
                missed=self._second(token, chosen[token]) if spoke else chosen[token],
            )
            for token, spoke in enumerate(opened)
        )
        at, missed = self._nearest_of_others(fired) if self.near is not None else self._nearest_decision(chosen, fired)
        return RowRoutes(
            tokens=tokens,
            prompt_tokens=self.text.prompt_tokens,
            missed=missed,
            missed_at=None if at is None else self.text.places[at],
        )

    def _chosen(self, token: int, key: int) -> Claim | None:
        """Of the edit that the router looked at; None where it looked at none."""
        slot = int(self.evidence.slot[token])
        if slot == NO_SLOT:
            return None
        if key < 0 and self.near is not None:
            key = int(self.near.rank[token].argmax())
        return self._claim(key, float(self.evidence.value[token]), slot)

    def _nearest_decision(
        self, chosen: Sequence[Claim | None], fired: set[str | None]
    ) -> tuple[int | None, Claim | None]:
        """Over all tokens, of the edits that were looked at and did not speak."""
        others = [(c.evidence, -n, n, c) for n, c in enumerate(chosen) if c is not None and c.edit not in fired]
        if not others or self.whole:
            return None, None
        _, _, token, claim = max(others, key=lambda one: one[:2])
        return token, claim

    def _second(self, token: int, first: Claim | None) -> Claim | None:
        """Of the edit that would have been looked at without the first."""
        if self.near is None or self.whole or first is None:
            return None
        rank = self.near.rank[token].masked_fill(self._keys_of({first.edit}), -torch.inf)
        key = int(rank.argmax())
        return self._by_key(token, key) if rank[key] > -torch.inf else None

    def _nearest_of_others(self, fired: set[str | None]) -> tuple[int | None, Claim | None]:
        """Over all tokens, of the edits that did not speak."""
        if self.near is None or not len(self.near.evidence) or (self.whole and fired):
            return None, None
        near = self.near.evidence.masked_fill(self._keys_of(fired), -torch.inf)
        token = int(near.max(-1).values.argmax())
        if near[token].max() == -torch.inf:
            return None, None
        if self.whole:
            return token, self._chosen(token, -1)
        return token, self._by_key(token, int(near[token].argmax()))

    def _by_key(self, token: int, key: int) -> Claim:
        if self.near is None:
            raise RuntimeError("there are no keys")
        return self._claim(key, float(self.near.evidence[token, key]), self._slots[self.state.key_owners[key]])

    def _claim(self, key: int, evidence: float, slot: int) -> Claim:
        held = self.state.slots[slot].edit_ids
        edit = self.state.key_owners[key] if key >= 0 else held[0] if self.near is None and not self.whole else None
        return Claim(edit=edit, slot=slot, evidence=evidence)

    def _keys_of(self, edits: set[str | None]) -> Tensor:
        """`[n]` bool."""
        return torch.tensor([owner in edits for owner in self.state.key_owners])

    @cached_property
    def _slots(self) -> dict[str, int]:
        return {edit_id: slot.id for slot in self.state.slots for edit_id in slot.edit_ids}
