"""Statistics of the base's own text at the edited layer (`merge`, `retrieve`).

No corpus is needed: texts are sampled from the base. They give the activations on which the gate must stay closed, the
random prefixes that edits are also trained behind, the unit of the routing margins, and the space of edit keys.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.config import WiseConfig
from wise.memory.key_space import KeySpace
from wise.training.encoding import Encoder
from wise.training.generation import sample
from wise.training.splice import SplicedModel

SAMPLES = 48
SAMPLE_TOKENS = 32
PREFIX_WORDS = (3, 5, 8)
KEY_SIZE = 256
"""r: numbers in an edit key, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseStatistics:
    """Measured once per base and seed."""

    activations: Tensor
    """`[n, f]` float32 at every token of texts in the base's own words."""
    prefixes: tuple[str, ...]
    """Short texts to put before a prompt."""
    scale: float
    """Mean norm of the edited module's output on those tokens: the unit of the routing margins."""
    key_space: KeySpace


def measure(model: PreTrainedModel, spliced: SplicedModel, encoder: Encoder, config: WiseConfig) -> BaseStatistics:
    """Samples the base (seeded, without touching the global random state) and measures it."""
    samples = sample(model, encoder.starts(SAMPLES), stops=encoder.stops, tokens=SAMPLE_TOKENS, seed=config.seed)
    observed = spliced.observe(samples)
    real = observed.mask.bool()
    tokens, output = observed.activations[real], observed.outputs[real]
    return BaseStatistics(
        activations=tokens.float(),
        prefixes=_prefixes(encoder, samples, config),
        scale=float(torch.linalg.vector_norm(output.float(), dim=-1).mean()),
        key_space=fit_key_space(tokens.float()),
    )


def fit_key_space(activations: Tensor) -> KeySpace:
    """Whitening by principal components: equal spread in each of the leading `KEY_SIZE` directions of `[n, f]`.

    Raw activations share a few huge directions that say nothing about the fact asked for; whitening gives the
    directions that do an equal say.
    """
    mean = activations.mean(0)
    _, spread, axes = torch.linalg.svd(activations - mean, full_matrices=False)
    spread = spread / len(activations) ** 0.5
    size = min(KEY_SIZE, int((spread > 1e-5 * spread[0]).sum()))
    return KeySpace(mean=mean.cpu(), projection=(axes[:size] / spread[:size, None]).cpu())


def _prefixes(encoder: Encoder, samples: list[list[int]], config: WiseConfig) -> tuple[str, ...]:
    """Whole words from the samples, closed by a full stop; repeated where there are too few."""
    order = random.Random(config.seed)
    texts = [encoder.text(ids).split() for ids in samples]
    texts = [words for words in texts if words]
    chosen = [texts[i % len(texts)] for i in range(config.prefixes)] if texts else []
    return tuple(" ".join(words[: order.choice(PREFIX_WORDS)]).strip(" .,:;") + "." for words in chosen)
