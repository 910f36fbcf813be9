"""One value per edit, added where its prompt ends: found by gradient, many edits at once, each until it is fitted.

The value stands at one place, the prompt's last token; what comes after reads it through the layers above, so nothing
needs routing while an answer is decoded. It is fitted on the bare prompt, behind prefixes in the base's own words, and
behind unlike prompts as well: it is to say the target wherever it is put, since how a question is worded is the
router's business. That raises what it carries over to, most of all to free wordings.

Only the blocks above the edited one are run, on cached states (`wise.training.splice`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from wise.config import WiseConfig
from wise.edits import Edit
from wise.memory.context import ContextReader
from wise.memory.slot import Slot, ValueSlot
from wise.training.background import Background
from wise.training.encoding import OPENINGS, Encoder
from wise.training.evidence import observe
from wise.training.losses import edit_loss
from wise.training.splice import Rows, SplicedModel
from wise.training.writers.base import Progress, SlotTask, Written

LEARNING_RATE = 0.3
"""Of Adam, per step and coordinate, in units of the root mean square of the value projection's output."""
DECAY = 1e-3
"""Times the mean square of a value in those units, in nats."""
ENOUGH = 0.1
"""Loss, in nats per token and over all its rows, at which an edit is left."""
PREFIXED, FOREIGN = 1, 1
"""Prefixes, and unlike prompts, that a value is also fitted behind. More cost more and carry over no further."""


class ValueWriter:
    """Writes `ValueSlot`s, one edit each."""

    def __init__(
        self,
        spliced: SplicedModel,
        encoder: Encoder,
        background: Background,
        config: WiseConfig,
        reader: ContextReader,
    ) -> None:
        self.spliced = spliced
        self.encoder = encoder
        self.background = background
        self.config = config
        self.reader = reader

    def write(self, tasks: Sequence[SlotTask], progress: Progress | None = None) -> list[tuple[Slot, list[Written]]]:
        """See `Writer`. Raises ValueError for a slot of several edits, which this kind has not."""
        edits = [edit for task in tasks for edit in task.edits]
        if len(edits) != len(tasks):
            raise ValueError(f"{len(tasks)} slots for {len(edits)} edits: a value slot holds one")
        fit = _Fitting(self.spliced, self._examples(edits), self._unit(), self.config.max_steps).run(progress)
        keys = observe(self.spliced, self.reader, self.encoder, edits).keys(self.background)
        features = self.spliced.projection.in_features
        return [
            (
                ValueSlot(id=task.id, edit_ids=(edit.id,), value=fit.values[i], features=features),
                [Written(fitted=fit.fitted[i], steps=fit.steps[i], loss=fit.loss[i], keys=keys[i], score=1.0)],
            )
            for i, (task, edit) in enumerate(zip(tasks, edits, strict=True))
        ]

    def _unit(self) -> float:
        return float(self.background.scale / self.spliced.projection.out_features**0.5)

    def _examples(self, edits: Sequence[Edit]) -> _Examples:
        rows: list[tuple[list[int], list[int]]] = []
        owner: list[int] = []
        bare: list[bool] = []
        for i, edit in enumerate(edits):
            foreign = random.Random(f"{self.config.seed} {edit.id}").sample(OPENINGS, FOREIGN)
            behind = [f"{prefix} {edit.prompt}" for prefix in self.background.prefixes[:PREFIXED]]
            target = self.encoder.target(edit.prompt, edit.target)
            prompts = [self.encoder.prompt(text) for text in (edit.prompt, *edit.paraphrases, *behind, *foreign)]
            for n, prompt in enumerate(prompts):
                if n == 0 or len(prompt) + len(target) <= self.encoder.context:
                    rows.append((prompt, target))
                    owner.append(i)
                    bare.append(n == 0)
        return _Examples(rows=self.spliced.cache(rows), owner=torch.tensor(owner), bare=torch.tensor(bare))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Examples:
    rows: Rows
    owner: Tensor
    """`[rows]` int64: which edit each is of, ascending."""
    bare: Tensor
    """`[rows]` bool: it is the edit's own prompt, with nothing before it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    values: Tensor
    """`[edits, d]` float32 on the CPU."""
    fitted: list[bool]
    """The bare prompt's target is what the base decodes with the value in place."""
    steps: list[int]
    loss: list[float]


class _Fitting:
    """Adam on the values of all edits; what one does, no other sees."""

    def __init__(self, spliced: SplicedModel, examples: _Examples, unit: float, max_steps: int) -> None:
        self.spliced, self.examples, self.unit, self.max_steps = spliced, examples, unit, max_steps
        edits = int(examples.bare.sum())
        self.values = torch.zeros(edits, spliced.projection.out_features, device=spliced.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.values], lr=LEARNING_RATE)
        self.steps = torch.zeros(edits, dtype=torch.long)
        self.loss = torch.zeros(edits)
        self.fitted = torch.zeros(edits, dtype=torch.bool)

    def run(self, progress: Progress | None) -> _Fit:
        active = torch.ones(len(self.steps), dtype=torch.bool)
        for step in range(self.max_steps + 1):
            objective = self._look(active)
            unfinished = ~self.fitted | (self.loss > ENOUGH)
            if progress is not None:
                progress(int((~(active & unfinished)).sum()))
            goes_on = unfinished[active].to(objective.device)
            active = active & unfinished
            if step == self.max_steps or not bool(active.any()):
                break
            self._step(torch.autograd.grad(objective[goes_on].sum(), self.values)[0], active)
        return _Fit(
            values=(self.values.detach() * self.unit).cpu(),
            fitted=self.fitted.tolist(),
            steps=self.steps.tolist(),
            loss=self.loss.tolist(),
        )

    def _step(self, gradient: Tensor, active: Tensor) -> None:
        kept = self.values.detach().clone()
        self.values.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.values.copy_(torch.where(active[:, None].to(kept.device), self.values, kept))
        self.steps += active

    def _look(self, active: Tensor) -> Tensor:
        """What is to be made less, of each active edit, `[active]`; notes how far each is."""
        on = active[self.examples.owner]
        rows = self.examples.rows if bool(on.all()) else self.examples.rows.select(on.nonzero()[:, 0])
        place = active.cumsum(0) - 1
        owner = place[self.examples.owner[on]].to(self.values.device)
        values = self.values[active.to(self.values.device)]
        added = values[owner] * self.unit
        logits = self.spliced.logits(rows, lambda a: pad(added[:, None], (0, 0, 0, a.shape[1] - 1)))
        mean = added.new_zeros(len(values)).index_add(0, owner, edit_loss(logits, rows.labels))
        mean = mean / torch.bincount(owner, minlength=len(values))
        wrong = ((logits.argmax(-1) != rows.labels) & (rows.labels != -100)).any(-1).cpu()
        self.fitted[active] = ~wrong[self.examples.bare[on]]
        self.loss[active] = mean.detach().cpu()
        return mean + DECAY * values.square().mean(-1)
