"""Gradient fitting of masked weights (`merge`, `retrieve`): many at once, until edits fit and negatives are quiet.

A group is one weight `[d, f]` behind one mask: a shard, or a merged slot. The side memory acts at few, known positions
whose activations are cached, so a routing score costs a small product. The upper blocks are run only for edits that are
not answered right yet. The objective (WISE, arXiv 2405.14768, equations 3 to 8) is

    L = L_edit + L_a
    L_edit = -log p_{W'}(y | x)
    L_a    = max(0, D(a_irr) - alpha) + max(0, beta - D(a_edit)) + max(0, gamma - (D(a_edit) - D(a_irr)))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, relu

from wise.config import WiseConfig
from wise.training.generation import between_steps
from wise.training.rows import Rows
from wise.training.splice import SplicedModel
from wise.training.writers.base import EditsDone, silent
from wise.training.writers.masked_dense_examples import BATCH, Examples

RECHECK = 6
"""Steps between checks of all edits: those that were fitted share weights with those that are not."""
HARDEST = 128
"""Silent tokens of each group that are trained on between two checks: the highest-scoring ones."""
MARGIN_KEPT = 0.9
"""Share of BETA that an edit's score must reach to count as fitted."""
QUIET = 0.8
"""A group is quiet when no silent token scores above this share of its lowest edit score."""
ALPHA, BETA, GAMMA = 0.25, 1.0, 0.5
"""Routing score that unrelated tokens stay under, the one that edited tokens reach, and the least distance between the
two, in units of the base's mean output norm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """Result of `Fitting.run`, in the order of the edits."""

    weights: Tensor
    """`[groups, d, f]`, zero outside the masks."""
    fitted: list[bool]
    steps: list[int]
    loss: list[float]


class Fitting:
    """Minimises the WISE objective over each group's weight, with Adam, for at most `config.max_steps` steps."""

    def __init__(
        self,
        spliced: SplicedModel,
        examples: Examples,
        start: Tensor,
        mask: Tensor,
        group: Tensor,
        scale: float,
        config: WiseConfig,
    ) -> None:
        """start, mask: `[groups, d, f]`. group: `[edits]` the group of each edit. scale: unit of the margins."""
        self.spliced = spliced
        self.examples = examples
        self.group = group  # what is counted stays on the CPU; what is multiplied is where the model is
        self.scale = scale
        self.config = config
        self.mask = mask
        self.weights = [w.clone().requires_grad_() for w in start]
        self.optimizer = torch.optim.Adam(self.weights, lr=config.learning_rate)
        count = len(group)
        self.steps = torch.zeros(count, dtype=torch.long)
        self.loss = torch.zeros(count)
        self.fitted = torch.zeros(count, dtype=torch.bool)
        self.quiet = torch.zeros(len(start), dtype=torch.bool)
        self.hardest: list[Tensor] = []

    def run(self, progress: EditsDone = silent) -> Fit:
        for step in range(self.config.max_steps):
            between_steps()
            if step % RECHECK == 0 or bool(self.fitted.all()):
                self.check()
                progress(int(self.fitted.sum()))
                if bool(self.fitted.all()) and bool(self.quiet.all()):
                    break
            self.step(step)
        else:
            self.check()
        return Fit(
            weights=torch.stack([self.effective(g) for g in range(len(self.weights))]).detach(),
            fitted=self.fitted.tolist(),
            steps=self.steps.tolist(),
            loss=self.loss.tolist(),
        )

    def effective(self, group: int) -> Tensor:
        """`[d, f]` what a group adds: its weight within its mask."""
        weight: Tensor = self.weights[group] * self.mask[group]
        return weight

    def step(self, number: int) -> None:
        """One update of every group that has an unfitted edit or is not quiet."""
        active = (~self.fitted).nonzero().squeeze(1)
        self.steps[active] += 1
        live = sorted({*self.group[active].tolist(), *(~self.quiet).nonzero().squeeze(1).tolist()})
        loss = torch.zeros((), device=self.spliced.device)
        if len(active):
            for edits, rows, speaking in self._variants(active, number):
                per_row, _ = self._edit_terms(rows, speaking, self.group[edits])
                loss = loss + per_row.sum()
        for g in live:
            members = int((self.group == g).sum())
            loss = loss + members * self._margin(g).to(loss.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.weights)  # type: ignore[no-untyped-call]  # the base's own gradients are not ours
        self.optimizer.step()

    def _variants(self, active: Tensor, number: int) -> Iterator[tuple[Tensor, Rows, Tensor]]:
        """Edits and rows to train on in this step: bare at even steps, each edit's next variation at odd ones."""
        examples = self.examples
        bare, varied = active, active[:0]
        if number % 2:
            has = torch.tensor([bool(examples.varied_of[e]) for e in active.tolist()])
            bare, varied = active[~has], active[has]
        if len(bare):
            yield bare, examples.bare.select(bare), examples.speaking[bare]
        if len(varied) and examples.varied is not None and examples.varied_speaking is not None:
            chosen = [examples.varied_of[e] for e in varied.tolist()]
            rows = torch.tensor([ours[number // 2 % len(ours)] for ours in chosen])
            yield varied, examples.varied.select(rows), examples.varied_speaking[rows]

    def _edit_terms(self, rows: Rows, speaking: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """L_edit per row, and the logits, with each row's own group speaking at its speaking positions."""
        owner = group[:, None].expand_as(speaking)[speaking]
        tokens = rows.activations[speaking].float()
        parts = torch.zeros(len(tokens), self.mask.shape[1], device=tokens.device)
        for g in torch.unique(owner).tolist():
            at = (owner == g).nonzero().squeeze(1)
            parts = parts.index_copy(0, at.to(parts.device), linear(tokens[at], self.effective(g)))
        added = torch.zeros(*speaking.shape, parts.shape[1], device=parts.device)
        added = added.index_put((speaking,), parts)
        logits = self.spliced.logits(rows, lambda activation: added.to(activation.dtype))
        return edit_loss(logits, rows.labels), logits

    def _margin(self, g: int) -> Tensor:
        """L_a of one group, in units of the scale."""
        weight, mine = self.effective(g), self.group == g
        spoken = self.examples.bare.activations[mine][self.examples.speaking[mine]].float()
        edited = score(linear(spoken, weight)) / self.scale
        unrelated = score(linear(self.hardest[g], weight)) / self.scale
        return margin_loss(edited, unrelated, low=ALPHA, high=BETA, gap=GAMMA)

    @torch.no_grad()
    def check(self) -> None:
        """Looks at every edit and every group as they now are."""
        examples = self.examples
        for part in torch.split(torch.arange(len(self.fitted)), BATCH):
            rows = examples.bare.select(part)
            terms = self._edit_terms(rows, examples.speaking[part], self.group[part])
            self.loss[part], logits = (term.cpu() for term in terms)
            labels = rows.labels.cpu()
            self.fitted[part] = ((logits.argmax(-1) == labels) | (labels == -100)).all(-1)
        self.hardest = []
        for g in range(len(self.weights)):
            weight = self.effective(g)
            edited = score(linear(examples.bare.activations[self.group == g].float(), weight)) / self.scale
            edited = edited.cpu().masked_fill(~examples.speaking[self.group == g], float("inf")).amin(-1)
            others = self._silent_tokens(g)
            silent = score(linear(others, weight)) / self.scale
            self.hardest.append(others[silent.topk(min(HARDEST, len(silent))).indices])
            self.fitted[self.group == g] &= edited >= MARGIN_KEPT * BETA
            lowest = float(edited.min()) if len(edited) else 0.0
            self.quiet[g] = not len(edited) or float(silent.max()) <= QUIET * lowest

    def _silent_tokens(self, g: int) -> Tensor:
        """`[n, f]` tokens on which a group must keep silent: its slot's, and where the slot's other shards speak."""
        slot = g // (len(self.weights) // len(self.examples.negatives))
        theirs = (self.examples.slot == slot) & (self.group != g)
        spoken = self.examples.bare.activations[theirs][self.examples.speaking[theirs]].float()
        return torch.cat([self.examples.negatives[slot], spoken])


def edit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_edit per row: mean negative log-likelihood of its target, in nats.

    logits `[rows, targets, vocabulary]`, labels `[rows, targets]` with -100 where padded -> `[rows]`.
    """
    loss = cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return loss.sum(-1) / (labels != -100).sum(-1)


def margin_loss(edited: Tensor, unrelated: Tensor, *, low: float, high: float, gap: float) -> Tensor:
    """L_a, each term a mean over its tokens.

    edited `[n]` and unrelated `[m]` are routing scores; low, high, gap are alpha, beta and gamma in the same
    unit. The third term compares every edited token with the highest-scoring unrelated one: a gate is opened
    by the worst token, not by the mean.
    """
    worst = unrelated.max()
    return relu(unrelated - low).mean() + relu(high - edited).mean() + relu(gap - (edited - worst)).mean()


def score(delta: Tensor) -> Tensor:
    """D with a gradient at zero: `[..., d] -> [...]`."""
    return torch.sqrt(delta.float().square().sum(-1) + 1e-12)
