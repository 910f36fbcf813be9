"""The hybrid router: an edit is active where the text asks its question about its subject, until its answer is said.

1. *Which edits are candidates?* Those whose subject the text names (`wise.router.subjects`). If it names none, those
   whose whole question is very close, found among all keys with FAISS, unless another name stands in the subject's
   place; of edits without a subject, the close ones in any case.
2. *Does the text ask the edit's question?* The relation reader's vector of the text is compared with the edit's keys
   (`wise.router.readers`), and with what else may be asked about its subject (`wise.router.relations`).
3. *Where does the answer begin?* At the end of the user's turn in a chat (`wise.router.chat_template`). In plain text,
   at the end of a question, and where an unfinished sentence that names the subject expects its answer
   (`wise.router.sentences`).
4. *How long is the edit active?* While the tokens generated since are a prefix of its answer.

A decision is a function of the token ids up to a token, so a sequence is routed the same way however it is generated:
in batches, in chunks, with caches or without, in any thread. The cost of a text that names no edited subject does not
depend on the number of edits.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wise.memory.sequences import Ids, SequenceReader
from wise.memory.side_memory import NO_SLOT, Evidence, Route, Router, SlotBank
from wise.memory.slot import CHAT, COMPLETION, AnswerBank, AnswerSlot
from wise.memory.state import MemoryState
from wise.router.catalog import catalog_of, masked_keys, own_vectors, whole_keys
from wise.router.chat_template import NEVER, ChatTemplate
from wise.router.endings import endings
from wise.router.readers import RelationReader
from wise.router.relations import RIVAL_MARGIN, rivals
from wise.router.sentences import (
    expects,
    is_finished,
    is_question,
    last_sentence,
    last_word,
    names_subject,
    passage,
    refers_back,
)
from wise.router.subjects import Mention, beginnings, masked, names_another, names_of, words

REMEMBERED = 4096
"""Decisions that a router keeps."""
WINDOW = 128
"""Tokens of plain text that are read before a position."""
NEAREST = 8
"""Edits that are compared if no subject is named."""
MAX_THRESHOLD = 0.98
"""The highest threshold that an edit's own question still reaches, since keys are stored in half precision."""
UNCLEAR_MARGIN = 0.1
"""Added to the threshold of a sentence at a position where it is not clear that an answer is expected."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RouterInputs:
    """What the router of one wrapped model reads."""

    sequences: SequenceReader | None
    """None where another engine runs the model and follows each sequence by itself (`wise.router.course`)."""
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    reader: RelationReader


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The edit that fits one question best, and whether the question asks for it."""

    slot: int
    """Of the edit with the best score, active or not; NO_SLOT if no edit was compared."""
    score: float
    """Cosine of the question to the nearest of its keys."""
    threshold: float
    """Score from which that edit is active."""

    @property
    def open(self) -> bool:
        return self.slot != NO_SLOT and self.score >= self.threshold


NOTHING = Decision(slot=NO_SLOT, score=0.0, threshold=float("inf"))


class HybridRouter(Router):
    """Routes for one state. Decisions are cached; all else is read-only."""

    def __init__(self, state: MemoryState, inputs: RouterInputs) -> None:
        super().__init__()
        self.inputs = inputs
        self._state = state
        self._catalog = catalog_of(state)
        # On a base without a chat template plain text is the only way to ask, so it is as likely to ask as a question.
        margin = inputs.reader.sentence_threshold - inputs.reader.threshold if inputs.template is not None else 0.0
        self._sentence_margin = max(0.0, margin)
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
        slots, scores, thresholds = (torch.as_tensor(part, device=device) for part in (slot, score, threshold))
        route = Route(slots, scores, thresholds, None)
        is_open = value != NO_SLOT
        if not is_open.any() or not isinstance(bank, AnswerBank):
            return route
        return route._replace(delta=bank.chosen(np.where(is_open, slot, NO_SLOT).tolist(), value.tolist()))

    def evidence(self, activation: Tensor, bank: SlotBank) -> Evidence:
        """The score, scaled so that 0 is 0, the threshold is 1, and a score of 1 is 2."""
        route = self(activation, bank)
        score, threshold = route.score, route.threshold
        above = 1 + (score - threshold) / (1 - threshold).clamp(min=1e-3)
        value = torch.where(route.open, above, (score / threshold).clamp(min=0, max=1))
        return Evidence.of(route, value, route.slot, torch.full_like(route.slot, -1))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _routes(self, size: int) -> tuple[Ids, Ids, np.ndarray, np.ndarray]:
        """For each token of the forward pass: the slot's value that is added, the slot, its score and threshold."""
        if self.inputs.sequences is None:
            raise RuntimeError("this router follows the sequences of another engine, which reads no activations")
        rows = self.inputs.sequences.rows
        if rows.size != size:
            raise RuntimeError(f"{size} tokens reach the side memory and {rows.size} were read")
        value, slot = np.full(size, NO_SLOT, dtype=np.int64), np.full(size, NO_SLOT, dtype=np.int64)
        score, threshold = np.zeros(size, dtype=np.float32), np.full(size, np.inf, dtype=np.float32)
        for ids, places in zip(rows.ids, rows.places, strict=True):
            first = len(ids) - len(places)
            for place, decision, added in self._decisions_of(ids, first):
                at = places[place - first]
                slot[at], score[at], threshold[at] = decision.slot, decision.score, decision.threshold
                value[at] = added
        return value, slot, score, threshold

    def _decisions_of(self, ids: Ids, first: int) -> Iterator[tuple[int, Decision, int]]:
        """Position, decision and value added, of the tokens of a row from `first` on at which a decision was made.

        Whether an answer begins depends on those before it, which may reach it. So they are followed from a token on
        that no earlier one reaches.
        """
        decisions: dict[int, Decision | None] = {}
        start, longest = first, self._catalog.longest
        chat, begins = self.begins(ids, max(0, first - longest))
        while True:
            across = (begin for begin in begins if begin < start <= self._reach(ids, begin, chat, decisions))
            earlier = next(across, None)
            if earlier is None:
                break
            start = earlier
            begins = [*self.begins(ids[:start], max(0, start - longest))[1], *(b for b in begins if b >= start)]
        yield from self.answer_places(ids, first, [begin for begin in begins if begin >= start], chat, decisions)

    def _reach(self, ids: Ids, begin: int, chat: int, decisions: dict[int, Decision | None]) -> int:
        """The last token to which the answer that may begin behind `begin` is added; -1 if none begins there."""
        decision = self._known_at(ids, begin, chat, decisions)
        if decision is None or not decision.open:
            return -1
        return begin + _matching_length(ids, begin, self._answers(decision.slot)[_form(begin, chat)][1]) - 1

    def _known_at(self, ids: Ids, begin: int, chat: int, decisions: dict[int, Decision | None]) -> Decision | None:
        """The decision at a position where an answer may begin; None in plain text that asks nothing there."""
        if begin not in decisions:
            decided = self._turn if _form(begin, chat) == CHAT else self._completion
            decisions[begin] = decided(ids, begin)
        return decisions[begin]

    def begins(self, ids: Ids, first: int) -> tuple[int, Sequence[int]]:
        """The token from which on a sequence is a chat (`ChatTemplate.start`), and the positions from `first` on behind
        which an answer may begin, ascending. `answer_places` decides about them."""
        template = self.inputs.template
        chat = NEVER if template is None else template.start(ids)
        openings = [] if template is None or chat == NEVER else template.openings(ids, max(first, chat))
        stop = min(chat, len(ids))
        if first >= stop or not self._may_ask(self._text(ids[max(0, first - WINDOW) : stop]), at_end=stop - first == 1):
            return chat, openings
        return chat, [*range(first, stop), *openings]

    def is_quiet(self, ids: Ids) -> bool:
        """True if no answer can begin at these tokens, given that none could at the token before."""
        return not self._endings[np.minimum(ids, len(self._endings) - 1)].any()

    @cached_property
    def _endings(self) -> np.ndarray:
        """`[vocabulary + 1]` bool: see `wise.router.endings`; also the tokens that end a part of the chat template."""
        ends = [*self._catalog.subjects.ends, *self._catalog.unmarked_ends]
        is_end = endings(self.inputs.tokenizer).of(ends, closing=bool(self._catalog.finished))
        template = self.inputs.template
        for part in () if template is None else (template.header, template.opening, template.system):
            is_end[list(part[-1:])] = True
        return is_end

    def answer_places(
        self,
        ids: Ids,
        first: int,
        begins: Iterable[int],
        chat: int,
        decisions: dict[int, Decision | None] | None = None,
    ) -> Iterator[tuple[int, Decision, int]]:
        """Position, decision and value added, or NO_SLOT, of the tokens from `first` on that the answers which begin at
        `begins` reach. No answer begins within another one, so nothing is decided there.

        chat: see `begins`. decisions: those made earlier, by position; new ones are added.
        """
        decisions = {} if decisions is None else decisions
        reached = -1  # the last token to which an answer is added
        for begin in begins:
            if begin <= reached:
                continue
            decision = self._known_at(ids, begin, chat, decisions)
            if decision is None:
                continue
            if not decision.open:
                if begin >= first:
                    yield begin, decision, NO_SLOT
                continue
            start, answer = self._answers(decision.slot)[_form(begin, chat)]
            # `begin` may lie behind what is read
            reached = min(begin + _matching_length(ids, begin, answer), len(ids)) - 1
            for place in range(max(begin, first), reached + 1):
                yield place, decision, start + place - begin

    # -- what is asked ----------------------------------------------------------------------------

    def _turn(self, ids: Ids, end: int) -> Decision:
        key = hashlib.blake2b(ids[: end + 1].tobytes(), digest_size=16).digest()

        def decide() -> Decision:
            template = self.inputs.template
            if template is None:
                raise RuntimeError("there is no chat template")
            start, stop = template.question(ids, end)
            earlier = [slice(*template.question(ids, opening)) for opening in template.openings(ids[:start], 0)]
            turns = [self._text(ids[turn]) for turn in earlier]
            return self.decide(self._text(ids[start:stop]), before=self._text(ids[:start]), turns=turns)

        return self._cached(key, decide)

    def _may_ask(self, text: str, *, at_end: bool) -> bool:
        """Whether plain text can ask for an edit anywhere, or else at its end: it names an edited subject, is a
        question, or ends as a prompt does. Anywhere may be within a word, which a later token goes on."""
        text_words, subjects, ends = words(text), self._catalog.subjects, self._catalog.unmarked_ends
        finished = self._catalog.finished_ends
        if subjects.among(text_words) or any(word.text in finished for word in text_words):
            return True
        if at_end:
            return is_question(text) or self._ends_a_prompt(text)
        has_question = "?" in text or "？" in text or subjects.cut_among(text_words)
        return has_question or any(part in ends for word in text_words for part in (word.text, *beginnings(word)))

    def _completion(self, ids: Ids, end: int) -> Decision | None:
        """The decision about plain text up to `end`; None if no answer may begin there."""
        start = max(0, end + 1 - WINDOW)
        text = self._text(ids[start : end + 1])
        cut = words(text)[:1] if start else []  # it may be the end of a longer word, and is then no name
        text = text[cut[0].end :] if cut else text
        if self._catalog.finished and is_finished(text):  # most of it asks nothing, so it asks in an edit's own words
            edit_id = self._catalog.finished_by(text, whole=not start)
            return None if edit_id is None else Decision(slot=self._catalog.slots[edit_id], score=1.0, threshold=1.0)
        asked_text = passage(text, self._catalog.subjects.mentions)
        if asked_text is None:
            return None
        key = hashlib.blake2b(asked_text.encode(), digest_size=15).digest()
        decision = self._cached(key, lambda: self._completed(asked_text))
        return None if decision is NOTHING else decision

    def _completed(self, asked_text: str) -> Decision:
        """The same for a passage that is not cached. On a base with a chat template an unfinished sentence has a higher
        threshold than a question. On any base the threshold is higher where it is not clear that an answer is expected.
        """
        if is_question(asked_text) or self._ends_a_prompt(asked_text):
            return self.decide(asked_text)
        mentions = self._catalog.subjects.mentions(asked_text)
        expected = expects(asked_text, self._catalog.ends) if mentions else False
        if expected is None and max(mention.end for mention in mentions) >= len(asked_text):
            expected = False  # no answer follows a name, except where a name ends the edit's own sentence
        if expected is False:
            return NOTHING
        return self.decide(asked_text, margin=self._sentence_margin + (0.0 if expected else UNCLEAR_MARGIN))

    def _ends_a_prompt(self, asked_text: str) -> bool:
        return last_word(asked_text) in self._catalog.unmarked_ends

    def decide(self, question: str, before: str = "", turns: Sequence[str] = (), margin: float = 0.0) -> Decision:
        """The edit that a question asks for.

        before: the conversation so far; `turns`: the user's in it. If the question names no subject, it is about that
        of the last turn that names one, edited or not; if none does, about the last edited one of the conversation.
        margin: added to the thresholds, up to `MAX_THRESHOLD`.
        """
        texts = self._masked_questions(question)
        if not texts and before and refers_back(question):
            mentions = self._catalog.subjects.mentions
            last = next((turn for turn in reversed(turns) if mentions(turn) or names_subject(turn)), before)
            texts = {slot: question for mention in mentions(last)[-1:] for slot in self._slots_named(mention)}
        ends = {text: last_sentence(text) for text in texts.values()}
        read = list(dict.fromkeys((question, *ends, *ends.values())))
        vectors = dict(zip(read, self.inputs.reader.read(read), strict=True))
        best = NOTHING
        for slot, text in texts.items():
            question_vectors = torch.stack([vectors[text], vectors[ends[text]]])
            keys, names = self._keys_and_names(slot)
            threshold, rival = self._state.slots[slot].threshold, self._rivals_score(keys, question_vectors)
            least = max(_raised(threshold, margin), rival - RIVAL_MARGIN)
            best = self._better(best, slot, masked_keys(keys, names), question_vectors, least)
        if best.open or (texts and not self._catalog.nameless):
            return best
        for edit_id in self._catalog.nearest(vectors[question], NEAREST):
            slot = self._catalog.slots[edit_id]
            keys, names = self._keys_and_names(slot)
            if not (texts and names):  # what names an edited subject is not about another one
                question_vectors, least = vectors[question][None], _raised(self.unnamed_threshold(slot), margin)
                better = self._better(best, slot, whole_keys(keys, names), question_vectors, least)
                if not (better.open and names and names_another(question, self._catalog.edits[edit_id].prompt, names)):
                    best = better
        return best

    def _rivals_score(self, keys: Tensor, question_vectors: Tensor) -> float:
        """The best cosine of a question, `[n, r]`, to the rivals of an edit with these keys; -1 without any."""
        reader = self.inputs.reader
        with torch.autocast("cpu", enabled=False):
            places = rivals(own_vectors(keys), reader)
            return float((reader.relation_centres[places] @ question_vectors.T).max()) if len(places) else -1.0

    def unnamed_threshold(self, slot: int) -> float:
        """Score from which a question that does not name a subject asks for the edit of a slot."""
        threshold = self._state.slots[slot].threshold
        return max(threshold, self.inputs.reader.unnamed_threshold) if self._keys_and_names(slot)[1] else threshold

    def _slots_named(self, mention: Mention) -> list[int]:
        return sorted(self._catalog.slots[edit_id] for edit_id in self._catalog.subjects.owners(mention))

    def _keys_and_names(self, slot: int) -> tuple[Tensor, tuple[str, ...]]:
        edit_id = self._state.slots[slot].edit_ids[0]
        return self._state.keys[edit_id], names_of(self._catalog.edits[edit_id])

    def _answers(self, slot: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
        answer_slot = self._state.slots[slot]
        if not isinstance(answer_slot, AnswerSlot):
            raise RuntimeError(f"slot {slot} is of kind {answer_slot.kind!r}, which has no answers")
        return answer_slot.answers

    def _masked_questions(self, question: str) -> dict[int, str]:
        owned: dict[int, tuple[Mention, ...]] = {}
        for mention in self._catalog.subjects.mentions(question):
            for slot in self._slots_named(mention):
                owned[slot] = (*owned.get(slot, ()), mention)
        texts = {names: masked(question, names) for names in {*owned.values()}}  # namesakes share them
        return {slot: texts[owner_names] for slot, owner_names in owned.items()}

    def _better(self, best: Decision, slot: int, keys: Tensor, vectors: Tensor, threshold: float) -> Decision:
        """The better of two decisions: an open one, with the higher score; else the one closer to its threshold."""
        with torch.autocast("cpu", enabled=False):
            score = float((keys.float() @ vectors.T).max())
        # In the precision of a route, so that it is open exactly where a decision is.
        decision = Decision(slot=slot, score=score, threshold=float(np.float32(threshold)))
        return decision if _rank(decision) > _rank(best) else best

    # -- for verifying and measuring --------------------------------------------------------------

    def decided(self, ids: Sequence[int]) -> Decision:
        """The decision at the last token of a sequence."""
        row = np.asarray(ids, dtype=np.int64)
        last = len(row) - 1
        return next((decision for place, decision, _ in self._decisions_of(row, last) if place == last), NOTHING)

    def active(self, ids: Sequence[int]) -> dict[int, int]:
        """The positions of a sequence at which an edit is active, ascending, and the slot of the edit."""
        decisions = self._decisions_of(np.asarray(ids, dtype=np.int64), 0)
        return {place: decision.slot for place, decision, value in decisions if value != NO_SLOT}

    def _text(self, ids: Ids) -> str:
        return str(self.inputs.tokenizer.decode(ids, skip_special_tokens=True))

    def _cached(self, key: bytes, decide: Callable[[], Decision]) -> Decision:
        with self._lock:
            decision = self._decisions.get(key)
        if decision is None:
            decision = decide()
            with self._lock:
                self._decisions[key] = decision
                while len(self._decisions) > REMEMBERED:
                    self._decisions.popitem(last=False)
        return decision


def _form(begin: int, chat: int) -> int:
    """The form of an answer that begins behind `begin`, in a sequence that is a chat from the token `chat` on."""
    return CHAT if begin >= chat else COMPLETION


def _matching_length(ids: Ids, begin: int, answer: Sequence[int]) -> int:
    """How many values of an answer are added from `begin` on: while the tokens behind it are a prefix of the answer."""
    if begin >= len(ids) or not answer:  # of a plan, and not read yet; or the edit has none in this form
        return 0
    count = 1
    while count < len(answer) and begin + count < len(ids) and ids[begin + count] == answer[count - 1]:
        count += 1
    return count


def _raised(threshold: float, margin: float) -> float:
    return max(threshold, min(threshold + margin, MAX_THRESHOLD))


def _rank(decision: Decision) -> tuple[bool, float]:
    return decision.open, decision.score if decision.open else decision.score - decision.threshold
