"""One value per edit, added where its prompt ends: found by gradient, many edits at once, each until it is fitted.

The value stands at one place, the prompt's last token; what comes after reads it through the layers above, so that for
most edits nothing needs routing while an answer is decoded. An edit that does not come out right after `PATIENCE` steps
gets further values, at the tokens of its target that are still wrong. Values are fitted on the bare prompt, behind
prefixes in the base's own words, and behind unlike prompts as well: they are to say the target wherever they are put,
since how a question is worded is the router's business. That raises what they carry over to, most of all to free
wordings.

Only the blocks above the edited one are run, on cached states (`wise.training.splice`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
PATIENCE = 30
"""Steps after which an edit that is not right gets values at further places."""
PREFIXED, FOREIGN = 1, 1
"""Prefixes, and unlike prompts, that a value is also fitted behind. More cost more and carry over no further."""
APART, HIGHEST = 0.01, 0.99
"""How far an edit's relation floor lies above what must not reach it, and the highest that there is, so that rounding
does not shut the gate."""


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
        examples = self._examples(edits)
        fit = _Fitting(self.spliced, examples, self._unit(), self.config.max_steps).run(progress)
        first = observe(self.spliced, self.reader, self.encoder, edits).keys(self.background)
        bare = examples.own.activations
        features = self.spliced.projection.in_features
        written: list[tuple[Slot, list[Written]]] = []
        for i, (task, edit) in enumerate(zip(tasks, edits, strict=True)):
            places = fit.speaks[i].nonzero()[:, 0]
            keys = self._keys(first[i], bare[i][places[1:].to(bare.device)])
            slot = ValueSlot(
                id=task.id, edit_ids=(edit.id,), values=fit.values[i][places], places=places, features=features
            )
            floor = self._floor(examples, i, fit.speaks[i], keys)
            outcome = Written(fitted=fit.fitted[i], steps=fit.steps[i], loss=fit.loss[i], keys=keys, score=floor)
            written.append((slot, [outcome]))
        return written

    def _keys(self, first: Tensor, further: Tensor) -> Tensor:
        """The key of the prompt's end `[1, s + r]`, and those of activations at further places `[n, f]`."""
        relation = self.background.key_space.keys(further)
        subject = first[:, : first.shape[1] - relation.shape[1]].expand(len(relation), -1)
        return torch.cat([first, torch.cat([subject, relation], dim=1)])

    def _floor(self, examples: _Examples, edit: int, speaks: Tensor, keys: Tensor) -> float:
        """The relation floor above which no token of an edit's own prompt and answer lies at which it has no value."""
        own = examples.own
        width = own.context.shape[1]
        before = own.context[edit][own.mask[edit, :width].bool()]
        after = own.activations[edit][(own.labels[edit] != -100) & ~speaks.to(own.labels.device)]
        space = self.background.key_space
        relation = keys[:, keys.shape[1] - len(space.projection) :]
        near = space.keys(torch.cat([before, after])) @ relation.T
        reached = float(near.max()) if near.numel() else 0.0
        return min(max(space.floor(1), reached + APART), HIGHEST)

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
        cached, first = self.spliced.cache(rows), torch.tensor(bare)
        own = cached.select(first.nonzero()[:, 0].to(self.spliced.device))
        return _Examples(rows=cached, own=own, owner=torch.tensor(owner), bare=first)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Examples:
    rows: Rows
    own: Rows
    """The bare ones among them, in the order of the edits."""
    owner: Tensor
    """`[rows]` int64: which edit each is of, ascending."""
    bare: Tensor
    """`[rows]` bool: it is the edit's own prompt, with nothing before it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    values: Tensor
    """`[edits, targets, d]` float32 on the CPU, zero where none speaks."""
    speaks: Tensor
    """`[edits, targets]` bool: at which tokens of the answer there is a value."""
    fitted: list[bool]
    """The bare prompt's target is what the base decodes with the values in place."""
    steps: list[int]
    loss: list[float]


class _Fitting:
    """Adam on the values of all edits; what one does, no other sees."""

    def __init__(self, spliced: SplicedModel, examples: _Examples, unit: float, max_steps: int) -> None:
        self.spliced, self.examples, self.unit, self.max_steps = spliced, examples, unit, max_steps
        edits, targets = int(examples.bare.sum()), examples.rows.labels.shape[1]
        shape = (edits, targets, spliced.projection.out_features)
        self.values = torch.zeros(shape, device=spliced.device, requires_grad=True)
        self.speaks = torch.zeros(shape[:2], dtype=torch.bool, device=spliced.device)
        self.speaks[:, 0] = True
        self.wrong = self.speaks.clone()
        """Where the bare prompt's target is not what the base decodes."""
        self.optimizer = torch.optim.Adam([self.values], lr=LEARNING_RATE)
        self.steps = torch.zeros(edits, dtype=torch.long)
        self.loss = torch.zeros(edits)

    def run(self, progress: Progress | None) -> _Fit:
        active = torch.ones(len(self.steps), dtype=torch.bool)
        for step in range(self.max_steps + 1):
            objective = self._look(active)
            if step == PATIENCE:
                self.speaks |= self.wrong
            unfinished = self.wrong.any(-1).cpu() | (self.loss > ENOUGH)
            if progress is not None:
                progress(int((~(active & unfinished)).sum()))
            goes_on = unfinished[active].to(objective.device)
            active = active & unfinished
            if step == self.max_steps or not bool(active.any()):
                break
            self._step(torch.autograd.grad(objective[goes_on].sum(), self.values)[0], active)
        return _Fit(
            values=(self.values.detach() * self.unit * self.speaks[..., None]).cpu(),
            speaks=self.speaks.cpu(),
            fitted=(~self.wrong.any(-1)).tolist(),
            steps=self.steps.tolist(),
            loss=self.loss.tolist(),
        )

    def _step(self, gradient: Tensor, active: Tensor) -> None:
        kept = self.values.detach().clone()
        self.values.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.values.copy_(torch.where(active[:, None, None].to(kept.device), self.values, kept))
        self.steps += active

    def _look(self, active: Tensor) -> Tensor:
        """What is to be made less, of each active edit, `[active]`; notes how far each is."""
        on = active[self.examples.owner]
        rows = self.examples.rows if bool(on.all()) else self.examples.rows.select(on.nonzero()[:, 0])
        owner = (active.cumsum(0) - 1)[self.examples.owner[on]].to(self.values.device)
        here = active.to(self.values.device)
        values = self.values[here] * self.speaks[here][..., None]
        logits = self.spliced.logits(rows, lambda _: values[owner] * self.unit)
        mean = values.new_zeros(len(values)).index_add(0, owner, edit_loss(logits, rows.labels))
        mean = mean / torch.bincount(owner, minlength=len(values))
        wrong = (logits.argmax(-1) != rows.labels) & (rows.labels != -100)
        self.wrong[here] = wrong[self.examples.bare[on].to(wrong.device)]
        self.loss[active] = mean.detach().cpu()
        return mean + DECAY * values.square().mean(-1).sum(-1)
