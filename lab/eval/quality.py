"""Reliability, generalization, locality and the other figures of one edited model on one set of records.

Generated is what counts: the model decodes greedily to its own stop and its answer must be the target.
Teacher-forced feeds the gold tokens in and is measured beside it, because that is what papers report; it says
little about what a model will say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch

from wise.edits import Record
from wise.errors import EditError
from wise.lab.eval.fluency import measure_fluency, openings
from wise.lab.eval.perplexity import measure_perplexity
from wise.lab.eval.probability import measure_probability, pairs
from wise.lab.eval.probing import measure_probes
from wise.lab.eval.prompting import (
    EditedModel,
    Prompter,
    PromptOutcome,
    PromptRow,
    Selection,
    TestedRecord,
    mean_over_records,
    plain,
    select,
    share,
)
from wise.progress import Progress, silent
from wise.training.encoding import Encoder
from wise.training.verification import SPARE_TOKENS

RELIABILITY, GENERALIZATION, FREE_GENERALIZATION, LOCALITY = MEASURES = (
    "reliability", "generalization", "free_generalization", "locality"
)
"""The edit's prompt gives the target; unseen paraphrases do; freer wordings do; what is beside it says what the base
says."""
GOLD = "locality.gold"
ANSWER_TOKENS = 32
"""Tokens that an answer to a neighbour may have."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A figure is the mean over records of the mean over a record's prompts, None where nothing was asked for it."""

    outcomes: tuple[PromptOutcome, ...]
    """Those of `MEASURES`, locality last, and then those of probes."""
    counterfact: Mapping[str, Any] | None = None
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Kind -> figures, see `wise.lab.eval.probing.measure_probes`."""
    instances: Mapping[str, Any] = field(default_factory=lambda: {"edit_wise": None, "instance_wise": None, "n": 0})
    """MQuAKE's (Zhong et al. 2023). `edit_wise`: over records that belong to one of `n` groups, the share of edits that
    are recalled. `instance_wise`: over probes of `single_hops`, the share of cases of which all single facts are,
    unedited ones too; None without such probes."""
    fluency: Mapping[str, Any] | None = None
    perplexity: Mapping[str, Any] | None = None

    @property
    def generated(self) -> dict[str, float | None]:
        """Measure -> figure in [0, 1]."""
        return {measure: self._mean(measure, lambda outcome: outcome.generated) for measure in MEASURES}

    @property
    def teacher_forced(self) -> dict[str, float | None]:
        return {measure: self._mean(measure, lambda outcome: outcome.teacher_forced) for measure in MEASURES}

    @property
    def counts(self) -> dict[str, int]:
        """Measure -> prompts asked for it."""
        return {measure: sum(o.measure == measure for o in self.outcomes) for measure in MEASURES}

    @property
    def locality(self) -> dict[str, float | None]:
        """The three things that go by this name, which must never share a column: unchanged from the base; right by
        the known answer; and, of CounterFact, the true answer likelier than the new one."""
        gold = self.probes.get(GOLD, {})
        neighbourhood = self.counterfact["neighbourhood"] if self.counterfact is not None else {}
        return {
            "unchanged": self.generated[LOCALITY],
            "unchanged_teacher_forced": self.teacher_forced[LOCALITY],
            "gold_generated": gold.get("generated"),
            "gold_teacher_forced": gold.get("teacher_forced"),
            "neighbourhood_score": neighbourhood.get("score"),
        }

    def to_dict(self) -> dict[str, Any]:
        """The figures, and the outcomes they are made of, ready for JSON."""
        return {
            "generated": self.generated,
            "teacher_forced": self.teacher_forced,
            "counts": self.counts,
            "locality": self.locality,
            "counterfact": self.counterfact,
            "probes": {kind: dict(figures) for kind, figures in self.probes.items()},
            "instances": dict(self.instances),
            "fluency": self.fluency,
            "perplexity": self.perplexity,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    def _mean(self, measure: str, value: Callable[[PromptOutcome], float]) -> float | None:
        return mean_over_records((o.record, value(o)) for o in self.outcomes if o.measure == measure)


@torch.no_grad()
def measure_quality(
    model: EditedModel,
    records: Sequence[Record],
    *,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Quality:
    """Measures the edits of `records` on the model as it now is, edited or not, as `select` chooses what is asked.
    texts: running text for perplexity. seed: of the sampled text.

    Raises EditError, before anything is asked, for a prompt of an edit, paraphrase or neighbour that does not fit the
    model's context; ConfigError where the model gives NaN.
    """
    selection = select(model, records)
    prompter = Prompter(model, progress)
    about, beside = _questions(prompter, selection)
    compared = pairs(prompter, selection.tested)
    with model.evaluating():
        edits = _ask_about(prompter, about)
        outcomes = (*edits, *_ask_beside(prompter, beside))
        probes, probed = measure_probes(prompter, selection)
        return Quality(
            outcomes=(*outcomes, *probed),
            counterfact=measure_probability(prompter, compared),
            probes=probes,
            instances=_instances(records, edits, probes),
            fluency=measure_fluency(prompter, openings(prompter, selection.tested), seed=seed),
            perplexity=measure_perplexity(prompter, texts or ()),
        )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt of a record, as ids."""

    record: Record
    measure: str
    prompt: str
    ids: list[int]
    limit: int
    target: list[int]
    """The answer wanted, with what ends it; empty for locality."""


def wordings(tested: TestedRecord) -> list[tuple[str, str]]:
    """Measure, and prompt that must give the target."""
    prompts = {
        RELIABILITY: (tested.record.edit.prompt,),
        GENERALIZATION: tested.paraphrases,
        FREE_GENERALIZATION: tested.free_paraphrases,
    }
    return [(measure, prompt) for measure, texts in prompts.items() for prompt in texts]


def _questions(prompter: Prompter, selection: Selection) -> tuple[list[Question], list[Question]]:
    """Prompts that must give the target, and prompts that must give what the base gives."""
    about, beside = [], []
    for tested in selection.tested:
        try:
            prompter.encoder.check(tested.record.edit)
        except EditError as error:
            raise EditError(f"{tested.record.source or tested.record.edit.id}: {error}") from None
        about += [question_of(prompter, tested.record, measure, prompt) for measure, prompt in wordings(tested)]
        beside += [question_of(prompter, tested.record, LOCALITY, p) for p in tested.neighbours]
    return about, beside


def question_of(prompter: Prompter, record: Record, measure: str, prompt: str) -> Question:
    """Raises EditError for a prompt that leaves no room for its answer."""
    encoder = prompter.encoder
    ids = encoder.prompt(prompt)
    if measure == LOCALITY:
        target, limit = [], ANSWER_TOKENS
    else:
        target = encoder.target(prompt, record.edit.target)
        limit = len(target) + SPARE_TOKENS
    room = prompter.room(record, measure, prompt, ids, len(target) or 1)
    return Question(record=record, measure=measure, prompt=prompt, ids=ids, limit=min(limit, room), target=target)


def _ask_about(prompter: Prompter, questions: Sequence[Question]) -> list[PromptOutcome]:
    encoder = prompter.encoder
    gold = [encoder.answer_ids(question.prompt, question.record.edit.target) for question in questions]
    best = prompter.best("about", [PromptRow(prompt=q.ids, fed=ids) for q, ids in zip(questions, gold, strict=True)])
    answers = _answers(prompter, "about", questions)
    outcomes = []
    for question, answer, tokens, target in zip(questions, answers, best, gold, strict=True):
        right = answered_right(encoder, question, answer)
        outcomes.append(
            _outcome(question, question.record.edit.target, encoder.answer(answer), right, share(tokens, target))
        )
    return outcomes


def answered_right(encoder: Encoder, question: Question, answer: Sequence[int]) -> bool:
    """The answer stops by itself, and is the target but for white space around it and punctuation at its end."""
    return answer[-1] in encoder.stops and plain(encoder.answer(answer)) == plain(question.record.edit.target)


def _ask_beside(prompter: Prompter, questions: Sequence[Question]) -> list[PromptOutcome]:
    encoder = prompter.encoder
    before = _answers(prompter, LOCALITY, questions, base=True)
    rows = [PromptRow(prompt=q.ids, fed=answer) for q, answer in zip(questions, before, strict=True)]
    before_best = prompter.best(LOCALITY, rows, base=True)
    after_best = prompter.best(LOCALITY, rows)
    after = _answers(prompter, LOCALITY, questions)
    return [
        _outcome(question, encoder.answer(b), encoder.answer(a), a == b, share(a_best, b_best))
        for question, b, a, b_best, a_best in zip(questions, before, after, before_best, after_best, strict=True)
    ]


def _answers(prompter: Prompter, name: str, questions: Sequence[Question], *, base: bool = False) -> list[list[int]]:
    return prompter.answers(name, [q.ids for q in questions], [q.limit for q in questions], base=base)


def _outcome(question: Question, expected: str, answer: str, right: bool, agreement: float) -> PromptOutcome:
    return PromptOutcome(
        record=question.record.edit.id,
        measure=question.measure,
        prompt=question.prompt,
        expected=expected,
        answer=answer,
        generated=float(right),
        teacher_forced=agreement,
    )


def _instances(
    records: Sequence[Record], outcomes: Sequence[PromptOutcome], probes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Of an edit that a later one of its prompt took the place of, nothing is wanted, unless both say the same."""
    recalled = {o.prompt: (o.expected, o.generated) for o in outcomes if o.measure == RELIABILITY}
    groups: dict[str, list[float]] = defaultdict(list)
    for record in records:
        target, right = recalled[record.edit.prompt]
        if record.group and record.edit.target == target:
            groups[record.group].append(right)
    edits = [right for group in groups.values() for right in group]
    return {
        "edit_wise": fmean(edits) if edits else None,
        "instance_wise": probes.get("single_hops", {}).get("generated"),
        "n": len(groups),
    }
