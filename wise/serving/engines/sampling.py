"""How one sequence's next token is chosen from its logits: grammar, bias, penalties, temperature and cut-offs.

The side memory has changed the logits already, so all of this applies to an edit's tokens as to any other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from wise.serving.engines import EngineError, GenerationRequest, Logprobs
from wise.serving.engines.grammar import Matcher

GREEDY = 1e-5
"""A temperature below this takes the likeliest token, as in vLLM: division by it would exclude all other tokens."""
LIKELIEST = 1024
"""Tokens that are sorted for `top_p`, if they are enough: sorting the whole vocabulary takes ten times as long."""


class Sampler:
    """Chooses the tokens of one sequence. It has its own generator, so other sequences in the batch do not matter."""

    def __init__(self, request: GenerationRequest, matcher: Matcher | None = None) -> None:
        """matcher: of the request's grammar, if it has one."""
        self._request, self._matcher = request, matcher
        self._counts: Counter[int] = Counter()
        """Of the tokens that were chosen."""
        self._changes_logits = bool(
            matcher is not None
            or request.logit_bias
            or request.presence_penalty
            or request.frequency_penalty
            or request.repetition_penalty != 1
        )
        self._generator = torch.Generator()
        self._generator.manual_seed(self._generator.seed() if request.seed is None else request.seed)

    @property
    def complete(self) -> bool:
        """The grammar admits nothing more."""
        return self._matcher is not None and self._matcher.complete

    def draw(self, logits: Tensor, likeliest: int) -> int:
        """logits: `[vocabulary]`, and the token for which they are largest. Raises EngineError if none can be drawn."""
        if self._changes_logits:
            logits = self._adjusted_logits(logits)
            likeliest = int(logits.argmax())
        token = likeliest if self._request.temperature < GREEDY else self._random_token(logits.float().cpu())
        self._counts[token] += 1
        if self._matcher is not None:
            self._matcher.take(token)
        return token

    def _adjusted_logits(self, logits: Tensor) -> Tensor:
        request = self._request
        logits = logits.float().cpu().clone()
        if self._matcher is not None:
            logits[~self._matcher.allowed(len(logits))] = -math.inf
        if request.logit_bias:
            logits[[*request.logit_bias]] += torch.tensor([*request.logit_bias.values()])
        if request.repetition_penalty != 1:
            used_ids = sorted({*request.prompt, *self._counts})
            used_logits, penalty = logits[used_ids], request.repetition_penalty
            logits[used_ids] = torch.where(used_logits > 0, used_logits / penalty, used_logits * penalty)
        if self._counts:
            counts = torch.tensor([*self._counts.values()])
            logits[[*self._counts]] -= request.frequency_penalty * counts + request.presence_penalty
        return logits

    def _random_token(self, logits: Tensor) -> int:
        request = self._request
        best = logits.max()
        if not torch.isfinite(best):
            raise EngineError("no token can be drawn: the logits of this answer are not finite")
        scaled = (logits - best) / request.temperature
        if request.min_p > 0:
            scaled[scaled < math.log(request.min_p)] = -math.inf
        if 0 < request.top_k < len(scaled):
            scaled[scaled < scaled.topk(request.top_k).values[-1]] = -math.inf
        chances = torch.softmax(scaled, dim=-1)
        if request.top_p < 1:
            ordered, tokens = chances.topk(min(LIKELIEST, len(chances)))
            if ordered.sum() < request.top_p:
                ordered, tokens = chances.sort(descending=True, stable=True)
            before = ordered.cumsum(-1, dtype=torch.float64) - ordered
            top_tokens = torch.cat([tokens[:1], tokens[1:][before[1:] < request.top_p]])
            chances = torch.zeros_like(chances).index_copy_(0, top_tokens, chances[top_tokens])
        ends = chances.cumsum(-1, dtype=torch.float64)
        at = torch.rand(1, generator=self._generator, dtype=torch.float64) * ends[-1]
        return min(int(torch.searchsorted(ends, at, right=True)), int(chances.nonzero()[-1]))


def logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[Logprobs, ...]:
    """Log-probabilities of a token at each position. logits: `[positions, vocabulary]`; top: how many to report."""
    values = torch.log_softmax(logits.float(), dim=-1)
    chosen_values = values.gather(1, torch.tensor(tokens, device=values.device)[:, None])[:, 0].tolist()
    best = values.topk(min(top, values.shape[1]), dim=-1)
    ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(
        Logprobs(token=token, logprob=value, top=tuple(zip(ids, likeliest, strict=True)))
        for token, value, (ids, likeliest) in zip(tokens, chosen_values, ranked, strict=True)
    )
