"""The wordings of an edit: the texts on which it is fitted and verified, its keys, and its threshold (`hybrid`).

The wordings are the edit's prompt, its paraphrases, simple frames around them, and wordings of the nearest relation
that ships with wise. On a base with a chat template each is used as a turn of a chat and as plain text, on other bases
as plain text alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wise.config import PROMISES
from wise.edits import Edit
from wise.memory.slot import CHAT, COMPLETION
from wise.router.catalog import masked_keys, own_texts
from wise.router.chat_template import user_turn
from wise.router.hybrid import MAX_THRESHOLD
from wise.router.readers import RelationReader
from wise.router.relations import nearest_relation, rivals
from wise.router.sentences import is_question
from wise.router.subjects import names_of, without_names
from wise.training.encoding import Encoder
from wise.training.router.builtin_questions import QuestionSet
from wise.training.router.examples import put, relation_names, stated

PROMPT, LISTED, _ = PROMISES
MARGIN = 0.01
"""How far an edit's threshold lies above the score of its locality prompts."""
EARLIER_TURN = ("Hi! I have a few questions for you.", "Hello! Go ahead, I'm happy to help.")
SYSTEM_MESSAGE = {"role": "system", "content": "You are a helpful assistant."}
QUESTION_FRAMES = ("Please tell me: {}", "Hi! {} Thanks.", "I would like to know: {}")
PREFIX = "I like long walks by the sea. "
FROM_RELATION = 4
"""Questions that are taken from the nearest relation, at most."""
SISTERS = 6
"""Other questions about an edit's subject with which it is verified, at most."""
FORM_NAMES = {CHAT: "chat", COMPLETION: "completion"}


@dataclass(frozen=True, kw_only=True)
class Wording:
    """One way of asking for an edit."""

    label: str
    """Its name in reports: `prompt`, `paraphrases[0]`, `system message`, ..."""
    form: int
    """CHAT or COMPLETION."""
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    promised: str | None
    """The promise (`wise.config.PROMISES`) that this wording is answered with the target; None if it is only fitted."""

    @property
    def name(self) -> str:
        """Its form and label, for reports."""
        return f"{FORM_NAMES[self.form]}: {self.label}"


class Wordings:
    """Makes the wordings of edits for one base."""

    def __init__(self, encoder: Encoder, reader: RelationReader, questions: QuestionSet) -> None:
        self.encoder, self.reader, self.questions = encoder, reader, questions
        self._names = relation_names(questions)

    def texts(self, edit: Edit) -> list[str]:
        """Texts that ask the edit's question, from the nearest relation that ships."""
        nearest = self._nearest_relation(edit)
        if nearest is None:
            return []
        kind, relation = self._names[nearest]
        name = names_of(edit)[0]
        entry = self.questions[kind][relation]
        order, few = random.Random(f"{name} {relation}"), list[str]()
        for asks, count in ((True, FROM_RELATION), (False, FROM_RELATION // 2)):
            same_form = [wording for wording in entry["wordings"] if is_question(wording) == asks]
            few += order.sample(same_form, min(count, len(same_form)))
        return [put(name, wording) for wording in few]

    def keys(self, edit: Edit) -> Tensor:
        """`[k, r]` the vectors that questions are compared with.

        The first is the edit's whole prompt, for questions that name no subject. The others have the subject masked:
        the prompt, the prompt with its new answer, the edit's other texts, and the centre of the nearest relation. An
        edit without a subject has its own texts as they are.
        """
        texts = own_texts(edit)
        if not names_of(edit):
            return self.reader.read(texts)
        first, *more = (self._masked(edit, text) for text in texts)
        keys = self.reader.read([edit.prompt, first, stated(first, edit.target), *more])
        nearest = self._nearest_relation(edit)
        return keys if nearest is None else torch.cat([keys, self.reader.relation_centres[nearest][None]])

    def _nearest_relation(self, edit: Edit) -> int | None:
        """The relation nearest to the edit's prompt and answer; None without a subject, or without relations."""
        centres = self.reader.relation_centres
        if not names_of(edit) or not len(centres):
            return None
        return nearest_relation(self._relation_vectors(edit), centres)

    def _relation_vectors(self, edit: Edit) -> Tensor:
        """`[2, r]` of the edit's prompt, and of the prompt with the answer."""
        question = self._masked(edit, edit.prompt)
        return self.reader.read([question, stated(question, edit.target)])

    def threshold(self, edit: Edit, keys: Tensor) -> float:
        """Score from which a question asks for the edit: the reader's, or what its locality prompts do not reach."""
        least = self.reader.threshold if names_of(edit) else self.reader.nameless_threshold
        if not edit.locality:
            return least
        apart = self.reader.read([self._masked(edit, text) for text in edit.locality])
        reached = float((apart @ masked_keys(keys, names_of(edit)).T).max()) + MARGIN
        return min(max(least, reached), MAX_THRESHOLD)

    def sisters(self, edit: Edit) -> tuple[list[str], list[str]]:
        """Other questions about the edit's subject, one of each of the nearest rivals, in the form of its own question:
        those that must not move, and those of relations so near that the reader may take them for the edit's own.

        None without a subject, or if no relation is near enough to say what may be asked about it.
        """
        if not names_of(edit):
            return [], []
        vectors, centres = self._relation_vectors(edit), self.reader.relation_centres
        near_rivals = rivals(vectors, self.reader)
        if not len(near_rivals):
            return [], []
        near_rivals = near_rivals[(centres[near_rivals] @ vectors.T).amax(-1).argsort(descending=True)]
        near = (centres[near_rivals] @ centres[nearest_relation(vectors, centres)]) >= self.reader.threshold
        return self._questions(edit, near_rivals[~near]), self._questions(edit, near_rivals[near])

    def _questions(self, edit: Edit, relations: Tensor) -> list[str]:
        """A question of each of the first relations, but what the edit itself lists."""
        asks, wordings = is_question(edit.prompt), []
        for kind, name in (self._names[i] for i in relations[:SISTERS]):
            texts = self.questions[kind][name]["wordings"]
            wordings.append(put(names_of(edit)[0], next((t for t in texts if is_question(t) == asks), texts[0])))
        return [text for text in wordings if text not in (*edit.paraphrases, *edit.locality)]

    def _masked(self, edit: Edit, text: str) -> str:
        return without_names(text, names_of(edit))

    def prompt(self, text: str) -> list[int]:
        """Ids of a question as users ask it: as a turn of a chat, if the base has a template."""
        return self.encoder.prompt(text) if self.encoder.template is None else self.encoder.turn([user_turn(text)])

    def of(self, edit: Edit, further: Sequence[str]) -> list[Wording]:
        """All wordings of an edit; the first of each form is its own prompt."""
        return [*self._chat(edit, further), *self._completions(edit, further)]

    def _chat(self, edit: Edit, further: Sequence[str]) -> list[Wording]:
        if self.encoder.template is None:
            return []
        question = edit.prompt
        turns = [message._asdict() for message in edit.messages] or [user_turn(question)]
        answer = self.encoder.chat_target(edit.target)
        earlier = [user_turn(EARLIER_TURN[0]), {"role": "assistant", "content": EARLIER_TURN[1]}]
        wordings: list[tuple[str, list[dict[str, str]], str | None]] = [("prompt", turns, PROMPT)]
        if not edit.messages:
            wordings.append(("later turn", [*earlier, *turns], PROMPT))
        if not edit.messages and self._takes_system:
            wordings.append(("system message", [SYSTEM_MESSAGE, *turns], PROMPT))
        wordings += [(f"paraphrases[{i}]", [user_turn(text)], LISTED) for i, text in enumerate(edit.paraphrases)]
        texts = [text for text in further if is_question(text)]
        if is_question(question):
            texts = [*(frame.format(question) for frame in QUESTION_FRAMES), question.lower().rstrip("?"), *texts]
        wordings += [(text, [user_turn(text)], None) for text in texts]
        rows = ((label, self.encoder.turn(messages), answer, promised) for label, messages, promised in wordings)
        return self._fitting(CHAT, rows)

    @cached_property
    def _takes_system(self) -> bool:
        try:
            self.encoder.turn([SYSTEM_MESSAGE, user_turn(EARLIER_TURN[0])])
        except Exception:  # a template raises what it likes
            return False
        return True

    def _completions(self, edit: Edit, further: Sequence[str]) -> list[Wording]:
        question = edit.prompt
        wordings: list[tuple[str, str, str | None]] = [("prompt", question, PROMPT)]
        wordings += [(f"paraphrases[{i}]", text, LISTED) for i, text in enumerate(edit.paraphrases)]
        wordings.append(("behind a text", PREFIX + question, None))
        if is_question(question):
            wordings.append(("as an answer", f"Question: {question} Answer:", None))
        wordings += [(text, text, None) for text in further]
        encode, encode_target = self.encoder.prompt, self.encoder.target
        rows = (
            (label, encode(text), encode_target(text, edit.target), promised) for label, text, promised in wordings
        )
        return self._fitting(COMPLETION, rows)

    def _fitting(self, form: int, wordings: Iterable[tuple[str, list[int], list[int], str | None]]) -> list[Wording]:
        """Those that fit the context. One whose answer has other ids than that of the first is kept if the edit lists
        it: it is not fitted, and its verdict says whether it holds.

        wordings: label, prompt, answer and promise of each.
        """
        rows = [
            Wording(label=label, form=form, prompt=tuple(prompt), answer=tuple(answer), promised=promised)
            for label, prompt, answer, promised in wordings
        ]
        fitted = [w for w in rows if w.answer == rows[0].answer or w.promised == LISTED]
        return [w for w in fitted if len(w.prompt) + len(w.answer) <= self.encoder.context]
