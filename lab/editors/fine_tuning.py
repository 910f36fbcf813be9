"""FT-L and FT-M: one value projection is fine-tuned on the edits.

FT-L: Meng et al. 2022 ("Locating and Editing Factual Associations in GPT", NeurIPS, arXiv 2202.05262, section 3.1
and appendix E.1), after Zhu et al. 2020 (arXiv 2012.00363, equation 1): Adam on one layer's second feed-forward
matrix, stopped early, under an L-infinity constraint on the change of the weights,

    min over W of  -log P_W[o* | x]   with   max |W - W_0| <= epsilon,

which is kept by projecting after every step. FT-M: Zhang et al. 2024 (arXiv 2401.01286, section 4.1; EasyEdit's
`objective_optimization: target_new`): the same optimiser on the cross-entropy of the target's tokens, read after the
prompt, the prompt masked, and no constraint.

FT-L's loss is the one of the released code, which the results of the field were made with: the logits at the prompt's
last token alone, averaged over all the tokens of the target. Of a target of one token that is its likelihood. One of
n unlike tokens is asked for all at once at one place, so the loss does not fall under log n, and training runs to its
last step; this is what FT-M mends, and not a defect of this file.

As released, the module's bias is trained with its weight where it has one; the weights from which the change is
counted are those before the call; a call of many edits takes a step per 64 of them, and a step whose loss is small
enough is left out.

Where this departs: FT-M's targets end as the base ends its answers, so that they stop when they are generated; FT-L's
do not, since at its one place the ending would compete with the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from wise.edits import Edit
from wise.lab.editors.base import Applied, WeightEditor
from wise.lab.editors.context import EditingContext, TokenRow, mean_loss, padded_rows, target_losses
from wise.lab.editors.settings import Count, Depth, LayerSettings, Nonnegative, Positive

BATCH = 64
"""Edits per optimiser step, as released."""


@dataclass(frozen=True, kw_only=True)
class FineTuningSettings(LayerSettings):
    steps: Count = 25
    """At most so many passes over the edits of a call."""
    learning_rate: Positive = 5e-4
    norm_constraint: Positive | None = None
    """epsilon: the most that any weight may change in one call; None for no constraint."""
    enough: Nonnegative = 1e-2
    """Mean loss in nats under which training stops."""


@dataclass(frozen=True, kw_only=True)
class FineTuningLSettings(FineTuningSettings):
    """The paper has 25 steps at 5e-4 and epsilon 5e-4 for GPT-2 XL, and found both by search; so are these."""

    search = {
        "learning_rate": (5e-4, 2e-3, 5e-3),
        "norm_constraint": (5e-4, 5e-3, 1e-2, 2e-2),
        "layer_fraction": (0.0, 0.5, 0.7, 0.85),
    }

    learning_rate: Positive = 5e-3
    norm_constraint: Positive | None = 1e-2


@dataclass(frozen=True, kw_only=True)
class FineTuningMSettings(FineTuningSettings):
    """EasyEdit has 25 steps at 5e-4 and no constraint, at about two thirds of the depth."""

    search = {
        "learning_rate": (5e-4, 2e-3, 5e-3),
        "norm_constraint": (None, 5e-3, 1e-2, 2e-2),
        "layer_fraction": (0.0, 0.5, 0.7, 0.85),
    }

    layer_fraction: Depth = 0.5
    learning_rate: Positive = 2e-3


F = TypeVar("F", bound=FineTuningSettings)


class FineTuning(WeightEditor[F]):
    """Adam on one value projection, with the masked loss."""

    def __init__(self, context: EditingContext, settings: F) -> None:
        place = context.chosen(settings)
        self.layer = place.layer
        names = [name for name, _ in context.model.get_submodule(place.path).named_parameters()]
        super().__init__(context, settings, [f"{place.path}.{name}" for name in names])

    def row(self, edit: Edit) -> TokenRow:
        """What is trained on of an edit: its prompt, and its target with what ends it."""
        return self.context.row(edit)

    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        rows = [self.row(edit) for edit in edits]
        leaves = {name: weight.detach().float().clone().requires_grad_() for name, weight in self.weights.items()}
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        optimizer = torch.optim.Adam(leaves.values(), lr=self.settings.learning_rate)
        steps = 0
        while steps < self.settings.steps:
            losses = self._pass(rows, leaves, before, optimizer)
            progress(int((losses < self.settings.enough).sum()))
            if float(losses.mean()) < self.settings.enough:
                break
            steps += 1
        self.put(leaves)
        progress(len(edits))
        whole = [self.context.row(edit) for edit in edits]
        return [Applied(steps=steps, loss=loss) for loss in target_losses(self.context, whole)]

    def _pass(
        self,
        rows: Sequence[TokenRow],
        leaves: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> Tensor:
        """One pass over all edits, a step a batch: `[edits]` the loss of each before its batch's step."""
        step_losses = []
        for start in range(0, len(rows), BATCH):
            with torch.enable_grad():
                losses = self.losses(leaves, rows[start : start + BATCH])
                loss = losses.mean()
                if float(loss.detach()) >= self.settings.enough:
                    optimizer.zero_grad(set_to_none=True)
                    (loss + self.penalty(leaves, before) / len(rows)).backward(  # type: ignore[no-untyped-call]
                        inputs=list(leaves.values())
                    )
                    optimizer.step()
            step_losses.append(losses.detach())
            if self.settings.norm_constraint is not None:
                project(leaves, before, self.settings.norm_constraint)
        return torch.cat(step_losses)

    def losses(self, leaves: Mapping[str, Tensor], rows: Sequence[TokenRow]) -> Tensor:
        """What is minimised for each edit: `[edits]`, here the cross-entropy of the target's tokens, in nats."""
        ids, mask, labels = padded_rows(rows, self.context.device)
        return mean_loss(logits_with(self.model, leaves, ids, mask), labels)

    def penalty(self, leaves: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
        """What is added to the sum over the edits of a call: a scalar. before: the weights before the call."""
        return torch.zeros((), device=next(iter(leaves.values())).device)


class FineTuningM(FineTuning[FineTuningMSettings]):
    Config = FineTuningMSettings


class FineTuningL(FineTuning[FineTuningLSettings]):
    Config = FineTuningLSettings

    def row(self, edit: Edit) -> TokenRow:
        """Without what ends the target."""
        return self.encoder.prompt(edit.prompt), self.encoder.answer_ids(edit.prompt, edit.target)

    def losses(self, leaves: Mapping[str, Tensor], rows: Sequence[TokenRow]) -> Tensor:
        """Mean negative log-likelihood of all the target's tokens, each at the prompt's last token: `[edits]`."""
        ids, mask, labels = padded_rows([(prompt, target[:1]) for prompt, target in rows], self.context.device)
        last = logits_with(self.model, leaves, ids, mask)[labels != -100]  # one place a row: [edits, vocabulary]
        log_probabilities = last.float().log_softmax(-1)
        return torch.stack([-log_probabilities[i, target].mean() for i, (_, target) in enumerate(rows)])


def logits_with(
    model: PreTrainedModel, leaves: Mapping[str, Tensor], ids: Tensor, mask: Tensor, **cached: Any
) -> Tensor:
    """`[batch, seq, vocabulary]` of a model with `leaves` in the place of the parameters of their names, cast to their
    precision; differentiable in these only. ids `[batch, seq]`, mask the same, or longer by what is `cached`: the
    model's own arguments for that."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    weights |= {name: leaf.to(weights[name].dtype) for name, leaf in leaves.items()}
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False, **cached}
    logits: Tensor = functional_call(model, weights, (), inputs).logits
    return logits


@torch.no_grad()
def project(leaves: Mapping[str, Tensor], before: Mapping[str, Tensor], constraint: float) -> None:
    """Brings every weight back to within `constraint` of what it was before, in place."""
    for name, leaf in leaves.items():
        leaf.clamp_(before[name] - constraint, before[name] + constraint)
