"""One sequence that is being generated: how its next token is chosen, and how its tokens become text."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wise.memory.side_memory import SideMemory
from wise.serving.engines import Delta, FinishReason, GenerationRequest, Job, Logprobs, RoutedToken

CONTEXT = 4
"""Tokens that are decoded before new ones, since many tokenizers write a token depending on what precedes it."""
INCOMPLETE = "\ufffd"
"""What a tokenizer writes for bytes that are not a whole character yet."""


class Sampler:
    """Chooses the tokens of one sequence. It has its own generator, so other sequences in the batch do not matter."""

    def __init__(self, *, temperature: float, top_p: float, seed: int | None) -> None:
        """temperature: 0 takes the likeliest token. seed: None takes a random one."""
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
        probabilities = torch.softmax(logits.cpu().double() / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, tokens = probabilities.sort(descending=True, stable=True)
            ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0  # the first is always kept
            return int(tokens[torch.multinomial(ordered, 1, generator=self._generator)])
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def logprobs(logits: Tensor, token: int, top: int) -> Logprobs:
    """logits: `[vocabulary]`; top: how many of the likeliest tokens to report."""
    values = torch.log_softmax(logits, dim=-1)
    best = values.topk(min(top, len(values)))
    ranked = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Logprobs(token=token, logprob=float(values[token]), top=ranked)


class Detokenizer:
    """Turns tokens into text as they come. It holds back incomplete characters and possible stop sequences."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT:])
        self._start, self._done = 0, len(self._ids)
        """Where decoding starts, and up to where the text was taken."""
        self._stops = stops
        self._held = ""
        self.stopped = False
        """A stop sequence was found: nothing follows."""

    def add(self, token: int) -> str:
        """The text that is final now that `token` came."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._done])
        now = self._decode(self._ids[self._start :])
        if now.endswith(INCOMPLETE):
            return ""
        self._start, self._done = max(0, self._done - 1), len(self._ids)
        return self._release(now[len(before) :])

    def end(self) -> str:
        """The text that was held back, now that nothing follows."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._done])
        rest = self._release(self._decode(self._ids[self._start :])[len(before) :])
        rest += "" if self.stopped else self._held
        self._done, self._held = len(self._ids), ""
        return rest

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


class GeneratedSequence:
    """A member of a batch: a request, and what was generated for it so far."""

    def __init__(
        self,
        job: Job,
        index: int,
        request: GenerationRequest,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
    ) -> None:
        self.job, self.index, self.request = job, index, request
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self.begun = time.monotonic()
        self._routed: list[RoutedToken] = []
        """Since the last delta."""
        self._ends = ends
        self._sampler = Sampler(temperature=request.temperature, top_p=request.top_p, seed=request.seed)
        self._detokenizer = Detokenizer(tokenizer, request.prompt, request.stops)

    @property
    def memory(self) -> SideMemory | None:
        return self.request.handle.memory

    @property
    def gone(self) -> bool:
        return self.job.cancelled or self.job.failed

    @property
    def longest(self) -> int:
        """Tokens that it may grow to."""
        return len(self.request.prompt) + self.request.max_new_tokens

    def advance(self, logits: Tensor, likeliest: int) -> Delta:
        """Chooses the next token from `[vocabulary]` logits, which are largest for `likeliest`."""
        token = self._sampler.draw(logits, likeliest)
        self.tokens.append(token)
        top = self.request.top_logprobs
        text = "" if token in self._ends else self._detokenizer.add(token)
        if token in self._ends or self._detokenizer.stopped:
            self.finish = "stop"
        elif len(self.tokens) >= self.request.max_new_tokens:
            self.finish = "length"
        if self.finish is not None:
            text += self._detokenizer.end()
        routed, self._routed = tuple(self._routed), []
        return Delta(
            index=self.index,
            text=text,
            tokens=(token,),
            logprobs=() if top is None else (logprobs(logits, token, top),),
            routed=routed,
            finish=self.finish,
        )

    def note(self, route: Sequence[RoutedToken]) -> None:
        """Keeps the tokens to report, without padding."""
        self._routed += [one for one in route if one.position >= 0 and (one.open or self.request.trace)]
