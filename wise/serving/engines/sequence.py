"""One sequence that is being generated: its request, its tokens so far, and how they become text."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wise.memory.side_memory import SideMemory
from wise.serving.engines import Delta, FinishReason, GenerationRequest, Job, Logprobs, RoutedToken
from wise.serving.engines.grammar import Grammars
from wise.serving.engines.sampling import Sampler, logprobs

CONTEXT = 4
"""Tokens that are decoded before new ones, since many tokenizers write a token depending on what precedes it."""
INCOMPLETE = "\ufffd"
"""What a tokenizer writes for bytes that are not a whole character yet."""


class Detokenizer:
    """Turns tokens into text as they come. It holds back incomplete characters and possible stop sequences."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT:])
        self._start, self._text_end = 0, len(self._ids)
        """The index in `_ids` at which decoding starts, and the index up to which the text was released."""
        self._stops = stops
        self._pending = ""
        self.stopped = False
        """Whether a stop sequence came: no text follows."""

    def add(self, token: int) -> str:
        """Takes the next token; returns the text that is final now."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._text_end])
        now = self._decode(self._ids[self._start :])
        if now.endswith(INCOMPLETE):
            return ""
        self._start, self._text_end = max(0, self._text_end - 1), len(self._ids)
        return self._release(now[len(before) :])

    def end(self) -> str:
        """The pending text, at the end of the answer."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._text_end])
        rest = self._release(self._decode(self._ids[self._start :])[len(before) :])
        rest += "" if self.stopped else self._pending
        self._text_end, self._pending = len(self._ids), ""
        return rest

    def _release(self, new: str) -> str:
        text = self._pending + new
        places = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.stopped, self._pending = True, ""
            return text[: min(places)]
        overlap_length = max((overlap(text, stop) for stop in self._stops), default=0)
        self._pending = text[len(text) - overlap_length :]
        return text[: len(text) - overlap_length]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def overlap(text: str, stop: str) -> int:
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
        grammars: Grammars,
    ) -> None:
        self.job, self.index, self.request = job, index, request
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self.queued_at = self.last = time.monotonic()
        """When it was queued, and when its last token came."""
        self._routed: list[RoutedToken] = []
        """Since the last delta."""
        self._prompt_logprobs: list[Logprobs] = []
        """The same."""
        self._ends = ends
        matcher = None if request.json_schema is None else grammars.matcher(request.json_schema)
        self._sampler = Sampler(request, matcher)
        self._detokenizer = Detokenizer(tokenizer, request.prompt, request.stops)

    @property
    def memory(self) -> SideMemory | None:
        return self.request.handle.memory

    @property
    def has_ended(self) -> bool:
        """Whether it is finished, has failed, or was cancelled."""
        return self.finish is not None or self.job.cancelled or self.job.failed

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.request.prompt) + self.request.max_new_tokens

    def read(self, first: int, logits: Tensor) -> None:
        """Keeps the log-probabilities of the prompt. logits: `[n, vocabulary]`, from the token at `first` on."""
        top, following = self.request.prompt_logprobs, self.request.prompt[first + 1 : first + 1 + len(logits)]
        if top is not None and following:
            self._prompt_logprobs += logprobs(logits[: len(following)], following, top)

    def advance(self, logits: Tensor, likeliest: int) -> Delta:
        """Chooses the next token from `[vocabulary]` logits, which are largest for `likeliest`."""
        if self.request.max_new_tokens == 0:
            return self.end("length")
        token = self._sampler.draw(logits, likeliest)
        self.tokens.append(token)
        top = self.request.top_logprobs
        token_logprobs = () if top is None else logprobs(logits[None], [token], top)
        text = "" if token in self._ends else self._detokenizer.add(token)
        stops = token in self._ends or self._detokenizer.stopped or self._sampler.complete
        if stops or len(self.tokens) >= self.request.max_new_tokens:
            return self.end("stop" if stops else "length", text, (token,), token_logprobs)
        return self._delta(text, (token,), token_logprobs)

    def end(
        self,
        reason: FinishReason,
        text: str = "",
        tokens: tuple[int, ...] = (),
        token_logprobs: tuple[Logprobs, ...] = (),
    ) -> Delta:
        """The last delta, with these tokens in it."""
        text += self._detokenizer.end()
        self.finish = reason  # only now: an error before this is delivered only if the sequence has not ended
        return self._delta(text, tokens, token_logprobs)

    def _delta(self, text: str, tokens: tuple[int, ...], token_logprobs: tuple[Logprobs, ...]) -> Delta:
        routed, self._routed = tuple(self._routed), []
        prompt_logprobs, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        return Delta(
            index=self.index,
            text=text,
            tokens=tokens,
            logprobs=token_logprobs,
            routed=routed,
            finish=self.finish,
            prompt_logprobs=prompt_logprobs,
        )

    def note(self, route: Sequence[RoutedToken]) -> None:
        """Keeps the tokens to report, without padding."""
        self._routed += [token for token in route if token.position >= 0 and (token.open or self.request.trace)]
