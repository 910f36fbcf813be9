"""The interface of engines, which generate text: requests, results and the `Engine` protocol.

`engines.local` implements it in this process, `engines.vllm` with vLLM.

A request names the memory that it runs under. It keeps that memory from its first token to its last, so that an
answer comes from exactly one version while edits go live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from wise.errors import WiseError
from wise.memory.side_memory import SideMemory
from wise.memory.state import MemoryState

FinishReason = Literal["stop", "length", "deadline"]
"""Why an answer ended: the model or a stop sequence, its number of tokens, or the time that its request may take."""


class BusyError(WiseError, RuntimeError):
    """The queue is full; there may be room after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(WiseError, TimeoutError):
    """The time of a request was over before any token was generated."""


class EngineError(WiseError, RuntimeError):
    """The model failed in a step, or the engine does not run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryHandle:
    """The memory of one namespace in one version."""

    version: int
    namespace: str | None
    """None is the base model alone."""
    state: MemoryState = field(default_factory=MemoryState)
    memory: SideMemory | None = None

    def is_shared(self, slot: int) -> bool:
        """Whether a slot holds several edits, so that only the key shows which of them was used."""
        return len(self.state.slots[slot].edit_ids) > 1

    def edit_id(self, slot: int, key: int) -> str | None:
        """The id of the edit behind a token; None if its slot is shared and has no keys (`merge`)."""
        if not self.is_shared(slot):
            return self.state.slots[slot].edit_ids[0]
        return self.state.key_owners[key] if key >= 0 else None


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One answer to generate. The fields that choose a token have the names and meanings of vLLM's SamplingParams.

    The memory changes the logits; then come, in this order, the grammar, `logit_bias`, the penalties, the temperature,
    `min_p`, `top_k` and `top_p`.
    """

    prompt: tuple[int, ...]
    handle: MemoryHandle
    max_new_tokens: int
    """0 reads the prompt, for `prompt_logprobs`, and generates nothing."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest are not drawn."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Counts the tokens of the prompt too, as the other two do not."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    json_schema: str | None = None
    """A JSON schema, as JSON: the answer is a document of it."""
    seed: int | None = None
    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """How many of the likeliest tokens to report at each position; None reports no probabilities at all."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    trace: bool = False
    """Report the route of every token, and not only of those at which an edit was active."""


@dataclass(frozen=True, kw_only=True)
class RoutedToken:
    """The router's decision at one token."""

    position: int
    """In prompt and answer, from 0; negative for padding."""
    edit: str | None
    slot: int
    score: float
    threshold: float
    open: bool
    """Whether the memory was added."""


@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """Log-probabilities, in nats, of one token and of the likeliest at its position, before temperature."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What one step adds to an answer."""

    index: int
    """Of the answer in its job."""
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[Logprobs, ...]
    routed: tuple[RoutedToken, ...]
    finish: FinishReason | None = None
    """Set in the last delta."""
    prompt_logprobs: tuple[Logprobs, ...] = ()
    """In the first delta, if they were asked for: of the prompt's tokens after the first."""


@dataclass(eq=False)
class Job:
    """The answers of one HTTP request. The engine puts deltas into the queue, or an exception if it cannot go on."""

    loop: asyncio.AbstractEventLoop
    deadline: float
    """On the monotonic clock."""
    deltas: asyncio.Queue[Delta | Exception] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    """The sequences leave at the next step."""
    failed: bool = False
    futures: list[Future[None]] = field(default_factory=list)
    """Of the answers, if they are generated in another event loop."""

    def cancel(self) -> None:
        """Cancels the answers: the client does not wait for them any more."""
        self.cancelled = True
        for future in self.futures:
            future.cancel()


class Engine(Protocol):
    """Generates answers for all requests at once, in a thread or process of its own."""

    wrong_answers: Mapping[str, str]
    """The engine's own answers to live edits that it was asked and does not answer with the target, by edit id."""

    def start(self) -> None: ...

    def close(self) -> None:
        """Ends the engine; unfinished jobs get an EngineError."""

    @property
    def alive(self) -> bool: ...

    @property
    def busy(self) -> int:
        """Answers that are queued or being generated."""

    def prepare(self, handles: Sequence[MemoryHandle]) -> None:
        """Called with the memories of a version, by namespace, before requests under them are submitted; not called
        from an event loop. Raises EngineError if they cannot be served."""

    def submit(self, requests: Sequence[GenerationRequest], *, seconds: float) -> Job:
        """Queues the answers of one HTTP request, which may take so many seconds. Called from an event loop.

        When the time is over, each unfinished answer gets a last delta that says so. An error in one answer ends those
        of its job, and no others.

        Raises BusyError if the queue is full, EngineError if the engine does not run.
        """
