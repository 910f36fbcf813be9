"""The next token of a row: the most probable, or drawn by the row's own seed; and how probable the candidates were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Chances:
    """Log-probabilities of one token and of the likeliest in its place, in nats, by the model's own distribution."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Draws for one row, so that the company it has in a batch does not change what it says."""

    def __init__(self, *, temperature: float, top_p: float, seed: int | None) -> None:
        """temperature 0 takes the most probable token. seed: None draws one."""
        self.temperature, self.top_p = temperature, top_p
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def draw(self, logits: Tensor, likeliest: int) -> int:
        """logits: `[vocabulary]`, and the token for which they are largest."""
        if self.temperature == 0:
            return likeliest
        chances = torch.softmax(logits.cpu().double() / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, places = chances.sort(descending=True, stable=True)
            ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0  # the first is always kept
            return int(places[torch.multinomial(ordered, 1, generator=self._generator)])
        return int(torch.multinomial(chances, 1, generator=self._generator))


def chances(logits: Tensor, token: int, top: int) -> Chances:
    """logits: `[vocabulary]`; top: how many of the likeliest are told."""
    logprobs = torch.log_softmax(logits, dim=-1)
    best = logprobs.topk(min(top, len(logprobs))) if top else None
    told = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Chances(token=token, logprob=float(logprobs[token]), top=told)
