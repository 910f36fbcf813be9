"""One answer on its way: what was asked, what came of it so far, and what is told of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wise.memory.side_memory import SideMemory
from wise.serve.edition import Voice
from wise.serve.sampling import Chances, Sampler, chances
from wise.serve.wording import Wording

Finish = Literal["stop", "length"]
STOP: Finish = "stop"
LENGTH: Finish = "length"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One answer that is wanted."""

    prompt: tuple[int, ...]
    voice: Voice
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    top: int | None = None
    """How many of the likeliest tokens are told at each place; None tells no probabilities at all."""
    trace: bool = False
    """Tell the route of every token, and not only of those at which an edit spoke."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """The route of one token that was read."""

    place: int
    """Among the tokens of prompt and answer, from 0."""
    edit: str | None
    slot: int
    score: float
    threshold: float
    open: bool
    """Whether the memory spoke."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is new of one answer."""

    row: int
    text: str
    tokens: tuple[int, ...]
    chances: tuple[Chances, ...]
    spoken: tuple[Spoken, ...]
    finish: Finish | None = None
    """`stop` or `length` in the last piece."""


@dataclass(eq=False)
class Job:
    """The rows of one request. Pieces are put into `pieces`, and an exception where it cannot go on."""

    loop: asyncio.AbstractEventLoop
    deadline: float
    """On the monotonic clock."""
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    """Set by whoever no longer wants it; its rows leave at the next step."""
    failed: bool = False


class Row:
    """A member of a batch."""

    def __init__(
        self, job: Job, number: int, wish: Wish, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]
    ) -> None:
        self.job, self.number, self.wish = job, number, wish
        self.new: list[int] = []
        self.finish: Finish | None = None
        self.begun = time.monotonic()
        self.spoken: list[Spoken] = []
        """Not told yet."""
        self._ends = ends
        self._sampler = Sampler(temperature=wish.temperature, top_p=wish.top_p, seed=wish.seed)
        self._wording = Wording(tokenizer, wish.prompt, wish.stops)

    @property
    def memory(self) -> SideMemory | None:
        return self.wish.voice.memory

    @property
    def gone(self) -> bool:
        return self.job.cancelled or self.job.failed

    @property
    def longest(self) -> int:
        """Tokens that it may come to."""
        return len(self.wish.prompt) + self.wish.max_new_tokens

    def advance(self, logits: Tensor, likeliest: int) -> Piece:
        """Takes the next token from `[vocabulary]` logits, which are largest for `likeliest`."""
        token = self._sampler.draw(logits, likeliest)
        self.new.append(token)
        told = () if self.wish.top is None else (chances(logits, token, self.wish.top),)
        text = ""
        if token in self._ends:
            self.finish = STOP
        else:
            text = self._wording.add(token)
            if self._wording.stopped:
                self.finish = STOP
            elif len(self.new) >= self.wish.max_new_tokens:
                self.finish = LENGTH
        if self.finish is not None:
            text += self._wording.end()
        spoken, self.spoken = tuple(self.spoken), []
        return Piece(
            row=self.number, text=text, tokens=(token,), chances=told, spoken=spoken, finish=self.finish
        )

    def note(self, route: Sequence[Spoken]) -> None:
        """Keeps those that are to be told. Pads have places below 0."""
        self.spoken += [spoken for spoken in route if spoken.place >= 0 and (spoken.open or self.wish.trace)]
