"""Routes that answer: `/v1/completions`, `/v1/chat/completions` and `/v1/models` as OpenAI has them, and `/v1/ask`."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from wise.errors import ConfigError, EditError
from wise.serving import schemas
from wise.serving.auth import AuthorizedRoute, NamespaceReader
from wise.serving.engines import Delta, FinishReason, GenerationRequest, Job, Logprobs, MemoryHandle, RoutedToken
from wise.serving.engines.sequence import CONTEXT
from wise.serving.event_stream import error_event, event, event_stream
from wise.serving.http_errors import bad_request, http_error
from wise.serving.service import Served, Service
from wise.training.encoding import Question

router = APIRouter(prefix="/v1", tags=["answers"], route_class=AuthorizedRoute)
COMPLETION_TOKENS = 16
"""OpenAI's own default."""
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, its chunks.",
        "content": {"text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}}},
    }
}


@router.get("/models")
async def models(service: Served, _: NamespaceReader) -> schemas.ModelList:
    """The base's namespaces, each as a model."""
    found = service.visible(service.follower.current)
    data = [schemas.Model(id=name, edits=len(handle.state.edits)) for name, handle in found.items()]
    return schemas.ModelList(data=data)


@router.get("/models/{model:path}")
async def model(model: str, service: Served, _: NamespaceReader) -> schemas.Model:
    return schemas.Model(id=model, edits=len(service.handle(model).state.edits))


@router.post("/completions", response_model=schemas.Completion, responses=STREAM)
async def completions(
    body: schemas.CompletionRequest, request: Request, service: Served, _: NamespaceReader
) -> Response:
    """Continues a text. With `stream`, server-sent events as OpenAI sends them."""
    requests = [
        one
        for prompt in _prompts(service, body)
        for one in _requests(service, body, prompt, "prompt", body.max_tokens or COMPLETION_TOKENS, body.logprobs)
    ]
    return await _answer(request, body, requests, _CompletionWriter(service, body.logprobs is not None))


@router.post("/chat/completions", response_model=schemas.ChatCompletion, responses=STREAM)
async def chat(body: schemas.ChatRequest, request: Request, service: Served, _: NamespaceReader) -> Response:
    """Answers messages. If the model has no chat template, it reads their texts, one per line."""
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs: goes with logprobs=true", "top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise bad_request("max_tokens: is max_completion_tokens by an older name; give one of them", "max_tokens")
    top = (body.top_logprobs or 0) if body.logprobs else None
    limit = body.max_completion_tokens or body.max_tokens
    requests = _requests(service, body, _chat_prompt(service, body), "messages", limit, top)
    return await _answer(request, body, requests, _ChatWriter(service, bool(body.logprobs)))


@router.post("/ask")
async def ask(body: schemas.AskRequest, request: Request, service: Served, _: NamespaceReader) -> schemas.AskAnswer:
    """Greedy answers to the model's own stop, without and with the edits of one version."""
    _check_count(service, "prompts", len(body.prompts))
    handle = service.handle(body.model)
    base = MemoryHandle(version=handle.version, namespace=None)
    questions = _questions(service, body)
    requests = []
    for question in questions:
        room = _room(service, question.ids, body.max_tokens, "prompts")
        for one in (base, handle):
            requests.append(GenerationRequest(prompt=question.ids, handle=one, max_new_tokens=room, trace=True))
    answers = await _generate(service, request, requests, None)
    asked = [
        schemas.AskedPrompt(
            prompt=question.text,
            before=service.encoder.answer(before.tokens, chat=question.chat),
            after=service.encoder.answer(after.tokens, chat=question.chat),
            edits=_active_edits(after),
            routes=_token_routes(service, after),
        )
        for question, before, after in zip(questions, answers[::2], answers[1::2], strict=True)
    ]
    return schemas.AskAnswer(version=handle.version, namespace=handle.namespace or "", answers=asked)


# -- from bodies to requests ------------------------------------------------------------------------


def _check_count(service: Service, param: str, count: int) -> None:
    limit = service.settings.prompt_limit
    if count > limit:
        raise bad_request(f"{param}: {count} prompts were given and {limit} are taken at once", param)


def _prompts(service: Service, body: schemas.CompletionRequest) -> list[list[int]]:
    given = body.prompt
    prompts: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    _check_count(service, "prompt", len(prompts))
    return [service.encoder.prompt(one) if isinstance(one, str) else list(one) for one in prompts]


def _chat_prompt(service: Service, body: schemas.ChatRequest) -> list[int]:
    if service.tokenizer.chat_template is None:
        return service.encoder.prompt("\n".join(message.text for message in body.messages))
    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    try:
        return service.encoder.turn(messages)  # the very ids that edits are verified with
    except Exception as error:  # what a model's own template raises
        raise bad_request(f"messages: the model's chat template refuses them: {error}"[:500], "messages") from error


def _questions(service: Service, body: schemas.AskRequest) -> list[Question]:
    """Raises HTTPError, naming the place, for a prompt that cannot be asked so."""
    found = []
    for place, prompt in enumerate(body.prompts):
        given = prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]
        try:
            found.append(service.encoder.question(given, chat=body.chat))
        except (ConfigError, EditError) as error:
            raise bad_request(f"prompts.{place}: {error}"[:500], f"prompts.{place}") from error
    return found


def _requests(
    service: Service,
    body: schemas.GenerationBody,
    prompt: Sequence[int],
    param: str,
    limit: int | None,
    top: int | None,
) -> list[GenerationRequest]:
    """The answers to one prompt. Raises HTTPError for what the model cannot read or the service does not take."""
    n = body.n or 1
    if n > service.settings.answer_limit:
        raise bad_request(f"n: {n} was given and {service.settings.answer_limit} answers are given at once", "n")
    room = _room(service, prompt, limit, param)
    handle = service.handle(body.model)
    return [
        GenerationRequest(
            prompt=tuple(prompt),
            handle=handle,
            max_new_tokens=room,
            temperature=body.temperature or 0.0,
            top_p=body.top_p or 1.0,
            seed=None if body.seed is None else body.seed + i,
            stops=body.stops,
            top_logprobs=top,
            trace=body.options.routes,
        )
        for i in range(n)
    ]


def _room(service: Service, prompt: Sequence[int], limit: int | None, param: str) -> int:
    """Tokens that an answer may have. Raises HTTPError if the model cannot read that much."""
    context, size = service.encoder.context, len(service.tokenizer)
    if not prompt:
        raise bad_request(f"{param}: has no tokens; give at least one", param)
    if max(prompt) >= size:
        raise bad_request(f"{param}: token {max(prompt)} is not in the vocabulary of {size}", param)
    room, wanted = context - len(prompt), limit or 1
    given = f"{param}: {len(prompt)} tokens and"
    if room < 1 or wanted > room:
        raise bad_request(f"{given} an answer of {wanted} do not fit the context of {context}", param)
    longest = service.settings.cache_tokens
    if len(prompt) + wanted > longest:
        raise bad_request(f"{given} the answer are more than the {longest} that are kept", param)
    return limit or min(room, longest - len(prompt))


# -- from deltas to answers -------------------------------------------------------------------------


@dataclass
class _Generated:
    """What was generated for one request."""

    request: GenerationRequest
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    routed: list[RoutedToken] = field(default_factory=list)
    finish: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.routed += delta.routed
        self.finish = delta.finish or self.finish


async def _deltas(job: Job, count: int) -> AsyncIterator[Delta]:
    """All deltas of a job of `count` answers. Raises what went wrong. If it is left early, the job is cancelled."""
    left = count
    try:
        while left:
            delta = await job.deltas.get()
            if isinstance(delta, Exception):
                raise delta
            left -= delta.finish is not None
            yield delta
    finally:
        job.cancelled = bool(left)


async def _generate(
    service: Service, request: Request, requests: Sequence[GenerationRequest], seconds: float | None
) -> list[_Generated]:
    """The complete answers; given up when the client leaves."""
    job = service.submit(requests, seconds)
    answers = [_Generated(one) for one in requests]

    async def collect() -> None:
        async for delta in _deltas(job, len(answers)):
            answers[delta.index].add(delta)

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        return answers
    finally:
        job.cancelled = job.cancelled or not work.done()
        work.cancel()
        leaving.cancel()


async def _answer(
    request: Request, body: schemas.GenerationBody, requests: list[GenerationRequest], writer: _Writer
) -> Response:
    service = writer.service
    version = requests[0].handle.version
    head = {
        "id": f"{writer.id}-{uuid4().hex}",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": f"version-{version}",
    }
    headers = {"X-Wise-Version": str(version)}
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options: goes with stream=true", "stream_options")
    if body.stream:
        job = service.submit(requests, body.options.deadline)  # before the answer begins: errors keep their status
        events = _stream(job, body, requests, writer, head)
        return event_stream(events, request.state.access, headers)
    answers = await _generate(service, request, requests, body.options.deadline)
    head |= {"usage": _usage(answers, body.n or 1), "wise": _metadata(service, answers, body.options.routes)}
    return JSONResponse(writer.answer(head, answers), headers=headers)


async def _stream(
    job: Job, body: schemas.GenerationBody, requests: list[GenerationRequest], writer: _Writer, head: dict[str, Any]
) -> AsyncIterator[str]:
    """Chunks; the last has the `wise` field and, if it was asked for, usage."""
    answers = [_Generated(one) for one in requests]
    usage = bool(body.stream_options and body.stream_options.include_usage)
    base = {**head, "object": writer.chunk_object} | ({"usage": None} if usage else {})
    try:
        async for delta in _deltas(job, len(answers)):
            answer = answers[delta.index]
            first = not answer.tokens
            answer.add(delta)
            if delta.text or delta.finish or first or delta.logprobs:
                yield event({**base, "choices": [writer.chunk(delta, first)]})
        metadata = _metadata(writer.service, answers, body.options.routes)
        last = {**base, "choices": [], "wise": metadata.model_dump()}
        yield event(last | ({"usage": _usage(answers, body.n or 1).model_dump()} if usage else {}))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is sent already: the error is an event
        yield error_event(http_error(error))


@dataclass(frozen=True)
class _Writer(ABC):
    """Writes answers in one of OpenAI's two forms."""

    service: Service
    logprobs: bool
    id: ClassVar[str]
    """The prefix of answers' ids."""
    chunk_object: ClassVar[str]

    def choice(self, index: int, of: _Generated | Delta) -> dict[str, Any]:
        """What a choice holds besides its text."""
        logprobs = self._logprobs(of.logprobs) if self.logprobs else None
        return {"index": index, "finish_reason": of.finish, "logprobs": logprobs}

    @abstractmethod
    def answer(self, head: dict[str, Any], answers: Sequence[_Generated]) -> dict[str, Any]: ...

    @abstractmethod
    def chunk(self, delta: Delta, first: bool) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, tokens: Sequence[Logprobs]) -> dict[str, Any]: ...

    def _token(self, token: int) -> str:
        return str(self.service.tokenizer.convert_ids_to_tokens(token))


class _CompletionWriter(_Writer):
    id = "cmpl"
    chunk_object = "text_completion"

    def answer(self, head: dict[str, Any], answers: Sequence[_Generated]) -> dict[str, Any]:
        choices = [schemas.CompletionChoice(**self.choice(i, one), text=one.text) for i, one in enumerate(answers)]
        return schemas.Completion(**head, choices=choices).model_dump()

    def chunk(self, delta: Delta, first: bool) -> dict[str, Any]:
        return self.choice(delta.index, delta) | {"text": delta.text}

    def _logprobs(self, tokens: Sequence[Logprobs]) -> dict[str, Any]:
        return {
            "tokens": [self._token(one.token) for one in tokens],
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [{self._token(token): value for token, value in one.top} for one in tokens],
            "text_offset": [],
        }


class _ChatWriter(_Writer):
    id = "chatcmpl"
    chunk_object = "chat.completion.chunk"

    def answer(self, head: dict[str, Any], answers: Sequence[_Generated]) -> dict[str, Any]:
        choices = [
            schemas.ChatChoice(**self.choice(i, one), message=schemas.ChatMessage(content=one.text))
            for i, one in enumerate(answers)
        ]
        return schemas.ChatCompletion(**head, choices=choices).model_dump()

    def chunk(self, delta: Delta, first: bool) -> dict[str, Any]:
        content = {"role": "assistant", "content": delta.text} if first else {"content": delta.text}
        return self.choice(delta.index, delta) | {"delta": content if delta.text or first else {}}

    def _logprobs(self, tokens: Sequence[Logprobs]) -> dict[str, Any]:
        content = [
            self._entry(one.token, one.logprob) | {"top_logprobs": [self._entry(*pair) for pair in one.top]}
            for one in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


# -- response metadata ------------------------------------------------------------------------------


def _metadata(service: Service, answers: Sequence[_Generated], routes: bool) -> schemas.WiseMetadata:
    handle = answers[0].request.handle
    return schemas.WiseMetadata(
        version=handle.version,
        namespace=handle.namespace or "",
        edits=[_active_edits(one) for one in answers],
        routes=[_token_routes(service, one) for one in answers] if routes else None,
    )


def _active_edits(answer: _Generated) -> list[schemas.ActiveEdit]:
    """The edits that were active, in the order in which they first were, as the version has them."""
    positions: dict[str | None, list[int]] = {}
    for one in answer.routed:
        if one.open:
            positions.setdefault(one.edit, []).append(one.position)
    known = {edit.id: edit for edit in answer.request.handle.state.edits} if positions else {}
    found = []
    for edit_id, tokens in positions.items():
        edit = None if edit_id is None else known.get(edit_id)
        prompt, target = (edit.prompt, edit.target) if edit else (None, None)
        found.append(schemas.ActiveEdit(id=edit_id, prompt=prompt, target=target, tokens=tokens))
    return found


def _token_routes(service: Service, answer: _Generated) -> list[schemas.TokenRoute]:
    """Every token of prompt and answer; the last one was never read, so it has no route."""
    by_position = {one.position: one for one in answer.routed}
    ids = [*answer.request.prompt, *answer.tokens]
    routes = []
    for position in range(len(ids)):
        one = by_position.get(position)
        routes.append(
            schemas.TokenRoute(
                place=position,
                token=_token_text(service, ids, position),
                part="prompt" if position < len(answer.request.prompt) else "answer",
                edit=one.edit if one and one.open else None,
                slot=one.slot if one and one.open else None,
                score=_finite(one.score) if one else None,
                threshold=_finite(one.threshold) if one else None,
            )
        )
    return routes


def _token_text(service: Service, ids: Sequence[int], position: int) -> str:
    """A token as it stands in its text, with the space before it if it brings one."""
    before = list(ids[max(0, position - CONTEXT) : position])
    text = str(service.tokenizer.decode([*before, ids[position]]))
    return text[len(str(service.tokenizer.decode(before))) :]


def _usage(answers: Sequence[_Generated], n: int) -> schemas.Usage:
    """n: answers that share a prompt."""
    prompt = sum(len(one.request.prompt) for one in answers[::n])
    new = sum(len(one.tokens) for one in answers)
    return schemas.Usage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
