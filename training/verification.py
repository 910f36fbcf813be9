"""Verification of edits by generation.

Three promises are verified (`wise.config.PROMISES`). In `merge` and `retrieve` there is the first one alone, and the
only wording is the prompt.

* *prompt*: the model answers the prompt with the target, token by token: as a turn of a chat (the first turn, a later
  one, and after a system message) and as plain text.
* *listed*: so it answers the paraphrases; and no locality prompt activates the edit.
* *sisters*: what the base answers to other questions about the subject does not change. They are those of the nearest
  relations that ship, and of other live edits. The router says which of them activate the edit; only these are asked.
  Relations so near that the reader may take them for the edit's own are not promised; they are reported apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from wise.config import PROMISES
from wise.edits import Edit
from wise.memory.slot import CHAT
from wise.memory.state import MemoryState
from wise.router.catalog import catalog_of, masked_keys, whole_keys
from wise.router.hybrid import Decision, HybridRouter, RouterInputs
from wise.router.sentences import last_sentence
from wise.router.subjects import SubjectIndex, may_name, name_key, names_of, without_names
from wise.training.encoding import Encoder
from wise.training.generation import between_steps, greedy
from wise.training.wordings import SISTERS, Wordings

LOCALITY, SISTER = "locality[{}]", "sister: "
"""Labels of a locality prompt by its place, and of a sister question before its text."""
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
    holds: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    """Of each promise: whether each wording or question, by its label, is answered as promised."""
    also_answers: tuple[str, ...] = ()
    """Questions of relations too near to be promised anything, which activate the edit."""
    said: Mapping[str, str] = field(default_factory=dict)
    """By label, what the edited model answers, where it was asked: to the wordings, and to what activates the edit."""

    @property
    def results(self) -> dict[str, bool]:
        """All labels."""
        return {label: held for promise in self.holds.values() for label, held in promise.items()}

    @property
    def right(self) -> bool:
        """Every promise is kept."""
        return self.keeps(PROMISES[-1])

    def keeps(self, required: str) -> bool:
        """The promises up to `required` are kept."""
        required_promises = PROMISES[: PROMISES.index(required) + 1]
        return all(held for promise in required_promises for held in self.holds.get(promise, {}).values())


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptVerifier:
    """Verifies the prompt alone, of edits that share slots (`merge`, `retrieve`)."""

    encoder: Encoder

    def ask(
        self, state: MemoryState, edits: Sequence[Edit], serve: Serve, progress: Share = lambda share: None
    ) -> dict[str, Verdict]:
        """By id, with `state` in place."""
        if not edits:
            return {}
        prompts = [self.encoder.prompt(edit.prompt) for edit in edits]
        wanted = [self.encoder.target(e.prompt, e.target) for e in edits]
        out = _generated(self.encoder, state, serve, prompts, wanted, progress)
        verdicts = {}
        for edit, generated, ids in zip(edits, out, wanted, strict=True):
            answer = self.encoder.answer(generated)
            holds = {"prompt": {"prompt": generated == ids}}
            verdicts[edit.id] = Verdict(answer=answer, holds=holds, said={"prompt": answer})
        return verdicts

    def prompts(self, edit: Edit, labels: Sequence[str]) -> list[tuple[list[int], bool]]:
        """How what these labels of a verdict name is asked: its ids, and whether they are a turn of a chat."""
        return [(self.encoder.prompt(edit.prompt), False) for _ in labels]


@dataclass(frozen=True, kw_only=True, eq=False)
class WordingVerifier:
    """Verifies all three promises, of edits with a slot each (`hybrid`)."""

    wordings: Wordings
    inputs: RouterInputs

    def ask(
        self, state: MemoryState, edits: Sequence[Edit], serve: Serve, progress: Share = lambda share: None
    ) -> dict[str, Verdict]:
        """As `PromptVerifier.ask`."""
        encoder = self.wordings.encoder
        wordings = [(edit, w) for edit in edits for w in self.wordings.of(edit, ()) if w.promised]
        if not wordings:
            return {}
        prompts, wanted = zip(*((list(w.prompt), w.answer) for _, w in wordings), strict=True)
        out = _generated(encoder, state, serve, prompts, wanted, progress)
        generated: dict[str, dict[str, str]] = {edit.id: {} for edit in edits}
        holds: dict[str, dict[str, dict[str, bool]]] = {e.id: {promise: {} for promise in PROMISES} for e in edits}
        for (edit, wording), ids in zip(wordings, out, strict=True):
            generated[edit.id][wording.name] = encoder.answer(ids, chat=wording.form == CHAT)
            holds[edit.id][wording.promised or ""][wording.name] = tuple(ids) == wording.answer
        answers = {edit_id: next(iter(texts.values()), "") for edit_id, texts in generated.items()}
        also = self._ask_others(state, [edit for edit in edits if edit.id in state.keys], serve, holds, generated)
        return {
            i: Verdict(answer=answers[i], holds=holds[i], also_answers=tuple(also.get(i, ())), said=generated[i])
            for i in generated
        }

    def prompts(self, edit: Edit, labels: Sequence[str]) -> list[tuple[list[int], bool]]:
        """As `PromptVerifier.prompts`."""
        wordings = {w.name: (list(w.prompt), w.form == CHAT) for w in self.wordings.of(edit, ())}
        others = {LOCALITY.format(place): text for place, text in enumerate(edit.locality)}
        chat = self.wordings.encoder.template is not None
        return [
            wordings.get(label) or (self.wordings.prompt(others.get(label, label.removeprefix(SISTER))), chat)
            for label in labels
        ]

    def _ask_others(
        self,
        state: MemoryState,
        edits: Sequence[Edit],
        serve: Serve,
        holds: Mapping[str, Mapping[str, dict[str, bool]]],
        answers: Mapping[str, dict[str, str]],
    ) -> dict[str, list[str]]:
        """Adds to `holds` whether locality prompts and sister questions are as promised, and to `answers` what is
        answered to those that activate the edit. Returns `Verdict.also_answers`."""
        router, catalog, encoder = HybridRouter(state, self.inputs), catalog_of(state), self.wordings.encoder
        also: dict[str, list[str]] = {}
        opened: list[tuple[Edit, dict[str, bool], str]] = []
        for edit in edits:
            between_steps()
            own, (_, listed, sisters) = catalog.slots[edit.id], (holds[edit.id][promise] for promise in PROMISES)
            for place, text in enumerate(edit.locality):
                listed[LOCALITY.format(place)] = not _asks_for(router.decide(text), own)
            for other in self._about_the_same(state, edit):
                sisters[SISTER + other] = not _asks_for(router.decide(other), own)
            opened += [
                (edit, {}, label)
                for label, held in (*listed.items(), *sisters.items())
                if not held and label not in answers[edit.id]
            ]
            apart, near = self.wordings.sisters(edit)
            opening = [
                text
                for text in (*apart, *near)
                if self._comes_near(state, edit, text, state.slots[own].threshold)
                and _asks_for(router.decided(self.wordings.prompt(text)), own)
            ]
            also[edit.id] = [text for text in near if text in opening]
            sisters |= {SISTER + text: True for text in apart}
            opened += [(edit, sisters, SISTER + text) for text in apart if text in opening]
        if not opened:
            return also
        prompts = [self.prompts(edit, [label])[0] for edit, _, label in opened]
        ids, wanted = [ids for ids, _ in prompts], [encoder.target("", edit.target) for edit, *_ in opened]
        out = [_generated(encoder, each, serve, ids, wanted) for each in (state, MemoryState())]
        for (edit, sisters, label), (_, chat), edited, before in zip(opened, prompts, *out, strict=True):
            sisters[label] = edited == before
            answers[edit.id][label] = encoder.answer(edited, chat=chat)
        return also

    def _comes_near(self, state: MemoryState, edit: Edit, text: str, threshold: float) -> bool:
        """Whether a question about its subject may activate an edit. With the subject masked, questions are alike for
        edits of one relation, so most of them have been read."""
        names = names_of(edit)
        question = without_names(text, names)
        vectors = self.inputs.reader.read([question, last_sentence(question)])
        return float((masked_keys(state.keys[edit.id].float(), names) @ vectors.T).max()) >= threshold

    @staticmethod
    def _about_the_same(state: MemoryState, edit: Edit) -> list[str]:
        catalog = catalog_of(state)
        others = [catalog.edits[i] for i in catalog.namesakes(edit) if same_subject(catalog.edits[i], edit)]
        return [other.prompt for other in others if other.target != edit.target][:SISTERS]

    def touched(self, state: MemoryState, fresh: Collection[str]) -> set[str]:
        """Other edits of `state` whose answers the edits `fresh` may have changed: at a promised wording of theirs, the
        router activates another edit, or not this one at the end.

        An edit is checked if one of its texts names a new edit's subject or, where one of the two has no subject, its
        question is close to one of its keys.
        """
        catalog = catalog_of(state)
        new = [catalog.edits[edit_id] for edit_id in fresh if edit_id in catalog.edits]
        names = [name for edit in new for name in names_of(edit)]
        names_index = SubjectIndex((name, 0) for name in names)
        texts = ["\n".join((*(m.content for m in e.messages), e.prompt, *e.paraphrases)) for e in state.edits]
        near = {state.edits[n].id for n in may_name(texts, names) if names_index.mentions(texts[n])}
        router = HybridRouter(state, self.inputs)
        for edit in new:
            if names_of(edit) and not catalog.nameless:
                continue
            keys = whole_keys(state.keys[edit.id], names_of(edit))
            by_question = catalog.near(keys, router.unnamed_threshold(catalog.slots[edit.id]))
            near |= {i for i in by_question if i in catalog.nameless} if names_of(edit) else by_question
        return {i for i in near - {*fresh} if not self._is_selected(router, catalog.edits[i], catalog.slots[i])}

    def _is_selected(self, router: HybridRouter, edit: Edit, slot: int) -> bool:
        between_steps()
        promised = [wording.prompt for wording in self.wordings.of(edit, ()) if wording.promised]
        active = ((len(prompt) - 1, router.active(prompt)) for prompt in promised)
        return all(end in slots and {*slots.values()} == {slot} for end, slots in active)


Verifier = PromptVerifier | WordingVerifier


def _asks_for(decision: Decision, slot: int) -> bool:
    return decision.open and decision.slot == slot


def _generated(
    encoder: Encoder,
    state: MemoryState,
    serve: Serve,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    progress: Share = lambda share: None,
) -> list[list[int]]:
    """The answers with `state` in place, each with room for more than the wanted one."""
    limits, count = [len(ids) + SPARE_TOKENS for ids in wanted], len(prompts)
    with serve(state) as model:
        return greedy(
            model, prompts, stops=encoder.stops, max_new_tokens=limits, progress=lambda done: progress(done / count)
        )


def same_subject(one: Edit, other: Edit) -> bool:
    """Whether two edits share a name of their subject, or both have none."""
    first, second = names_of(one), names_of(other)
    if not first or not second:
        return not first and not second
    return not {name_key(name) for name in first}.isdisjoint(name_key(name) for name in second)
