"""Verification of edits by generation.

An edit is verified if the model answers every promised wording with the target, token by token. In `merge` and
`retrieve` the promised wording is the prompt. In `hybrid` they are the prompt and the paraphrases, as a turn of a chat
(the first turn, a later one, and after a system message) and as plain text; besides, no locality prompt may activate
the edit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from transformers import PreTrainedModel

from wise.edits import Edit
from wise.memory.slot import CHAT
from wise.memory.state import MemoryState
from wise.router.catalog import catalog_of, whole_keys
from wise.router.hybrid import HybridRouter, RouterInputs
from wise.router.subjects import SubjectIndex, may_name, name_key, names_of
from wise.training.encoding import Encoder
from wise.training.generation import greedy
from wise.training.wordings import Wordings, question

SPARE_TOKENS = 4
"""Tokens that an answer may have beyond the target before it counts as not stopping."""

Share = Callable[[float], None]
"""Called with the share of the work that is done."""
Serve = Callable[[MemoryState], AbstractContextManager[PreTrainedModel]]
"""Serves a state within a `with` block and yields the model to ask."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of asking one edit."""

    answer: str
    """What the model answers to its prompt."""
    holds: Mapping[str, bool] = field(default_factory=dict)
    """Whether each wording, by its label, is answered as promised."""

    @property
    def right(self) -> bool:
        return all(self.holds.values())


class Verifier(Protocol):
    """Verifies edits, and finds the other edits that a new one may have changed."""

    def ask(
        self, state: MemoryState, edits: Sequence[Edit], serve: Serve, progress: Share = lambda share: None
    ) -> dict[str, Verdict]:
        """By id, with `state` in place."""
        ...

    def touched(self, state: MemoryState, fresh: Collection[str]) -> set[str]:
        """Ids of the other edits of `state` whose answers the edits `fresh` may have changed."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptVerifier:
    """Verifies the prompt alone, of edits that share slots (`merge`, `retrieve`)."""

    encoder: Encoder

    def ask(
        self, state: MemoryState, edits: Sequence[Edit], serve: Serve, progress: Share = lambda share: None
    ) -> dict[str, Verdict]:
        if not edits:
            return {}
        prompts = [self.encoder.prompt(edit.prompt) for edit in edits]
        wanted = [self.encoder.target(e.prompt, e.target) for e in edits]
        with serve(state) as model:
            limits = [len(ids) + SPARE_TOKENS for ids in wanted]
            out = greedy(
                model, prompts, stops=self.encoder.stops, max_new_tokens=limits, progress=_shares(progress, prompts)
            )
        return {
            edit.id: Verdict(
                answer=self.encoder.answer(said),
                holds={"prompt": self.encoder.answer(said) == self.encoder.answer(ids)},
            )
            for edit, said, ids in zip(edits, out, wanted, strict=True)
        }

    def touched(self, state: MemoryState, fresh: Collection[str]) -> set[str]:
        return {*state.edit_ids} - {*fresh}


@dataclass(frozen=True, kw_only=True, eq=False)
class WordingVerifier:
    """Verifies all promised wordings, of edits with a slot each (`hybrid`)."""

    wordings: Wordings
    inputs: RouterInputs

    def ask(
        self, state: MemoryState, edits: Sequence[Edit], serve: Serve, progress: Share = lambda share: None
    ) -> dict[str, Verdict]:
        encoder = self.wordings.encoder
        asked = [(edit, w) for edit in edits for w in self.wordings.of(edit, ()) if w.promised]
        if not asked:
            return {}
        with serve(state) as model:
            limits = [len(w.answer) + SPARE_TOKENS for _, w in asked]
            prompts = [list(w.prompt) for _, w in asked]
            out = greedy(
                model, prompts, stops=encoder.stops, max_new_tokens=limits, progress=_shares(progress, prompts)
            )
        answers: dict[str, str] = {}
        holds: dict[str, dict[str, bool]] = {edit.id: {} for edit in edits}
        for (edit, wording), said in zip(asked, out, strict=True):
            answers.setdefault(edit.id, encoder.answer(said, chat=wording.form == CHAT))
            holds[edit.id][wording.name] = tuple(said) == wording.answer
        if any(edit.locality for edit in edits) and state.slots:
            router, slots = HybridRouter(state, self.inputs), catalog_of(state).slots
            for edit in edits:
                for place, text in enumerate(edit.locality):
                    decision = router.decide(text)
                    moved = decision.open and decision.slot == slots.get(edit.id)
                    holds[edit.id][f"locality[{place}]"] = not moved
        return {edit.id: Verdict(answer=answers.get(edit.id, ""), holds=holds[edit.id]) for edit in edits}

    def touched(self, state: MemoryState, fresh: Collection[str]) -> set[str]:
        """Edits that the router no longer selects for their own question.

        An edit is checked if its question names a new edit's subject or, where one of the two has no subject, is close
        to one of its keys.
        """
        catalog = catalog_of(state)
        new = [catalog.edits[edit_id] for edit_id in fresh if edit_id in catalog.edits]
        names = [name for edit in new for name in names_of(edit)]
        known = SubjectIndex((name, 0) for name in names)
        asked = list(map(question, state.edits))
        near = {state.edits[n].id for n in may_name(asked, names) if known.mentions(asked[n])}
        router = HybridRouter(state, self.inputs)
        for edit in new:
            if names_of(edit) and not catalog.nameless:
                continue
            keys = whole_keys(state.keys[edit.id], names_of(edit))
            found = catalog.near(keys, router.unnamed_threshold(catalog.slots[edit.id]))
            near |= {i for i in found if i in catalog.nameless} if names_of(edit) else found
        return {i for i in near - {*fresh} if router.decide(question(catalog.edits[i])).slot != catalog.slots[i]}


def _shares(progress: Share, prompts: Sequence[object]) -> Callable[[int], None]:
    return lambda done: progress(done / len(prompts))


def same_subject(one: Edit, other: Edit) -> bool:
    """Whether two edits share a name of their subject, or both have none."""
    first, second = names_of(one), names_of(other)
    if not first or not second:
        return not first and not second
    return not {name_key(name) for name in first}.isdisjoint(name_key(name) for name in second)
