"""The hybrid router: an edit speaks where its question is asked of its subject, and goes on while it is being said.

1. *Which edits can be meant?* Those whose subject the text names (`wise.router.subjects`). Where it names none, those
   whose question is very near, found among all keys with FAISS.
2. *Is it what is asked?* The relation reader's vector of the question against the edit's keys (`wise.router.readers`).
3. *Where?* Where an answer begins: at the end of a chat's question, or, in plain text, at the end of a question and
   where an unfinished sentence that names the subject expects its answer (`wise.router.turns`).
4. *How long?* While what was generated since is a beginning of the edit's answer; then its next value is added.

All of it is a function of the token ids up to a token, so a sequence is routed alike however it is generated: in
batches, in chunks, with caches or without, and by whichever thread. A text that names no edited subject costs the same
however many edits there are.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wise.memory.grouped import NO_SLOT
from wise.memory.sequences import Ids, SequenceReader
from wise.memory.side_memory import Evidence, Route, Router, SlotBank
from wise.memory.slot import CHAT, COMPLETION, AnswerBank, AnswerSlot
from wise.memory.state import MemoryState
from wise.router.catalog import catalog_of, masked_keys, whole_keys
from wise.router.readers import RelationReader
from wise.router.subjects import Mention, masked, names_of, words
from wise.router.turns import WINDOW, ChatTemplate, expects, is_question, last_sentence, last_word, passage, refers_back

REMEMBERED = 4096
"""Decisions that a router keeps."""
NEAREST = 8
"""Edit keys that are looked at where no subject is named."""
MAX_THRESHOLD = 0.98
"""Threshold that an edit's own question still reaches, whose key is kept in half precision."""
UNCLEAR_MARGIN = 0.1
"""By how much the threshold is higher in a sentence at a place where it is not clear that an answer is expected."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RouterInputs:
    """What a router reads of one wrapped model."""

    sequences: SequenceReader
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    reader: RelationReader


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the router decided about one question."""

    slot: int
    """Of the edit that came nearest, whether it is meant or not; NO_SLOT where none was looked at."""
    score: float
    """Cosine of the question to the nearest of its keys."""
    threshold: float
    """Score from which that edit is meant."""
    named: bool
    """Its subject is named."""

    @property
    def open(self) -> bool:
        return self.slot != NO_SLOT and self.score >= self.threshold


NOTHING = Decision(slot=NO_SLOT, score=0.0, threshold=float("inf"), named=False)


class HybridRouter(Router):
    """Serves one snapshot. Decisions are remembered; all else is read-only."""

    def __init__(self, state: MemoryState, inputs: RouterInputs) -> None:
        super().__init__()
        self.inputs = inputs
        self._state = state
        self._catalog = catalog_of(state)
        self._sentence_margin = max(0.0, inputs.reader.sentence_threshold - inputs.reader.threshold)
        self._decisions: OrderedDict[bytes, Decision] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For a copy of the model, which decides by itself and under a lock of its own."""
        return {name: value for name, value in vars(self).items() if name not in ("_decisions", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._decisions, self._lock = OrderedDict(), threading.Lock()

    # -- on the path of a token -------------------------------------------------------------------

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        value, slot, score, threshold = self._routes(len(activation))
        device = activation.device
        route = Route(
            slot=torch.as_tensor(slot, device=device),
            score=torch.as_tensor(score, device=device),
            threshold=torch.as_tensor(threshold, device=device),
            delta=None,
        )
        spoken = value != NO_SLOT
        if not spoken.any() or not isinstance(bank, AnswerBank):
            return route
        return route._replace(delta=bank.chosen(np.where(spoken, slot, NO_SLOT).tolist(), value.tolist()))

    def evidence(self, activation: Tensor, bank: SlotBank) -> Evidence:
        """The score's way from 0 to the threshold, then from the threshold to 1, as 0 to 1 to 2."""
        route = self(activation, bank)
        score, threshold = route.score, route.threshold
        above = 1 + (score - threshold) / (1 - threshold).clamp(min=1e-3)
        value = torch.where(route.open, above, (score / threshold).clamp(min=0, max=1))
        return Evidence.of(route, value, route.slot, torch.full_like(route.slot, -1))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _routes(self, size: int) -> tuple[Ids, Ids, np.ndarray, np.ndarray]:
        """Of each of the forward's tokens: which of its slot's values is added, the slot looked at, its score and its
        threshold."""
        rows = self.inputs.sequences.rows
        if rows.size != size:
            raise RuntimeError(f"{size} tokens reach the side memory and {rows.size} were read")
        value, slot = np.full(size, NO_SLOT, dtype=np.int64), np.full(size, NO_SLOT, dtype=np.int64)
        score, threshold = np.zeros(size, dtype=np.float32), np.full(size, np.inf, dtype=np.float32)
        for ids, places in zip(rows.ids, rows.places, strict=True):
            first = len(ids) - len(places)
            for place, decision, added in self._row(ids, first):
                at = places[place - first]
                slot[at], score[at], threshold[at] = decision.slot, decision.score, decision.threshold
                value[at] = added
        return value, slot, score, threshold

    def _row(self, ids: Ids, first: int) -> Iterator[tuple[int, Decision, int]]:
        """Of a row's tokens from `first` on, those at which something was decided: place, decision, value added."""
        if not len(ids) or first >= len(ids):
            return
        template = self.inputs.template
        openings = [] if template is None else template.openings(ids, max(0, first - self._catalog.longest))
        if openings or (template is not None and template.openings(ids, 0)):
            begins = [(end, self._turn(ids, end)) for end in openings]
            yield from self._spoken(ids, first, begins, CHAT)
        else:
            yield from self._spoken(ids, first, self._completions(ids, first), COMPLETION)

    def _spoken(
        self, ids: Ids, first: int, begins: Sequence[tuple[int, Decision]], form: int
    ) -> Iterator[tuple[int, Decision, int]]:
        """Where answers that begin at those places go on. An answer under way is not begun anew."""
        taken: set[int] = set()
        for begin, decision in begins:
            if begin in taken:
                continue
            if not decision.open:
                if begin >= first:
                    yield begin, decision, NO_SLOT
                continue
            start, answer = self._answers(decision.slot)[form]
            for n in range(len(answer)):
                if begin + n >= len(ids) or (n and ids[begin + n] != answer[n - 1]):
                    break
                if n:
                    taken.add(begin + n)
                if begin + n >= first:
                    yield begin + n, decision, start + n

    # -- what is asked ----------------------------------------------------------------------------

    def _turn(self, ids: Ids, end: int) -> Decision:
        """About the question in front of the opening that ends at `end`."""
        key = hashlib.blake2b(ids[: end + 1].tobytes(), digest_size=16).digest()
        known = self._recall(key)
        if known is None:
            template = self.inputs.template
            if template is None:
                raise RuntimeError("there is no chat template")
            start, stop = template.question(ids, end)
            known = self._remember(key, self.decide(self._text(ids[start:stop]), before=self._text(ids[:start])))
        return known

    def _completions(self, ids: Ids, first: int) -> list[tuple[int, Decision]]:
        """In plain text: the tokens at which an answer may begin, with what is decided there."""
        low = max(0, first - self._catalog.longest)
        text = self._text(ids[max(0, low - WINDOW) :])
        found_words = words(text)
        marked = "?" in text or "？" in text or any(word.text in self._catalog.unmarked_ends for word in found_words)
        if not marked and not self._catalog.subjects.among(found_words):
            return []
        found = []
        for end in range(low, len(ids)):
            decision = self._completion(self._text(ids[max(0, end + 1 - WINDOW) : end + 1]))
            if decision is not None:
                found.append((end, decision))
        return found

    def _completion(self, text: str) -> Decision | None:
        """What is decided at the end of plain text; None where no answer may begin there."""
        said = passage(text, self._catalog.subjects.mentions)
        if said is None:
            return None
        key = hashlib.blake2b(said.encode(), digest_size=15).digest()
        known = self._recall(key)
        if known is None:
            known = self._remember(key, self._completed(said))
        return None if known is NOTHING else known

    def _completed(self, said: str) -> Decision:
        """The same of a passage that is not remembered. An unfinished sentence must come nearer to the edit's question
        than a question, and nearer yet where it is not clear that an answer is expected."""
        if is_question(said) or self._ends_a_prompt(said):
            return self.decide(said)
        mentions = self._catalog.subjects.mentions(said)
        expected = expects(said, self._catalog.ends) if mentions else False
        if expected is None and max(mention.end for mention in mentions) >= len(said):
            expected = False  # behind a name nothing is expected, but where it ends an edit's own sentence
        if expected is False:
            return NOTHING
        decision = self.decide(said)
        margin = self._sentence_margin if expected else self._sentence_margin + UNCLEAR_MARGIN
        return replace(decision, threshold=max(decision.threshold, min(decision.threshold + margin, MAX_THRESHOLD)))

    def _ends_a_prompt(self, said: str) -> bool:
        return last_word(said) in self._catalog.unmarked_ends

    def decide(self, question: str, before: str = "") -> Decision:
        """Which edit a question means.

        before: what was said earlier in the conversation; its last subject counts where the question names none.
        """
        texts = self._named(question)
        if not texts and before and refers_back(question):
            mentions = self._catalog.subjects.mentions(before)[-1:]
            texts = {slot: question for mention in mentions for slot in self._called(mention)}
        ends = {text: last_sentence(text) for text in texts.values()}
        read = list(dict.fromkeys((question, *ends, *ends.values())))
        vectors = dict(zip(read, self.inputs.reader.read(read), strict=True))
        best = NOTHING
        for slot, text in texts.items():
            asked = torch.stack([vectors[text], vectors[ends[text]]])
            keys, names = self._known(slot)
            # In the precision of a route, so that it is open exactly where a decision is.
            threshold = float(np.float32(self._state.slots[slot].threshold))
            best = self._nearer(best, slot, masked_keys(keys, names), asked, threshold, named=True)
        if best.open:
            return best
        for edit_id in self._catalog.nearest(vectors[question], NEAREST):
            slot = self._catalog.slots[edit_id]
            if slot not in texts:
                keys, names = self._known(slot)
                asked, threshold = vectors[question][None], self.unnamed_threshold(slot)
                best = self._nearer(best, slot, whole_keys(keys, names), asked, threshold, named=False)
        return best

    def unnamed_threshold(self, slot: int) -> float:
        """Score from which a question that does not name its subject means the edit of a slot."""
        own = self._state.slots[slot].threshold
        return max(own, self.inputs.reader.unnamed_threshold) if self._known(slot)[1] else own

    def _called(self, mention: Mention) -> list[int]:
        """The slots whose subject is called so."""
        return sorted(self._catalog.slots[edit_id] for edit_id in self._catalog.subjects.owners(mention))

    def _known(self, slot: int) -> tuple[Tensor, tuple[str, ...]]:
        """All keys of a slot's edit, and its names."""
        edit_id = self._state.slots[slot].edit_ids[0]
        return self._state.keys[edit_id], names_of(self._catalog.edits[edit_id])

    def _answers(self, slot: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Of a slot: see `AnswerSlot.answers`."""
        found = self._state.slots[slot]
        if not isinstance(found, AnswerSlot):
            raise RuntimeError(f"slot {slot} is of kind {found.kind!r}, which has no answers")
        return found.answers

    def _named(self, question: str) -> dict[int, str]:
        """The slots whose subject a question names, each with the question as it is read for it: subject masked."""
        mentions = self._catalog.subjects.mentions(question)
        owned: dict[int, list[Mention]] = {}
        for mention in mentions:
            for slot in self._called(mention):
                owned.setdefault(slot, []).append(mention)
        texts: dict[tuple[Mention, ...], str] = {}
        found = {}
        for slot, own in owned.items():
            key = tuple(own)
            if key not in texts:
                texts[key] = masked(question, own)
            found[slot] = texts[key]
        return found

    def _nearer(
        self, best: Decision, slot: int, keys: Tensor, vectors: Tensor, threshold: float, *, named: bool
    ) -> Decision:
        """Of two the open one with the higher score, else the one that comes nearer to its threshold."""
        with torch.autocast("cpu", enabled=False):
            score = float((keys.float() @ vectors.T).max())
        own = Decision(slot=slot, score=score, threshold=float(threshold), named=named)
        return own if _rank(own) > _rank(best) else best

    # -- for measuring ----------------------------------------------------------------------------

    def decided(self, ids: Sequence[int]) -> Decision:
        """What is decided at the last token of a sequence: whether an answer begins there, and which edit is meant."""
        row = np.asarray(ids, dtype=np.int64)
        found = [decision for place, decision, _ in self._row(row, len(row) - 1) if place == len(row) - 1]
        return found[0] if found else NOTHING

    def active_positions(self, ids: Sequence[int]) -> list[int]:
        """The places of a sequence at which an edit speaks."""
        return [place for place, _, value in self._row(np.asarray(ids, dtype=np.int64), 0) if value != NO_SLOT]

    # -- helpers ----------------------------------------------------------------------------------

    def _text(self, ids: Ids) -> str:
        return str(self.inputs.tokenizer.decode(ids, skip_special_tokens=True))

    def _recall(self, key: bytes) -> Decision | None:
        with self._lock:
            return self._decisions.get(key)

    def _remember(self, key: bytes, decision: Decision) -> Decision:
        with self._lock:
            self._decisions[key] = decision
            while len(self._decisions) > REMEMBERED:
                self._decisions.popitem(last=False)
        return decision


def _rank(decision: Decision) -> tuple[bool, float]:
    return decision.open, decision.score if decision.open else decision.score - decision.threshold
