"""From the engine's deltas to answers in OpenAI's forms: whole or streamed, with the fields of wise."""

from __future__ import annotations

import codecs
import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import uuid4

from wise.safe_text import finite
from wise.serving.engines import DeadlineError, Delta, FinishReason, GenerationRequest, Job, Logprobs, RoutedToken
from wise.serving.engines.sequence import CONTEXT
from wise.serving.event_stream import event
from wise.serving.schemas_chat import ChatChoice, ChatCompletion, ChatMessage, ChatRequest
from wise.serving.schemas_completions import (
    ActiveEdit,
    Completion,
    CompletionChoice,
    CompletionRequest,
    GenerationBody,
    TokenRoute,
    Usage,
    WiseMetadata,
)
from wise.serving.service import Service
from wise.serving.tool_calls import ToolCallParser

UTF8 = codecs.getincrementaldecoder("utf-8")
LOWEST = -9999.0
"""In place of a log-probability that JSON cannot hold."""


@dataclass
class GeneratedAnswer:
    """The generated answer to one request, so far."""

    request: GenerationRequest
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    routed: list[RoutedToken] = field(default_factory=list)
    finish: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.routed += delta.routed
        self.finish = delta.finish or self.finish

    @property
    def mean_logprob(self) -> float:
        return sum(entry.logprob for entry in self.logprobs) / len(self.logprobs) if self.logprobs else -math.inf


async def deltas_of(job: Job, answers: Sequence[GeneratedAnswer]) -> AsyncIterator[Delta]:
    """All deltas of a job, each added to its answer; the job is cancelled if the iteration ends early. Raises errors of
    the engine, and DeadlineError if the time was over before any token was generated."""
    remaining = len(answers)
    try:
        while remaining:
            delta = await job.deltas.get()
            if isinstance(delta, Exception):
                raise delta
            remaining -= delta.finish is not None
            answers[delta.index].add(delta)
            if not remaining and delta.finish == "deadline" and not any(answer.tokens for answer in answers):
                raise DeadlineError("nothing was generated in the time that the request may take; ask for less at once")
            yield delta
    finally:
        if remaining:
            job.cancel()


class AnswerSerializer(ABC):
    """Writes the answers to one request in one of OpenAI's forms."""

    prefix: ClassVar[str]
    """Of answers' ids."""
    chunk_object: ClassVar[str]

    def __init__(self, service: Service, body: GenerationBody, version: int, *, logprobs: bool) -> None:
        self.service, self.body, self.logprobs = service, body, logprobs
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"version-{version}",
        }

    @abstractmethod
    def answer(self, answers: Sequence[GeneratedAnswer], usage: Usage) -> dict[str, Any]:
        """The whole answer. usage: includes answers that were generated and are not returned."""

    async def stream(
        self, job: Job, answers: Sequence[GeneratedAnswer], on_end: Callable[[Usage], None]
    ) -> AsyncIterator[str]:
        """Server-sent events: a chunk for each delta, the last with the `wise` field; usage in a chunk of its own.
        `on_end` is called with the usage when all is generated. Raises as `deltas_of` does."""
        usage = bool(self.body.stream_options and self.body.stream_options.include_usage)
        base = {**self.head, "object": self.chunk_object} | ({"usage": None} if usage else {})
        started_answers: set[int] = set()

        def last_chunk(choice: dict[str, Any]) -> str:
            return event(base | {"choices": [choice], "wise": self.metadata(answers).model_dump()})

        async for delta in deltas_of(job, answers):
            choice = self.chunk(delta, delta.index not in started_answers)
            started_answers.add(delta.index)
            if choice is not None and all(answer.finish for answer in answers):
                yield await self.service.in_thread(last_chunk, choice)
            elif choice is not None:
                yield event(base | {"choices": [choice]})
        total = usage_of(answers)
        on_end(total)
        if usage:
            yield event(base | {"choices": [], "usage": total.model_dump()})
        yield "data: [DONE]\n\n"

    @abstractmethod
    def chunk(self, delta: Delta, first: bool) -> dict[str, Any] | None:
        """The choice of a chunk; None if there is nothing to send yet."""

    def choice(self, index: int, of: GeneratedAnswer | Delta, first: bool) -> dict[str, Any]:
        """The fields of a choice besides its text. first: it is the choice's first chunk."""
        finish = "length" if of.finish == "deadline" else of.finish
        return {"index": index, "finish_reason": finish, "logprobs": self._logprobs(index, of, first)}

    @abstractmethod
    def _logprobs(self, index: int, of: GeneratedAnswer | Delta, first: bool) -> dict[str, Any] | None: ...

    def metadata(self, answers: Sequence[GeneratedAnswer]) -> WiseMetadata:
        handle = answers[0].request.handle
        return WiseMetadata(
            version=handle.version,
            namespace=handle.namespace or "",
            edits=[active_edits(answer) for answer in answers],
            routes=token_routes(self.service, answers) if self.body.options.routes else None,
            finish_reasons=[answer.finish or "stop" for answer in answers],
        )


class CompletionSerializer(AnswerSerializer):
    prefix = "cmpl"
    chunk_object = "text_completion"

    def __init__(
        self,
        service: Service,
        body: CompletionRequest,
        version: int,
        echoes: Sequence[tuple[str, Sequence[int]]] | None,
    ) -> None:
        """echoes: for each answer its prompt's text and ids, if the answer begins with the prompt."""
        super().__init__(service, body, version, logprobs=body.logprobs is not None)
        self._echoes = echoes
        self._decoders: dict[int, codecs.IncrementalDecoder] = defaultdict(lambda: UTF8(errors="replace"))
        self._offsets: dict[int, int] = defaultdict(int)

    def answer(self, answers: Sequence[GeneratedAnswer], usage: Usage) -> dict[str, Any]:
        choices = [
            CompletionChoice(**self.choice(i, answer, True), text=self._echo(i) + answer.text)
            for i, answer in enumerate(answers)
        ]
        return Completion(**self.head, usage=usage, wise=self.metadata(answers), choices=choices).model_dump()

    def chunk(self, delta: Delta, first: bool) -> dict[str, Any] | None:
        text = (self._echo(delta.index) if first else "") + delta.text
        if not text and not delta.finish and not first and not delta.logprobs:
            return None
        return self.choice(delta.index, delta, first) | {"text": text}

    def _echo(self, index: int) -> str:
        return "" if self._echoes is None else self._echoes[index][0]

    def _logprobs(self, index: int, of: GeneratedAnswer | Delta, first: bool) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        text = self.service.token_text
        if first and self._echoes is not None:  # the first token follows no other, so it has no probability
            self._add(columns, index, self._echoes[index][1][0], None, None)
        for entry in (*of.prompt_logprobs, *of.logprobs):
            pairs = ((entry.token, entry.logprob), *entry.top)
            top = {text.text(token): _number(value) for token, value in sorted(pairs, key=lambda pair: -pair[1])}
            self._add(columns, index, entry.token, _number(entry.logprob), top)
        return columns

    def _add(
        self, columns: dict[str, list[Any]], index: int, token: int, logprob: float | None, top: dict[str, float] | None
    ) -> None:
        spelling = self.service.token_text
        offset = self._offsets[index]
        if not spelling.is_special(token):
            self._offsets[index] += len(self._decoders[index].decode(spelling.bytes(token)))
        for name, value in zip(columns, (spelling.text(token), logprob, top, offset), strict=True):
            columns[name].append(value)


class ChatSerializer(AnswerSerializer):
    prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatRequest, version: int) -> None:
        super().__init__(service, body, version, logprobs=bool(body.logprobs))
        self._calls = 1 if body.parallel_tool_calls is False else None
        """How many calls of an answer are returned; None returns all."""
        functions = [tool.function.name for tool in body.offered]
        self._parsers: dict[int, ToolCallParser] = defaultdict(lambda: ToolCallParser(functions))

    def answer(self, answers: Sequence[GeneratedAnswer], usage: Usage) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            text, calls = self.parts(index, answer)
            message = ChatMessage(content=None if calls and not text.strip() else text, tool_calls=calls or None)
            choices.append(ChatChoice(**self._choice(index, answer, True, calls), message=message))
        return ChatCompletion(**self.head, usage=usage, wise=self.metadata(answers), choices=choices).model_dump()

    def chunk(self, delta: Delta, first: bool) -> dict[str, Any] | None:
        text, calls = self.parts(delta.index, delta)
        content: dict[str, Any] = {"role": "assistant"} if first else {}
        if text or first:
            content["content"] = text
        if calls:
            content["tool_calls"] = [{"index": i} | call.model_dump() for i, call in enumerate(calls)]
        if not content and not delta.finish and not delta.logprobs:
            return None
        return self._choice(delta.index, delta, first, calls) | {"delta": content}

    def parts(self, index: int, of: GeneratedAnswer | Delta) -> tuple[str, list[Any]]:
        """The text and the calls of an answer, or those that a delta adds."""
        parser = self._parsers[index]
        text = parser.add(of.text)
        rest, calls = parser.end() if of.finish else ("", [])
        return text + rest, calls[: self._calls]

    def _choice(self, index: int, of: GeneratedAnswer | Delta, first: bool, calls: Sequence[Any]) -> dict[str, Any]:
        return self.choice(index, of, first) | ({"finish_reason": "tool_calls"} if calls else {})

    def _logprobs(self, index: int, of: GeneratedAnswer | Delta, first: bool) -> dict[str, Any] | None:
        content = self.token_logprobs(of)
        return None if content is None else {"content": content, "refusal": None}

    def token_logprobs(self, of: GeneratedAnswer | Delta) -> list[dict[str, Any]] | None:
        """The log-probabilities of an answer or of a delta; None if they were not asked for."""
        if not self.logprobs:
            return None
        return [
            self._entry(entry.token, entry.logprob) | {"top_logprobs": [self._entry(*pair) for pair in entry.top]}
            for entry in of.logprobs
        ]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.service.token_text
        return {"token": text.text(token), "logprob": _number(logprob), "bytes": list(text.bytes(token))}


def _number(value: float) -> float:
    return value if value > LOWEST else LOWEST


def usage_of(answers: Sequence[GeneratedAnswer]) -> Usage:
    """The usage of all answers; a prompt that several answers share counts once."""
    prompt = sum({id(answer.request.prompt): len(answer.request.prompt) for answer in answers}.values())
    new = sum(len(answer.tokens) for answer in answers)
    return Usage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


# -- fields of wise ---------------------------------------------------------------------------------


def active_edits(answer: GeneratedAnswer) -> list[ActiveEdit]:
    """The edits that were active, in the order of their first tokens, as the version has them."""
    positions: dict[str | None, list[int]] = {}
    for token in answer.routed:
        if token.open:
            positions.setdefault(token.edit, []).append(token.position)
    edits = []
    for edit_id, tokens in positions.items():
        edit = None if edit_id is None else answer.request.handle.state.by_id.get(edit_id)
        prompt, target = (edit.prompt, edit.target) if edit else (None, None)
        edits.append(ActiveEdit(id=edit_id, prompt=prompt, target=target, tokens=tokens))
    return edits


def token_routes(service: Service, answers: Sequence[GeneratedAnswer]) -> list[list[TokenRoute]]:
    """For each answer, the routes of all tokens of prompt and answer; the last token was never read: it has none."""
    routes_by_answer: list[list[TokenRoute]] = []
    prompt_texts: dict[int, list[str]] = {}
    for answer in answers:
        prompt = answer.request.prompt
        if id(prompt) not in prompt_texts:  # answers to one prompt share it: it is decoded once
            prompt_texts[id(prompt)] = _spellings(service, prompt)
        texts = [*prompt_texts[id(prompt)], *_spellings(service, [*prompt, *answer.tokens], len(prompt))]
        routes = {token.position: token for token in answer.routed}
        routes_by_answer.append([
            _route(routes.get(place), place=place, token=text, part="prompt" if place < len(prompt) else "answer")
            for place, text in enumerate(texts)
        ])
    return routes_by_answer


def _route(routed: RoutedToken | None, **fields: Any) -> TokenRoute:
    return TokenRoute(
        **fields,
        edit=routed.edit if routed else None,
        slot=routed.slot if routed and routed.open else None,
        score=finite(routed.score) if routed else None,
        threshold=finite(routed.threshold) if routed else None,
    )


def _spellings(service: Service, ids: Sequence[int], first: int = 0) -> list[str]:
    """The texts of the tokens from `first` on, each as part of the whole text, with its leading space if it has one."""
    decode, spellings = service.tokenizer.decode, []
    for position in range(first, len(ids)):
        before = list(ids[max(0, position - CONTEXT) : position])
        spellings.append(str(decode([*before, ids[position]]))[len(str(decode(before))) :])
    return spellings
