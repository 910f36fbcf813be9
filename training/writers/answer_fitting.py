"""Gradient steps on the values of many edits at once, each until all of its wordings are answered right.

Only the wordings that still fail are run. When none of an edit is left, all of its wordings are checked once more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from wise.training.generation import between_steps
from wise.training.rows import Rows
from wise.training.splice import SplicedModel
from wise.training.writers.base import EditsDone

RATE = 3.0
"""Adam's, in units of the edited module's output. A higher one gives larger values, which serve more wordings."""
DECAY = 1e-3
"""Weight of the mean square of a value in the loss, in nats."""
ENOUGH = 0.05
"""Loss of a wording, in nats per token, at which it is done."""
WITHIN, STUCK = 12, 0.02
"""An edit whose own prompt is right is also done when its loss fell by less than this share in so many steps."""


class AnswerValues:
    """The vectors of many edits `[edits, tokens, d]`, scaled so that one learning rate fits every base."""

    def __init__(self, unit_rows: Tensor, features_out: int, unit: float) -> None:
        """unit_rows: `[edits, tokens, f]` activations of the edits' own prompts and answers."""
        self.unit = unit
        self.scaled = torch.zeros(*unit_rows.shape[:2], features_out, device=unit_rows.device, requires_grad=True)

    def delta(self, edits: Tensor, activation: Tensor) -> Tensor:
        """The vectors that are added in each row: edits `[rows]`, `[rows, tokens, f]` -> `[rows, tokens, d]`."""
        return self.scaled[edits.to(self.scaled.device), : activation.shape[1]] * self.unit

    def of(self, edit: int, count: int) -> Tensor:
        """`[count, d]` float32 on the CPU."""
        return (self.scaled.detach()[edit, :count] * self.unit).float().cpu().clone()

    def size(self, edits: Tensor) -> Tensor:
        """`[edits]` the sum over tokens of the mean square of a value, in units."""
        return self.scaled[edits.to(self.scaled.device)].square().mean(-1).sum(-1)


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


class ValueFit(NamedTuple):
    """The result of each edit."""

    fitted: list[bool]
    """The base decodes its answer after its own prompt."""
    steps: list[int]
    loss: list[float]


class ValueFitting:
    """Adam on the values of edits."""

    def __init__(
        self, spliced: SplicedModel, examples: Examples, values: AnswerValues, *, max_steps: int, rate: float
    ) -> None:
        """max_steps: 0 only checks the values as they are. rate: times `RATE`."""
        self.spliced, self.examples, self.values, self.max_steps = spliced, examples, values, max_steps
        count = len(examples.own)
        self.optimizer = torch.optim.Adam([values.scaled], lr=rate * RATE)
        self.wrong = torch.ones(len(examples.rows), dtype=torch.bool)
        self.row_loss = torch.full((len(examples.rows),), torch.inf)
        self.steps = torch.zeros(count, dtype=torch.long)

    def run(self, progress: EditsDone) -> ValueFit:
        owner, bare = self.examples.owner, self.examples.bare
        active = torch.ones(len(self.steps), dtype=torch.bool)
        losses: deque[Tensor] = deque(maxlen=WITHIN + 1)
        whole = active.clone()
        """Edits all of whose rows are checked in this step."""
        for step in range(self.max_steps + 1):
            between_steps()
            last = step == self.max_steps
            checked = active[owner] & (whole[owner] | self._failing() | last)
            objective = self._check(checked)
            losses.append(self._mean())
            yes, nowhere = torch.tensor(True), torch.zeros_like(active)
            failing = nowhere.index_put((owner[self._failing()],), yes)
            right = ~nowhere.index_put((owner[bare & self.wrong],), yes)
            falls = len(losses) <= WITHIN or losses[0] - losses[-1] >= STUCK * losses[0]
            done = (~failing & whole) | (right & ~torch.as_tensor(falls))
            progress(int((~active | done).sum()))
            whole = ~failing
            going = active & ~done
            if last or not bool(going.any()):
                break
            self._step(objective[going[active].to(objective.device)].sum(), going)
            active = going
        return ValueFit((~self.wrong[bare]).tolist(), self.steps.tolist(), self._mean().tolist())

    def _failing(self) -> Tensor:
        return self.wrong | (self.row_loss > ENOUGH)

    def _mean(self) -> Tensor:
        """`[edits]` the mean loss of each over its rows, as last checked."""
        owner = self.examples.owner
        return torch.zeros(len(self.steps)).index_add(0, owner, self.row_loss) / torch.bincount(owner)

    def _step(self, objective: Tensor, going: Tensor) -> None:
        values = self.values.scaled
        before = values.detach().clone()
        (values.grad,) = torch.autograd.grad(objective, [values])
        self.optimizer.step()
        with torch.no_grad():
            values.copy_(torch.where(going.to(values.device).view(-1, 1, 1), values, before))
        self.steps += going

    def _check(self, checked: Tensor) -> Tensor:
        """The objective of each edit that has rows among `checked`; records the loss of each row."""
        places = checked.nonzero()[:, 0]
        rows = self.examples.rows.select(places)
        edits, owner = torch.unique_consecutive(self.examples.owner[places], return_inverse=True)
        device = self.spliced.device
        owners = self.examples.owner[places]
        logits = self.spliced.labelled_logits(rows, lambda activation: self.values.delta(owners, activation))
        labelled = rows.labels != -100
        row, labels = labelled.nonzero()[:, 0], rows.labels[labelled]
        tokens = cross_entropy(logits.float(), labels, reduction="none")
        by_row = tokens.new_zeros(len(places)).index_add(0, row, tokens) / labelled.sum(-1)
        wrong = torch.zeros(len(places), device=device).index_add(0, row, (logits.argmax(-1) != labels).float())
        self.row_loss[places], self.wrong[places] = by_row.detach().cpu(), (wrong > 0).cpu()
        owner = owner.to(device)
        mean = by_row.new_zeros(len(edits)).index_add(0, owner, by_row) / torch.bincount(owner)
        return mean + DECAY * self.values.size(edits).to(device)
