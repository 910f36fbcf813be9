"""Causal tracing of facts (Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2).

A prompt is run clean; run with noise on its subject, so that the answer is lost; and run with that noise and one part
of the clean run put back. How much of the answer's probability returns is what that part carries: its effect. Noise is
Gaussian, three times as wide as the subjects' own embeddings (appendix B), and several draws are averaged.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wise.errors import ConfigError, UnsupportedModelError
from wise.lab.locate.roles import subject_span
from wise.lab.locate.running import Noise, Patch, Run, Runner
from wise.lab.locate.sites import KINDS, STATE
from wise.training.encoding import Encoder

if TYPE_CHECKING:
    from wise.lab.locate.facts import Fact

SAMPLES = 5
"""Draws of noise per fact. The paper's code draws 10."""
NOISE_FACTOR = 3.0
"""Standard deviation of the noise, in units of that of the subjects' embeddings."""
WINDOW_OF, WINDOW_IN = 10, 48
"""The paper restores windows of 10 layers in a model of 48; others get the same share of their depth."""
TOKENS = 4096
"""Tokens, all rows together, in one forward."""
NO_SUBJECT = "subject not found once in the prompt"
ENDS = "prompt ends with the subject"
NO_ANSWER = "answer has no token"
TOO_LONG = "longer than the context"
UNKNOWN = "not answered right by the base"
SKIPPED = (NO_SUBJECT, ENDS, NO_ANSWER, TOO_LONG, UNKNOWN)
"""Why a fact is not traced, in the order in which it is looked at."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A fact that can be traced: its subject is found and the base answers it."""

    prompt: str
    ids: tuple[int, ...]
    span: tuple[int, int]
    """The subject's first token, and the one behind its last."""
    answer: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One fact's effects: differences of probabilities, averaged over the draws of noise."""

    high: float
    """Probability of the answer's first token, clean."""
    low: float
    """The same, with noise."""
    effects: dict[str, list[list[float]]]
    """Kind -> per token from the subject's first on, per layer."""


def default_window(depth: int) -> int:
    """Layers restored together for feed-forward and attention outputs.

    >>> default_window(48), default_window(6)
    (10, 1)
    """
    return max(1, round(WINDOW_OF * depth / WINDOW_IN))


def window_layers(layer: int, window: int, depth: int) -> range:
    """The layers of a window around `layer`, cut at the model's ends; an even one reaches one further down."""
    begin = layer - window // 2
    return range(max(0, begin), min(depth, begin + window))


def find_known(runner: Runner, encoder: Encoder, facts: Sequence[Fact]) -> list[Known | str]:
    """Each fact ready to be traced, or why it is not, one of `SKIPPED`. The base knows a fact where every token of the
    answer is the likeliest behind those before it, which one forward over prompt and answer says. Raises
    UnsupportedModelError where the model's logits are no numbers."""
    return [_find(runner, encoder, fact) for fact in facts]


def _find(runner: Runner, encoder: Encoder, fact: Fact) -> Known | str:
    ids = encoder.prompt(fact.prompt)
    span = subject_span(encoder, fact.prompt, fact.subject)
    if span is None:
        return NO_SUBJECT
    if span[1] == len(ids):
        return ENDS
    answer = encoder.answer_ids(fact.prompt, fact.answer)
    if not answer:
        return NO_ANSWER
    if len(ids) + len(answer) > encoder.context:
        return TOO_LONG
    logits = runner.logits([*ids, *answer[:-1]], last=len(answer))
    if not bool(logits.isfinite().all()):
        raise UnsupportedModelError(
            f"the model's logits after {fact.prompt!r} are no finite numbers, so no probability could be traced; "
            "check its weights, or load it in float32"
        )
    if logits.argmax(-1).tolist() != answer:
        return UNKNOWN
    return Known(prompt=fact.prompt, ids=tuple(ids), span=span, answer=answer[0])


def noise_width(runner: Runner, facts: Sequence[Known]) -> float:
    """Three times the standard deviation of the entries of all subject tokens' input embeddings.

    Raises ConfigError where it is no positive number.
    """
    with torch.no_grad():
        ids = torch.tensor([token for fact in facts for token in fact.ids[slice(*fact.span)]], device=runner.device)
        width = NOISE_FACTOR * float(runner.sites.embedding(ids).float().std())
    if not math.isfinite(width) or width <= 0:
        raise ConfigError(f"the subjects' embeddings have a spread of {width}: no noise can be drawn from it")
    return width


def draw_noise(runner: Runner, fact: Known, *, width: float, samples: int, seed: int) -> Noise:
    """`samples` draws for a fact: a function of its prompt, `width` and `seed`, whatever is traced beside it."""
    with torch.no_grad():
        e = runner.sites.embedding(torch.tensor([fact.ids[0]], device=runner.device)).shape[-1]
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}\t{fact.prompt}".encode()))
    begin, end = fact.span
    values = width * torch.randn(samples, end - begin, e, generator=generator)
    return Noise(start=begin, values=values.to(runner.device))


def trace_fact(runner: Runner, fact: Known, noise: Noise, *, window: int) -> Trace:
    """Raises UnsupportedModelError where a probability is no number."""
    grid = _Grid(runner, fact, noise)
    effects = {kind: grid.effects(kind, 1 if kind == STATE else window) for kind in KINDS}
    high = float(_probability(grid.clean.logits, fact.answer)[0])
    numbers = [high, grid.low, *(x for kind in effects.values() for row in kind for x in row)]
    if not all(map(math.isfinite, numbers)):
        raise UnsupportedModelError(f"a probability of {fact.prompt!r} is no number; load the model in float32")
    return Trace(high=high, low=grid.low, effects=effects)


class _Grid:
    """The runs of one fact: a row for every token from the subject on, times every draw of noise."""

    def __init__(self, runner: Runner, fact: Known, noise: Noise) -> None:
        self.runner = runner
        self.fact = fact
        self.noise = noise
        self.clean: Run = runner.record(fact.ids)
        self.low = float(_probability(runner.patched(fact.ids, noise), fact.answer).mean())
        # Indices stay on the CPU: the layers' outputs may lie on several devices.
        self.tokens = torch.arange(fact.span[0], len(fact.ids))
        self.samples = torch.arange(len(noise.values))

    def effects(self, kind: str, window: int) -> list[list[float]]:
        """Per token, per layer: the clean output of `kind` put back there, in a window of layers."""
        depth = self.runner.sites.depth
        columns = [self._column(kind, window_layers(layer, window, depth)) for layer in range(depth)]
        results: list[list[float]] = torch.stack(columns, dim=1).tolist()
        return results

    def _column(self, kind: str, layers: range) -> Tensor:
        """The effect at each token, `[tokens]` on the CPU."""
        at = self.tokens.repeat_interleave(len(self.samples))
        sample = self.samples.repeat(len(self.tokens))
        size = max(1, TOKENS // len(self.fact.ids))
        parts = [self._restored(kind, layers, at[i : i + size], sample[i : i + size]) for i in range(0, len(at), size)]
        return torch.cat(parts).reshape(len(self.tokens), len(self.samples)).mean(1) - self.low

    def _restored(self, kind: str, layers: range, at: Tensor, sample: Tensor) -> Tensor:
        """The answer's probability in rows with the clean output put back at token `at`, `[rows]`."""
        rows, outputs = torch.arange(len(at)), self.clean.outputs[kind]
        patches = [Patch(kind=kind, layer=i, rows=rows, tokens=at, values=outputs[i][0, at]) for i in layers]
        return _probability(self.runner.patched(self.fact.ids, self.noise.select(sample), patches), self.fact.answer)


def _probability(logits: Tensor, answer: int) -> Tensor:
    """`[rows]` on the CPU."""
    return logits.softmax(-1)[:, answer].cpu()
