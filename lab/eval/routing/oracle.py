"""The ceiling of a router: the share of right answers if the right slot is active wherever it should be.

What is still wrong then is not the router's fault but what the slots hold. No strict bound: the slot speaks where
fitting meant it to and nowhere else, and a gate that also opens elsewhere can help; in crowded slots it sometimes does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.edits import Record
from wise.errors import ConfigError
from wise.lab.eval.prompting import Prompter, PromptRow, mean_over_records, select
from wise.lab.eval.quality import (
    FREE_GENERALIZATION,
    GENERALIZATION,
    RELIABILITY,
    Question,
    answered_right,
    question_of,
    wordings,
)
from wise.lab.eval.routing.scores import served
from wise.memory.sequences import Ids
from wise.memory.side_memory import NO_SLOT, Route, Router, SideMemory, SlotBank
from wise.memory.slot import COMPLETION
from wise.model import WiseModel
from wise.progress import Progress, silent
from wise.router.chat_template import NEVER
from wise.router.hybrid import Decision, HybridRouter
from wise.training.generation import greedy


class OracleRouter(Router):
    """Opens where it was told to, whatever the activation: for measuring only.

    It counts forwards, so it serves one call of `generate` on one left-padded batch, whose prompts are read in one
    forward and whose answers token by token. The last token of a prompt is place 0 of its answer.
    """

    slots: Tensor
    speaking: Tensor

    def __init__(self, slots: Tensor, speaking: Tensor) -> None:
        """slots `[rows]`; speaking `[rows, places]` bool: where each row's slot opens; nowhere behind that."""
        super().__init__()
        self.slots = slots
        self.speaking = speaking
        self.place = 0

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        """Raises ConfigError where the forwards are not those of one generation from a cache."""
        rows = len(self.slots)
        tokens, rest = divmod(len(activation), rows)
        if rest or (self.place and tokens != 1):
            raise ConfigError(
                f"{len(activation)} tokens in forward {self.place} of {rows} rows: the oracle follows one greedy "
                "generation with a cache, all prompts in the first forward and one token a row in each further one"
            )
        opened = torch.zeros(rows, tokens, dtype=torch.bool, device=activation.device)
        if self.place < self.speaking.shape[1]:
            opened[:, -1] = self.speaking[:, self.place]
        self.place += 1
        slot = torch.where(opened, self.slots.unsqueeze(1), NO_SLOT).flatten()
        score = opened.flatten().float()
        return Route(slot, score, torch.ones_like(score), bank(activation.to(bank.weights.dtype), slot))


@contextmanager
def consulting(model: WiseModel, router: Router) -> Iterator[PreTrainedModel]:
    """`router` decides over the slots in place, for the length of a `with` block; yields the model to ask."""
    before = served(model)
    model.layer.memory = SideMemory(before.bank, router.to(before.bank.weights.device))
    try:
        yield model.model
    finally:
        model.layer.memory = before


@dataclass(frozen=True, kw_only=True)
class SlotQuestion:
    """A question, and the slot that holds the answer wanted."""

    question: Question
    slot: int

    @property
    def order(self) -> tuple[int, int]:
        """As `greedy` orders what it is given, so that it leaves the rows of a batch in their places."""
        return len(self.question.ids), self.question.limit


class ForcedRouter(HybridRouter):
    """Takes every question for the one that the edit of a slot answers: the ceiling of any router.

    In plain text the answer begins at the end of each text that is read whole.
    """

    def __init__(self, router: HybridRouter, slot: int) -> None:
        Router.__init__(self)
        self.__dict__.update({k: v for k, v in vars(router).items() if k not in self.__dict__})
        self._decisions, self._lock = OrderedDict(), threading.Lock()
        self._decision = Decision(slot=slot, score=1.0, threshold=0.0)
        self._started: set[bytes] = set()
        """The texts at whose ends an answer begins."""

    def decide(self, question: str, before: str = "", turns: Sequence[str] = (), margin: float = 0.0) -> Decision:
        return self._decision

    def _decisions_of(self, ids: Ids, first: int) -> Iterator[tuple[int, Decision, int]]:
        """In plain text the answer that is under way; of several rows each has its own."""
        template = self.inputs.template
        if template is not None and template.start(ids) != NEVER:
            yield from super()._decisions_of(ids, first)
            return
        _, answer = self._answers(self._decision.slot)[COMPLETION]
        ends = range(max(0, len(ids) - 1 - len(answer)), len(ids))
        begins = [end for end in ends if ids[: end + 1].tobytes() in self._started]
        if not first and not begins:
            self._started.add(ids.tobytes())
            begins = [len(ids) - 1]
        yield from self.answer_places(ids, first, begins, NEVER, dict.fromkeys(begins, self._decision))


def measure_oracle(
    model: WiseModel, records: Sequence[Record], *, progress: Progress = silent
) -> dict[str, float | None]:
    """Reliability and both generalizations, as `measure_quality` defines them, with an oracle in the router's place;
    None where there is no prompt for a figure.

    The right edit's slot speaks at the last token of the prompt, and then wherever the base, given the target so far,
    would not go on with it: where it was fitted (`masked_dense_examples`). In `hybrid` it speaks for as long as what is
    said is a beginning of its answer, as it does there by itself. An edit that is not live has no slot, so it counts as
    wrong, as it does in what the ceiling stands beside.

    Raises ConfigError where no edit is live, and EditError for a prompt that does not fit the context.
    """
    prompter, router = Prompter(model, progress), served(model).router
    with model.evaluating():
        selected = select(model, records).tested
        live = slots_of(model)
        questions = [
            SlotQuestion(question=question_of(prompter, tested.record, measure, prompt), slot=slot)
            for tested in selected
            if (slot := live.get(tested.record.edit.id)) is not None
            for measure, prompt in wordings(tested)
        ]
        if isinstance(router, HybridRouter):
            right = _forced(prompter, model, questions, router)
        else:
            right = _at_places(prompter, model, questions)
    outcomes = [
        (q.question.measure, q.question.record.edit.id, float(hit)) for q, hit in zip(questions, right, strict=True)
    ]
    for tested in selected:
        record = tested.record.edit.id
        outcomes += [(measure, record, 0.0) for measure, _ in wordings(tested) if record not in live]
    return {
        measure: mean_over_records((record, right) for each, record, right in outcomes if each == measure)
        for measure in (RELIABILITY, GENERALIZATION, FREE_GENERALIZATION)
    }


def slots_of(model: WiseModel) -> dict[str, int]:
    """Live edit -> the slot that holds it."""
    return {edit_id: slot.id for slot in model.state.slots for edit_id in slot.edit_ids}


def _forced(
    prompter: Prompter, model: WiseModel, questions: Sequence[SlotQuestion], router: HybridRouter
) -> list[bool]:
    """Whether each question is answered rightly where every question is taken for the one that its slot answers."""

    def compute(_: PreTrainedModel, part: Sequence[SlotQuestion]) -> list[bool]:
        results = []
        for slot, group in groupby(part, lambda question: question.slot):
            results += _are_right(model, list(group), ForcedRouter(router, slot))
        return results

    return prompter.mapped("routing.oracle", questions, compute, lambda q: (q.slot, *q.order), base=False)


def _at_places(prompter: Prompter, model: WiseModel, questions: Sequence[SlotQuestion]) -> list[bool]:
    """Whether each question is answered rightly where its slot speaks at the places at which it must."""
    rows = [PromptRow(prompt=q.question.ids, fed=q.question.target) for q in questions]
    unaided = prompter.best("routing.oracle.unaided", rows, base=True)
    pairs = list(zip(questions, unaided, strict=True))

    def compute(_: PreTrainedModel, part: Sequence[tuple[SlotQuestion, list[int]]]) -> list[bool]:
        results = []
        for group in _together(part, model.encoder.context):
            alike = [question for question, _ in group]
            results += _are_right(model, alike, OracleRouter(torch.tensor([q.slot for q in alike]), _speaking(group)))
        return results

    return prompter.mapped("routing.oracle", pairs, compute, lambda item: item[0].order, base=False)


def _together(
    part: Sequence[tuple[SlotQuestion, list[int]]], context: int
) -> Iterator[Sequence[tuple[SlotQuestion, list[int]]]]:
    """What `greedy` answers in one call of `generate`: prompts of one length, of which no row leads another past the
    context."""
    for length, alike in groupby(part, lambda item: item[0].order[0]):
        group = list(alike)
        fits = length + max(q.question.limit for q, _ in group) <= context
        yield from [group] if fits else [[item] for item in group]


def _speaking(group: Sequence[tuple[SlotQuestion, list[int]]]) -> Tensor:
    """`[rows, places]` bool: where the slot of each row must speak."""
    result = torch.zeros(len(group), max(len(unaided) for _, unaided in group), dtype=torch.bool)
    for row, (q, unaided) in enumerate(group):
        places = speaking_places(q.question.target, unaided)
        result[row, : len(places)] = torch.tensor(places)
    return result


def speaking_places(target: Sequence[int], unaided: Sequence[int]) -> list[bool]:
    """Where the right slot must speak: first, and wherever the base says something else than the target's token."""
    return [place == 0 or answer != token for place, (answer, token) in enumerate(zip(unaided, target, strict=True))]


def _are_right(model: WiseModel, questions: Sequence[SlotQuestion], router: Router) -> list[bool]:
    prompts, limits = zip(*((q.question.ids, q.question.limit) for q in questions), strict=True)
    with consulting(model, router) as oracle:
        answers = greedy(oracle, prompts, stops=model.encoder.stops, max_new_tokens=limits)
    return [answered_right(model.encoder, q.question, a) for q, a in zip(questions, answers, strict=True)]
