"""The second moment of a value projection's inputs over a corpus.

`C = E[k k^T]`, not centred, stands for all that an edit should leave as it is: ROME (Meng et al. 2022, arXiv
2202.05262, section 3.1) and what came after it estimate it on 100,000 articles of Wikipedia; here on the
corpus given, or on the base's own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated

import torch
from torch import Tensor

from wise.errors import ConfigError
from wise.lab.editors.context import EditingContext, module_inputs
from wise.lab.editors.settings import Bounds, Count, Nonnegative, Settings
from wise.training.generation import right_pad

ROWS = 16
TOKENS_PER_INPUT = 16
"""Tokens of the corpus for each input of the projection, where the settings do not say how many."""


@dataclass(frozen=True, kw_only=True)
class MomentSettings(Settings):
    tokens: Count | None = None
    """Tokens of the corpus; None takes 16 for each input of the projection."""
    length: Annotated[int, Bounds(low=2)] = 128
    ridge: Nonnegative = 1e-4
    """Added to the diagonal, as a share of its mean: keeps directions that the corpus never showed finite."""


def prepared_moments(context: EditingContext, layers: Sequence[int], settings: MomentSettings) -> list[Tensor]:
    """`E[k k^T]` over the inputs k of the value projections at `layers`, ridge included: `[f, f]` each, float64; cached
    but for the ridge. The base must be in place. Raises ConfigError where tokens are fewer than inputs: singular."""
    paths = [context.projection(layer).path for layer in layers]
    f = max(context.projection(layer).in_features for layer in layers)
    tokens = TOKENS_PER_INPUT * f if settings.tokens is None else settings.tokens
    length, seed = settings.length, settings.seed
    if tokens < f:
        raise ConfigError(
            f"tokens={tokens}: the projection has {f} inputs, and their second moment is singular on fewer tokens "
            f"than that; ask for at least {f}, better {TOKENS_PER_INPUT * f}"
        )
    computed: dict[str, Tensor] = {}

    def compute(path: str) -> dict[str, Tensor]:
        if not computed:  # one pass over the corpus for all layers
            computed.update(_computed(context, paths, tokens, length, seed))
        return {"moment": computed[path]}

    about = {"tokens": tokens, "length": length, "corpus": context.corpus_digest(), "seed": seed}
    results = [context.cached("second-moment", {"path": path, **about}, partial(compute, path)) for path in paths]
    return [with_ridge(tensors["moment"].to(context.device), settings.ridge) for tensors in results]


@torch.no_grad()
def _computed(context: EditingContext, paths: Sequence[str], tokens: int, length: int, seed: int) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    done = 0
    corpus = context.corpus(tokens, length=length, seed=seed)
    while rows := list(islice(corpus, ROWS)):
        ids, mask = right_pad(rows, device=context.device)
        for path, activation in module_inputs(context.model, paths, ids, mask).items():
            keys = activation.reshape(-1, activation.shape[-1])[mask.flatten().bool()].double()
            sums[path] = sums[path] + keys.T @ keys if path in sums else keys.T @ keys
        done += int(mask.sum())
        context.progress("second moment", done, tokens)
    return {path: total / done for path, total in sums.items()}


def with_ridge(moment: Tensor, ridge: float) -> Tensor:
    """`moment` with a share of its mean diagonal on the diagonal."""
    return moment + ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def factored(matrix: Tensor) -> Tensor:
    """The Cholesky factor, lower, of a symmetric positive definite matrix.

    Raises ConfigError where it is singular to within rounding.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    diagonal = factor.diagonal()
    smallest = len(matrix) * torch.finfo(matrix.dtype).eps
    if int(info) or not bool((diagonal.min() / diagonal.max()) ** 2 > smallest):
        raise ConfigError(
            f"the second moment of {len(matrix)} inputs is singular: the corpus never shows some of their directions; "
            "give more text (tokens=...), or a larger ridge=..."
        )
    return factor
