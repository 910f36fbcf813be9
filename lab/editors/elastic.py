"""Fine-tuning with elastic weight consolidation: weights that matter for the base's own text change least.

Kirkpatrick et al. 2017 ("Overcoming catastrophic forgetting in neural networks", PNAS 114(13), arXiv 1612.00796),
equation 3:

    L(theta) = L_B(theta) + sum over i of  lambda / 2  F_i (theta_i - theta*_A,i)^2.

L_B is the masked loss of FT-M, summed over the edits of a call, theta the value projection of one layer, theta*_A the
weights before the call, and F the diagonal of the Fisher information of the base on running text, per token,

    F_i = E over texts [ (d log p(y | text) / d theta_i)^2 ],   every next token y drawn from the base itself.

The squares are taken of whole rows of text: the gradients of different places are uncorrelated where each next token
is drawn from what the base expects there, so a row's square is in expectation the sum of its tokens'. As F is per
token, lambda is the number of tokens of old text that one nat of an edit is weighed against.

Where this departs: one layer is trained and not the whole network, like all fine-tuning here. The anchor moves with
the edits, as in online EWC (Schwarz et al. 2018, arXiv 1805.06370) and in the FT-EWC of GRACE (Hartvigsen et al. 2023,
arXiv 2211.11031): held to the base, later calls would pull the weights back from earlier edits. F stays the base's.
The paper adds a penalty per task that was learned; but the Fisher information of an edit that is fitted is next to
nothing, as the model is then sure of its answer, so that these would not hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from wise.lab.editors.context import EditingContext
from wise.lab.editors.fine_tuning import FineTuning, FineTuningSettings, logits_with
from wise.lab.editors.settings import Bounds, Depth, Nonnegative, Positive

FISHER = "fisher"


@dataclass(frozen=True, kw_only=True)
class FineTuningEWCSettings(FineTuningSettings):
    search = {
        "learning_rate": (5e-4, 2e-3, 5e-3),
        "strength": (1e2, 1e3, 1e4, 1e5),
        "layer_fraction": (0.0, 0.5, 0.7, 0.85),
    }

    layer_fraction: Depth = 0.5
    learning_rate: Positive = 2e-3

    strength: Nonnegative = 1e4
    """lambda: tokens of old text that an edit is weighed against."""
    fisher_tokens: Annotated[int, Bounds(low=2)] = 8192
    """Tokens that the Fisher information is estimated on."""
    fisher_length: Annotated[int, Bounds(low=2)] = 64


class FineTuningEWC(FineTuning[FineTuningEWCSettings]):
    Config = FineTuningEWCSettings

    def __init__(self, context: EditingContext, settings: FineTuningEWCSettings) -> None:
        super().__init__(context, settings)
        self.fisher: dict[str, Tensor] = {}
        """Parameter -> F, of its shape, float32; empty before `prepare`."""

    def _prepare(self) -> None:
        settings = self.settings
        key = {
            "layer": self.layer,
            "tokens": settings.fisher_tokens,
            "length": settings.fisher_length,
            "seed": settings.seed,
            "corpus": self.context.corpus_digest(),
        }
        result = self.context.cached(FISHER, key, self._estimated)
        self.fisher = {name: tensor.to(self.original[name].device) for name, tensor in result.items()}

    def _estimated(self) -> dict[str, Tensor]:
        settings = self.settings
        rows = self.context.corpus(settings.fisher_tokens, length=settings.fisher_length, seed=settings.seed)
        total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in self.original.items()}
        generator = torch.Generator().manual_seed(settings.seed)
        read = predicted = 0
        for row in rows:
            for name, gradient in self._gradients(row, generator).items():
                total[name] += gradient.square()
            read, predicted = read + len(row), predicted + len(row) - 1
            self.context.progress(FISHER, read, settings.fisher_tokens)
        return {name: tensor / max(1, predicted) for name, tensor in total.items()}

    def _gradients(self, row: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """Of the log-likelihood of next tokens drawn from the base, after each token of a row but the last."""
        leaves = {name: w.detach().float().clone().requires_grad_() for name, w in self.original.items()}
        if len(row) < 2:  # predicts nothing
            return {}
        ids = torch.tensor([list(row[:-1])], device=self.context.device)
        with torch.enable_grad():
            logits = logits_with(self.model, leaves, ids, torch.ones_like(ids))[0].float()
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).squeeze(1)
            loss = cross_entropy(logits, drawn.to(logits.device), reduction="sum")
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True))

    def penalty(self, leaves: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
        """The second term of equation 3."""
        terms = [(self.fisher[n] * (leaf - before[n].float()).square()).sum() for n, leaf in leaves.items()]
        return self.settings.strength / 2 * torch.stack(terms).sum()
