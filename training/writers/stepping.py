"""Gradient steps on what many edits add, each until it comes out right, and where each of them adds it.

An edit begins at one place, its prompt's last token. Where its target does not come out right after `PATIENCE` steps,
it gets further places: the tokens of its target that are still wrong. A long target begins at all of its tokens: what
is said at one place does not carry that far, and most of them would come to it in the end, after many more steps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from wise.training.splice import Rows, SplicedModel
from wise.training.writers.base import Progress
from wise.training.writers.forms import Form

DECAY = 1e-3
"""Times the mean square of a value in units, in nats."""
ENOUGH = 0.1
"""Loss, in nats per token and over all its rows, at which an edit is left."""
WITHIN, STUCK = 8, 0.02
"""An edit that is right is left, too, where its loss fell by less than that share in so many steps: of rows that it
cannot bring to its target."""
PATIENCE = 20
"""Steps after which an edit that is not right gets further places."""
LONG = 10
"""Tokens, its end among them, from beyond which a target is long."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Cached rows of several edits."""

    rows: Rows
    own: Rows
    """The bare prompts among them, in the order of the edits."""
    owner: Tensor
    """`[rows]` int64: which edit each is of, ascending."""
    bare: Tensor
    """`[rows]` bool: it is the edit's own prompt, with nothing before it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stepped:
    """What became of each edit."""

    speaks: Tensor
    """`[edits, targets]` bool: at which tokens of the answer it adds something."""
    fitted: list[bool]
    """The bare prompt's target is what the base decodes with it in place."""
    steps: list[int]
    loss: list[float]


class Stepping:
    """Adam on the parameters of a form."""

    def __init__(
        self, spliced: SplicedModel, examples: Examples, form: Form, *, places: str, max_steps: int, rate: float
    ) -> None:
        """places: as in `WiseConfig`; max_steps: none at all only looks at what there is; rate: times the form's."""
        self.spliced, self.examples, self.form = spliced, examples, form
        self.places, self.max_steps = places, max_steps
        labelled = examples.own.labels != -100  # [edits, targets]
        self.speaks = labelled.clone()
        if places != "all":
            short = labelled.sum(-1) <= LONG if places == "needed" else torch.ones_like(labelled[:, 0])
            self.speaks[short, 1:] = False
        self.wrong = labelled
        """Where the bare prompt's target is not what the base decodes."""
        self.parameters = [parameter for parameter, _ in form.parameters]
        self.optimizer = torch.optim.Adam([{"params": [p], "lr": rate * own} for p, own in form.parameters])
        self.steps = torch.zeros(len(labelled), dtype=torch.long)
        self.loss = torch.zeros(len(labelled))

    def run(self, progress: Progress | None) -> Stepped:
        active = torch.ones(len(self.steps), dtype=torch.bool)
        losses: deque[Tensor] = deque(maxlen=WITHIN + 1)
        for step in range(self.max_steps + 1):
            objective = self._look(active)
            losses.append(self.loss.clone())
            if step == PATIENCE < self.max_steps and self.places == "needed":
                self.speaks |= self.wrong
            falls = len(losses) <= WITHIN or losses[0] - self.loss >= STUCK * losses[0]
            unfinished = self.wrong.any(-1).cpu() | ((self.loss > ENOUGH) & falls)
            if progress is not None:
                progress(int((~(active & unfinished)).sum()))
            goes_on = unfinished[active].to(objective.device)
            active = active & unfinished
            if step == self.max_steps or not bool(active.any()):
                break
            self._step(objective[goes_on].sum(), active)
        return Stepped(
            speaks=self.speaks.cpu(),
            fitted=(~self.wrong.any(-1)).tolist(),
            steps=self.steps.tolist(),
            loss=self.loss.tolist(),
        )

    def _step(self, objective: Tensor, active: Tensor) -> None:
        kept = [parameter.detach().clone() for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(objective, self.parameters), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        on = active.to(self.speaks.device)
        with torch.no_grad():
            for parameter, before in zip(self.parameters, kept, strict=True):
                parameter.copy_(torch.where(on.view(-1, *[1] * (parameter.ndim - 1)), parameter, before))
        self.steps += active

    def _look(self, active: Tensor) -> Tensor:
        """What is to be made less, of each active edit, `[active]`; notes how far each is."""
        on = active[self.examples.owner]
        rows = self.examples.rows if bool(on.all()) else self.examples.rows.select(on.nonzero()[:, 0])
        device = self.speaks.device
        edits = self.examples.owner[on].to(device)
        here = active.nonzero()[:, 0].to(device)
        owner = (active.cumsum(0) - 1).to(device)[edits]
        logits = self.spliced.labelled_logits(rows, lambda activation: self._added(edits, activation))
        labelled = rows.labels != -100
        row, labels = labelled.nonzero()[:, 0], rows.labels[labelled]
        # Each token counts as its row does, and each row of an edit alike.
        share = 1 / (labelled.sum(-1) * torch.bincount(owner, minlength=len(here))[owner])
        losses = cross_entropy(logits.float(), labels, reduction="none") * share[row]
        mean = losses.new_zeros(len(here)).index_add(0, owner[row], losses)
        wrong = labelled.masked_scatter(labelled, logits.argmax(-1) != labels)
        self.wrong[here] = wrong[self.examples.bare[on].to(device)]
        self.loss[active] = mean.detach().cpu()
        return mean + DECAY * self.form.size(here, self.speaks[here])

    def _added(self, edits: Tensor, activation: Tensor) -> Tensor:
        """`[rows, places, f]` of the edits `[rows]` -> `[rows, places, d]`."""
        speaks = self.speaks[edits]
        width = int(speaks.any(0).nonzero().max()) + 1
        added = self.form.delta(edits, activation[:, :width]) * speaks[:, :width, None]
        return pad(added, (0, 0, 0, activation.shape[1] - width))
