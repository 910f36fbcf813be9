"""The WISE objective (arXiv 2405.14768, equations 3 to 8).

    L = L_edit + L_a
    L_edit = -log p_{W'}(y | x)
    L_a    = max(0, D(a_irr) - alpha) + max(0, beta - D(a_edit)) + max(0, gamma - (D(a_edit) - D(a_irr)))
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu


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
    return (
        relu(unrelated - low).mean() + relu(high - edited).mean() + relu(gap - (edited - worst)).mean()
    )


def score(delta: Tensor) -> Tensor:
    """D with a gradient at zero: `[..., d] -> [...]`."""
    return torch.sqrt(delta.float().square().sum(-1) + 1e-12)
