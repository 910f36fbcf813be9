"""The writer of `hybrid`: it fits one vector for each token of an edit's answer.

The vectors are added to the output of one feed-forward layer at the tokens that predict the answer. They are fitted on
all wordings of the edit at once: fitted on one wording a vector works for 0.83 of the others, on several for 0.99
(SmolLM2). Only the blocks above the edited one are run, on cached states (`wise.training.splice`), for many edits at
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wise.config import WiseConfig
from wise.memory.slot import FORMS, AnswerSlot, Slot
from wise.training.generation import between_steps
from wise.training.splice import SplicedModel
from wise.training.wordings import Wording, Wordings
from wise.training.writers.answer_fitting import AnswerValues, Examples, ValueFitting
from wise.training.writers.base import EditsDone, FitResult, SlotResults, SlotTask, silent

ON_GPU, ON_CPU = 16, 4
"""Edits that are fitted in one batch. More take more memory and no less time."""
EFFORTS = ((1, 1.0), (3, 0.3))
"""Times `max_steps`, and times `answer_fitting.RATE`. An edit that fails is fitted again with the next effort."""


class AnswerWriter:
    """Writes slots of one edit each (`hybrid`)."""

    efforts = len(EFFORTS)

    def __init__(self, spliced: SplicedModel, wordings: Wordings, config: WiseConfig) -> None:
        self.spliced, self.wordings, self.config = spliced, wordings, config

    @property
    def at_once(self) -> int:
        return ON_CPU if self.spliced.device.type == "cpu" else ON_GPU

    def write(self, tasks: Sequence[SlotTask], progress: EditsDone = silent, effort: int = 0) -> SlotResults:
        """See `Writer`. Raises ValueError for a slot of several edits."""
        edits = [edit for task in tasks for edit in task.edits]
        if len(edits) != len(tasks):
            raise ValueError(f"{len(tasks)} slots for {len(edits)} edits: a slot of this kind holds one")
        written: dict[int, tuple[Slot, list[FitResult]]] = {}
        for part in self.parts(tasks):
            results = self._write([tasks[i] for i in part], progress, len(written), *EFFORTS[effort])
            written |= zip(part, results, strict=True)
        return [written[i] for i in range(len(edits))]

    def parts(self, tasks: Sequence[SlotTask]) -> list[list[int]]:
        """The places of the tasks that are fitted in one batch. What is written depends on who shares a batch."""
        edits = [task.edits[0] for task in tasks]
        lengths = [len(self.wordings.encoder.target(edit.prompt, edit.target)) for edit in edits]
        order = sorted(range(len(edits)), key=lambda i: lengths[i])  # answers of like length waste no padding
        return [order[start : start + self.at_once] for start in range(0, len(order), self.at_once)]

    def _write(
        self, tasks: Sequence[SlotTask], progress: EditsDone, before: int, longer: int, rate: float
    ) -> SlotResults:
        """before: edits that are written already, for `progress`."""
        edits = [task.edits[0] for task in tasks]
        further = [self.wordings.texts(edit) for edit in edits]
        wordings = [_answered_alike(self.wordings.of(edit, texts)) for edit, texts in zip(edits, further, strict=True)]
        parts = [(i, form) for i in range(len(edits)) for form in range(FORMS) if _of_form(wordings[i], form)]
        examples = self._examples([_of_form(wordings[i], form) for i, form in parts])
        unit = float(examples.own.outputs[:, 0].float().square().mean().sqrt())  # at the ends of the prompts
        values = AnswerValues(examples.own.activations, self.spliced.target_module.out_features, unit)
        steps = longer * self.config.max_steps
        fit = ValueFitting(self.spliced, examples, values, max_steps=steps, rate=rate).run(
            lambda done: progress(before + done * len(edits) // len(parts))
        )
        written: SlotResults = []
        for i, (edit, task) in enumerate(zip(edits, tasks, strict=True)):
            between_steps()
            forms = {form: n for n, (edit_of, form) in enumerate(parts) if edit_of == i}
            answers = {form: _of_form(wordings[i], form)[0].answer for form in sorted(forms)}
            slot = AnswerSlot(
                id=task.id,
                edit_ids=(edit.id,),
                values=torch.cat([values.of(forms[form], len(answer)) for form, answer in answers.items()]),
                ids=torch.tensor([i for answer in answers.values() for i in answer]),
                counts=torch.tensor([len(answers.get(form, ())) for form in range(FORMS)]),
                features=self.spliced.target_module.in_features,
            )
            keys = self.wordings.keys(edit)
            outcome = FitResult(
                fitted=all(fit.fitted[n] for n in forms.values()),
                steps=max(fit.steps[n] for n in forms.values()),
                loss=max(fit.loss[n] for n in forms.values()),
                keys=keys.half(),
                score=self.wordings.threshold(edit, keys),
                tried=f"{steps} steps behind {len(wordings[i])} wordings",
            )
            written.append((slot, [outcome]))
        return written

    def _examples(self, parts: Sequence[Sequence[Wording]]) -> Examples:
        cached = self.spliced.cache([(list(w.prompt), list(w.answer)) for part in parts for w in part])
        bare = torch.tensor([n == 0 for part in parts for n in range(len(part))])
        return Examples(
            rows=cached,
            own=cached.select(bare.nonzero()[:, 0]),
            owner=torch.tensor([i for i, part in enumerate(parts) for _ in part]),
            bare=bare,
        )


def _of_form(wordings: Sequence[Wording], form: int) -> list[Wording]:
    return [wording for wording in wordings if wording.form == form]


def _answered_alike(wordings: Sequence[Wording]) -> list[Wording]:
    """Those that are answered as the edit's own prompt is: a slot has one answer in each form."""
    answers = {wording.form: wording.answer for wording in reversed(wordings)}
    return [wording for wording in wordings if wording.answer == answers[wording.form]]
