"""What an edit adds where its prompt ends: a constant, or the output of a few neurons, for many edits at once.

It is added at one place, the prompt's last token; what comes after reads it through the layers above, so that for most
edits nothing needs routing while an answer is decoded. It is fitted on the bare prompt, behind prefixes in the base's
own words, and behind unlike prompts as well: it is to say the target wherever it is put, since how a question is worded
is the router's business. That raises what it carries over to, most of all to free wordings.

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
from wise.memory.key_space import APART, HIGHEST
from wise.memory.slot import RankOneSlot, Slot, ValueSlot
from wise.training.background import Background
from wise.training.baselines.ground import Row
from wise.training.baselines.values import ValueSettings
from wise.training.encoding import OPENINGS, Encoder
from wise.training.evidence import heard, observe
from wise.training.splice import Rows, SplicedModel
from wise.training.writers.base import Progress, SlotTask, Written
from wise.training.writers.closed_form import ClosedForm
from wise.training.writers.forms import NEURON_RATE, NEURONS, Constants, Form, Neurons
from wise.training.writers.stepping import ENOUGH, Examples, Stepping

CLAMP = 8.0
"""Norm of a value that is searched for in closed form, at most, in norms of the value projection's output."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is done for an edit. What does not come out right with one is written anew with the next."""

    steps: int
    """Times `max_steps`."""
    rate: float
    """Times that of the form."""
    prefixed: int
    """Prefixes that it is also fitted behind."""
    rank: int
    """Times `rank`."""
    everywhere: bool
    """At every token of the target, rather than where it is needed."""
    early: bool
    """It may speak where its prompt has not ended but asks already ("he speaks | the language"): most say their target
    all the same, and a floor that keeps it silent there shuts other wordings out."""


EFFORTS = (
    Effort(steps=1, rate=1.0, prefixed=1, rank=1, everywhere=False, early=True),
    Effort(steps=2, rate=0.2, prefixed=1, rank=2, everywhere=True, early=False),
    Effort(steps=4, rate=0.1, prefixed=3, rank=4, everywhere=True, early=False),
)


class ValueWriter:
    """Writes slots of one edit each, of the kind and in the way that the config says."""

    efforts = len(EFFORTS)

    def __init__(
        self,
        spliced: SplicedModel,
        encoder: Encoder,
        background: Background,
        config: WiseConfig,
        reader: ContextReader,
        closed_form: ClosedForm | None = None,
    ) -> None:
        """closed_form: for the writers of that name."""
        self.spliced = spliced
        self.encoder = encoder
        self.background = background
        self.config = config
        self.reader = reader
        self.closed_form = closed_form

    def write(
        self, tasks: Sequence[SlotTask], progress: Progress | None = None, effort: int = 0
    ) -> list[tuple[Slot, list[Written]]]:
        """See `Writer`. Raises ValueError for a slot of several edits, which these kinds have not."""
        edits = [edit for task in tasks for edit in task.edits]
        if len(edits) != len(tasks):
            raise ValueError(f"{len(tasks)} slots for {len(edits)} edits: a slot of this kind holds one")
        trying = EFFORTS[effort]
        rows = [self._rows(edit, trying.prefixed) for edit in edits]
        examples, vectors = self._examples(rows)
        form, searched = self._form(edits, rows, examples, self.config.rank * trying.rank)
        solved = self.config.writer == "closed-form" and not effort
        places = "all" if trying.everywhere and self.config.places == "needed" else self.config.places
        places = "first" if solved else places
        steps = 0 if solved else trying.steps * self.config.max_steps
        fit = Stepping(
            self.spliced, examples, form, places=places, max_steps=steps, rate=trying.rate
        ).run(progress)
        space, subject = self.background.key_space, self.background.subject_space
        surroundings = subject.surroundings if subject is not None else 0
        seen = observe(self.spliced, self.reader, self.encoder, edits, space.recent, surroundings)
        first, asks = seen.keys(self.background), space.asks(seen.relation)
        bare = vectors[:, examples.own.context.shape[1] :]
        written: list[tuple[Slot, list[Written]]] = []
        for i, (task, edit) in enumerate(zip(tasks, edits, strict=True)):
            spoken = fit.speaks[i].nonzero()[:, 0]
            keys = self._keys(first[i], bare[i][spoken[1:].to(bare.device)])
            near = self._near(examples.own, vectors[i], i, fit.speaks[i], keys, trying.early)
            gated, floors = self._floors(*near, float(asks[i]))
            slot = form.slot(i, spoken, id=task.id, edit_ids=(edit.id,), gated=gated, floors=floors)
            outcome = Written(
                fitted=fit.fitted[i],
                steps=searched[i] + fit.steps[i],
                loss=fit.loss[i],
                keys=keys,
                score=float(floors[0]),
                tried=self._tried(trying, steps, len(spoken)),
            )
            written.append((slot, [outcome]))
        return written

    def _form(
        self, edits: Sequence[Edit], rows: Sequence[list[Row]], examples: Examples, rank: int
    ) -> tuple[Form, list[int]]:
        """What is stepped on, and the steps that finding its start took."""
        own, size = examples.own.activations, self.spliced.projection.out_features
        if self.config.slot == ValueSlot.kind:
            return Constants(own, size, self._unit()), [0] * len(edits)
        start, searched = None, [0] * len(edits)
        rank = 1 if self.config.slot == RankOneSlot.kind else rank
        if self.closed_form is not None:
            settings = ValueSettings(
                steps=self.config.max_steps,
                learning_rate=NEURON_RATE,
                clamp=CLAMP,
                enough=ENOUGH,
                prefixes=max(len(each) for each in rows),
                seed=self.config.seed,
            )
            ends = examples.rows.activations[:, 0].float()
            activations = [ends[examples.owner == i] for i in range(len(edits))]
            start, searched = self.closed_form.start(rows, activations, settings, kind=self.config.slot, rank=rank)
        seeds = [f"{self.config.seed} {edit.id}" for edit in edits]
        kind = NEURONS[self.config.slot]
        return Neurons(own, size, self._unit(), kind=kind, rank=rank, seeds=seeds, start=start), searched

    def _tried(self, effort: Effort, steps: int, places: int) -> str:
        prefixed = min(effort.prefixed, len(self.background.prefixes))
        what = f"{steps} steps behind {prefixed} prefixes" if steps else "in closed form"
        of_rank = f", rank {self.config.rank * effort.rank}" if self.config.slot == "low-rank" else ""
        return f"{what} at {places} places{of_rank}"

    def _keys(self, first: Tensor, further: Tensor) -> Tensor:
        """The key of the prompt's end `[1, s + r]`, and those of vectors at further places `[n, f]`."""
        relation = self.background.key_space.keys(further)
        subject = first[:, : first.shape[1] - relation.shape[1]].expand(len(relation), -1)
        return torch.cat([first, torch.cat([subject, relation], dim=1)])

    def _near(
        self, own: Rows, vectors: Tensor, edit: int, speaks: Tensor, keys: Tensor, early: bool
    ) -> tuple[Tensor, Tensor]:
        """How near the keys come the tokens of an edit's prompt and answer at which it has no value, `[tokens, keys]`,
        and how surely a question ends at each.

        vectors: `[tokens, f]` of its row; early: leave its prompt out of account.
        """
        width = own.context.shape[1]
        after = (own.labels[edit] != -100) & ~speaks.to(own.labels.device)
        before = own.mask[edit, :width].bool() & (not early)
        space = self.background.key_space
        others = vectors[torch.cat([before, after])]
        return space.keys(others) @ keys[:, keys.shape[1] - len(space.projection) :].T, space.asks(others)

    def _floors(self, near: Tensor, asks: Tensor, end: float) -> tuple[Tensor, Tensor]:
        """Which keys are gated, and the floor of each, above which none of these tokens lies.

        The first is gated where its own prompt, at whose end a question ends with probability `end`, still reaches it.
        """
        gated = torch.zeros(near.shape[1], dtype=torch.bool)
        gated[0] = True
        floors = self._above(near * torch.where(gated, asks[:, None], 1))
        if end < floors[0] + APART:
            gated[0], floors = False, self._above(near)
        return gated, floors

    def _above(self, near: Tensor) -> Tensor:
        """`[tokens, keys] -> [keys]`"""
        reached = near.amax(0) if len(near) else near.new_zeros(near.shape[1])
        return (reached + APART).clamp(min=self.background.key_space.floor(1), max=HIGHEST)

    def _unit(self) -> float:
        return float(self.background.scale / self.spliced.projection.out_features**0.5)

    def _rows(self, edit: Edit, prefixed: int) -> list[Row]:
        """Prompt and target of an edit: alone, in its other wordings, behind prefixes, and behind unlike prompts."""
        foreign = random.Random(f"{self.config.seed} {edit.id}").sample(OPENINGS, self.config.unlike)
        behind = [f"{prefix} {edit.prompt}" for prefix in self.background.prefixes[:prefixed]]
        target = self.encoder.target(edit.prompt, edit.target)
        bare, *others = [self.encoder.prompt(text) for text in (edit.prompt, *edit.paraphrases, *behind, *foreign)]
        fitting = [prompt for prompt in others if len(prompt) + len(target) <= self.encoder.context]
        return [(prompt, target) for prompt in (bare, *fitting)]

    def _examples(self, rows: Sequence[list[Row]]) -> tuple[Examples, Tensor]:
        """With the vectors that questions are compared by at every token of the bare rows, `[edits, tokens, f]`."""
        cached = self.spliced.cache([row for own in rows for row in own])
        bare = torch.tensor([n == 0 for own in rows for n in range(len(own))])
        places = bare.nonzero()[:, 0].to(self.spliced.device)
        activations = torch.cat([cached.context, cached.activations], dim=1)
        vectors = heard(self.reader, activations, self.background.key_space.recent)[places]
        examples = Examples(
            rows=cached,
            own=cached.select(places),
            owner=torch.tensor([i for i, own in enumerate(rows) for _ in own]),
            bare=bare,
        )
        return examples, vectors
