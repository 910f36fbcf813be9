"""How well edits hold: reliability, generalization and locality, generated and teacher-forced.

Generated is what counts: the model decodes greedily to its own stop and its answer must be the target.
Teacher-forced feeds the gold tokens in and is measured beside it, because that is what papers report; it says
little about what a model will say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from reprlib import repr as shortened
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from wise.edits import Record
from wise.errors import EditError
from wise.memory.layer import execution_device
from wise.model import WiseModel
from wise.training.encoding import Encoder
from wise.training.generation import greedy
from wise.training.trainer import SPARE_TOKENS

RELIABILITY, GENERALIZATION, LOCALITY = MEASURES = ("reliability", "generalization", "locality")
"""The edit's prompt gives the target; unseen paraphrases do; what is beside it says what the base says."""
MAX_PROMPTS = 4
"""Paraphrases, and neighbours, of one record that are asked: the first ones."""
ANSWER_TOKENS = 32
"""Tokens that an answer to a neighbour may have."""
FINAL_PUNCTUATION = ".,;:!?"
BATCH = 32
"""Prompts at once."""

Progress = Callable[[int, int], None]
"""Called with the number of prompts that are through and the number of all."""


@dataclass(frozen=True, kw_only=True)
class PromptOutcome:
    """What one prompt gave."""

    record: str
    """Id of the record's edit."""
    measure: str
    """One of `MEASURES`."""
    prompt: str
    expected: str
    """The target; for locality what the base answers."""
    answer: str
    generated: float
    """1 where the answer is right, else 0. Right is: it stops by itself and is the target but for white space
    around it and punctuation at its end; for locality: token for token what the base generates."""
    teacher_forced: float
    """Share of places in the expected answer, those before it fed in, whose argmax is right: is the target's
    token, what ends the target left out; for locality: is what the base's argmax is there."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A figure is the mean over records of the mean over a record's prompts."""

    outcomes: tuple[PromptOutcome, ...]
    """Those of locality last."""

    @property
    def generated(self) -> dict[str, float | None]:
        """Measure -> figure in [0, 1], or None where no record has a prompt for it."""
        return {measure: self._mean(measure, lambda outcome: outcome.generated) for measure in MEASURES}

    @property
    def teacher_forced(self) -> dict[str, float | None]:
        """As `generated`."""
        return {measure: self._mean(measure, lambda outcome: outcome.teacher_forced) for measure in MEASURES}

    @property
    def counts(self) -> dict[str, int]:
        """Measure -> prompts asked for it."""
        return {measure: sum(o.measure == measure for o in self.outcomes) for measure in MEASURES}

    def to_dict(self) -> dict[str, Any]:
        """The figures, and the outcomes they are made of, ready for JSON."""
        return {
            "generated": self.generated,
            "teacher_forced": self.teacher_forced,
            "counts": self.counts,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    def _mean(self, measure: str, value: Callable[[PromptOutcome], float]) -> float | None:
        of_record: dict[str, list[float]] = defaultdict(list)
        for outcome in self.outcomes:
            if outcome.measure == measure:
                of_record[outcome.record].append(value(outcome))
        return fmean(map(fmean, of_record.values())) if of_record else None


@torch.no_grad()
def measure_quality(
    model: WiseModel,
    records: Sequence[Record],
    *,
    max_paraphrases: int = MAX_PROMPTS,
    max_neighbours: int = MAX_PROMPTS,
    progress: Progress | None = None,
) -> Quality:
    """Measures the edits of `records` on the model as it now is, edited or not.

    Generalization asks `Record.paraphrases` alone, and none that a live or measured edit was or may have been
    fitted on. Locality asks `Record.neighbours`, and none that asks for an edited fact, whose answer is meant
    to change. Where two records share a prompt the later edit is the wanted one, and only it is measured.

    Raises EditError, before anything is asked, for a prompt that does not fit the model's context.
    """
    fitted, edited = _used(model, records)
    about, beside = [], []
    for record in {record.edit.prompt: record for record in records}.values():
        paraphrases = [p for p in record.paraphrases if p not in fitted][:max_paraphrases]
        neighbours = [p for p in record.neighbours if p not in edited][:max_neighbours]
        about.append(_question(model, record, RELIABILITY, record.edit.prompt))
        about += [_question(model, record, GENERALIZATION, p) for p in paraphrases]
        beside += [_question(model, record, LOCALITY, p) for p in neighbours]
    asking = _Asking(model.encoder, 2 * len(about) + 4 * len(beside), progress)
    with model.evaluating():
        return Quality(outcomes=(*_ask_about(model, about, asking), *_ask_beside(model, beside, asking)))


@dataclass(frozen=True, kw_only=True)
class _Question:
    record: Record
    measure: str
    prompt: str
    ids: list[int]
    """The prompt."""
    limit: int
    """Tokens that the answer may have."""
    gold: list[int]
    """The target without what ends it; empty for locality."""


def _used(model: WiseModel, records: Sequence[Record]) -> tuple[set[str], set[str]]:
    """Prompts that fitting used; prompts that ask for an edited fact."""
    edits = [*model.edits, *(record.edit for record in records)]
    asked = {prompt for edit in edits for prompt in (edit.prompt, *edit.paraphrases)}
    beside = {prompt for edit in edits for prompt in edit.locality}
    tested = {p for record in records for p in (*record.paraphrases, *record.free_paraphrases)}
    return asked | beside, asked | tested


def _question(model: WiseModel, record: Record, measure: str, prompt: str) -> _Question:
    encoder = model.encoder
    ids = encoder.prompt(prompt)
    room = model.encoder.context - len(ids)
    if measure == LOCALITY:
        least, limit, gold = 1, ANSWER_TOKENS, []
    else:
        whole = encoder.target(prompt, record.edit.target)
        least, limit, gold = len(whole), len(whole) + SPARE_TOKENS, whole[: -len(encoder.terminator)]
    if room < least:
        raise EditError(
            f"{record.source or record.edit.id}: the prompt {shortened(prompt)} ({measure}) takes {len(ids)} "
            f"tokens, which leaves {room} of the context for an answer of {least}; shorten it or leave it out"
        )
    return _Question(
        record=record, measure=measure, prompt=prompt, ids=ids, limit=min(limit, room), gold=gold
    )


def _ask_about(model: WiseModel, questions: list[_Question], asking: _Asking) -> list[PromptOutcome]:
    """Prompts that must give the target."""
    encoder = model.encoder
    gold = [question.gold for question in questions]
    answers = asking.answers(model.model, questions)
    best = asking.argmax(model.model, questions, gold)
    outcomes = []
    for question, answer, tokens in zip(questions, answers, best, strict=True):
        target, said = question.record.edit.target, encoder.answer(answer)
        right = answer[-1] in encoder.stops and _plain(said) == _plain(target)
        outcomes.append(_outcome(question, target, said, right, tokens, question.gold))
    return outcomes


def _ask_beside(model: WiseModel, questions: list[_Question], asking: _Asking) -> list[PromptOutcome]:
    """Prompts that must give what the base gives."""
    encoder = model.encoder
    with model.disabled() as base:
        before = asking.answers(base, questions)
        before_best = asking.argmax(base, questions, before)
    after = asking.answers(model.model, questions)
    after_best = asking.argmax(model.model, questions, before)
    return [
        _outcome(question, encoder.answer(b), encoder.answer(a), a == b, a_best, b_best)
        for question, b, a, b_best, a_best in zip(
            questions, before, after, before_best, after_best, strict=True
        )
    ]


def _outcome(
    question: _Question, expected: str, answer: str, right: bool, best: list[int], wanted: list[int]
) -> PromptOutcome:
    return PromptOutcome(
        record=question.record.edit.id,
        measure=question.measure,
        prompt=question.prompt,
        expected=expected,
        answer=answer,
        generated=float(right),
        teacher_forced=fmean(float(a == b) for a, b in zip(best, wanted, strict=True)),
    )


def _plain(answer: str) -> str:
    return answer.strip().rstrip(FINAL_PUNCTUATION).rstrip()


class _Asking:
    """Asks questions in batches and counts how many are through."""

    def __init__(self, encoder: Encoder, total: int, progress: Progress | None) -> None:
        self.encoder = encoder
        self.total = total
        self.progress = progress
        self.done = 0

    def answers(self, model: PreTrainedModel, questions: Sequence[_Question]) -> list[list[int]]:
        """The greedy answer to each question."""
        answers: list[list[int]] = []
        for start in range(0, len(questions), BATCH):
            part = questions[start : start + BATCH]
            limits = [question.limit for question in part]
            answers += greedy(
                model, [question.ids for question in part], stops=self.encoder.stops, max_new_tokens=limits
            )
            self._through(len(part))
        return answers

    def argmax(
        self, model: PreTrainedModel, questions: Sequence[_Question], fed: Sequence[list[int]]
    ) -> list[list[int]]:
        """The most likely token at the place of each token of `fed`, which is read in after the prompt.

        Pads stand on the right, where no token of a causal model sees them, so that positions are those of
        the row alone in every architecture.
        """
        best: list[list[int]] = []
        for start in range(0, len(questions), BATCH):
            part = list(zip(questions, fed, strict=True))[start : start + BATCH]
            longest = max(len(question.ids) + len(tokens) for question, tokens in part)
            device = execution_device(model)
            ids = torch.zeros(len(part), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, (question, tokens) in enumerate(part):
                length = len(question.ids) + len(tokens)
                ids[row, :length] = torch.tensor([*question.ids, *tokens])
                mask[row, :length] = 1
            logits = model(ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            for (question, tokens), choice in zip(part, logits.argmax(-1).tolist(), strict=True):
                first = len(question.ids) - 1
                best.append(choice[first : first + len(tokens)])
            self._through(len(part))
        return best

    def _through(self, prompts: int) -> None:
        self.done += prompts
        if self.progress is not None:
            self.progress(self.done, self.total)
