"""`/v1/completions`, `/v1/chat/completions` and `/v1/models`, as OpenAI's clients call them."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from wise.serve.access import Reader, Served
from wise.serve.problems import body_of, invalid, problem_of
from wise.serve.row import Finish, Job, Piece, Wish
from wise.serve.sampling import Chances
from wise.serve.schemas import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Generation,
    Model,
    ModelList,
    WiseTold,
)
from wise.serve.service import Service
from wise.serve.told import Gathered, gathered, pieces, spoken_edits, token_routes, usage_of

router = APIRouter(prefix="/v1", tags=["answers"])
COMPLETION_TOKENS = 16
"""OpenAI's own default."""
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, its chunks.",
        "content": {"text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}}},
    }
}
NO_BUFFER = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get("/models")
async def models(service: Served, _: Reader) -> ModelList:
    """The base's namespaces, each a model."""
    edition = service.follower.current
    names = zip(service.model_names(edition), edition.voices.values(), strict=True)
    return ModelList(data=[Model(id=name, edits=len(voice.state.edits)) for name, voice in names])


@router.get("/models/{model}")
async def model(model: str, service: Served, _: Reader) -> Model:
    return Model(id=model, edits=len(service.voice(model).state.edits))


@router.post("/completions", response_model=Completion, responses=STREAM)
async def completions(body: CompletionRequest, request: Request, service: Served, _: Reader) -> Response:
    """Goes on with a text. With `stream`, server-sent events as OpenAI sends them."""
    wishes = [wish for prompt in _prompts(service, body) for wish in _wishes(service, body, prompt, body.logprobs)]
    return await _answered(service, request, body, wishes, _Texts(service, body.logprobs is not None))


@router.post("/chat/completions", response_model=ChatCompletion, responses=STREAM)
async def chat(body: ChatRequest, request: Request, service: Served, _: Reader) -> Response:
    """Answers messages; where the model has no chat template, their texts one under the other."""
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs: goes with logprobs=true", "top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid("max_tokens: is max_completion_tokens by an older name; give one of them", "max_tokens")
    top = (body.top_logprobs or 0) if body.logprobs else None
    wishes = _wishes(service, body, _chat_prompt(service, body), top)
    return await _answered(service, request, body, wishes, _Chats(service, bool(body.logprobs)))


# -- from bodies to wishes --------------------------------------------------------------------------


def _prompts(service: Service, body: CompletionRequest) -> list[list[int]]:
    given = body.prompt
    several: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    if len(several) > service.settings.prompt_limit:
        limit = service.settings.prompt_limit
        raise invalid(f"prompt: {len(several)} prompts were given and {limit} are taken at once", "prompt")
    return [service.encoder.prompt(one) if isinstance(one, str) else list(one) for one in several]


def _chat_prompt(service: Service, body: ChatRequest) -> list[int]:
    if service.tokenizer.chat_template is None:
        return service.encoder.prompt("\n".join(message.text for message in body.messages))
    told = [{"role": message.role, "content": message.text} for message in body.messages]
    try:
        return service.encoder.turn(told)  # the very ids that edits are verified with
    except Exception as error:  # what a model's own template raises
        raise invalid(f"messages: the model's chat template refuses them: {error}"[:500], "messages") from error


def _wishes(service: Service, body: Generation, prompt: Sequence[int], top: int | None) -> list[Wish]:
    """The answers to one prompt. Raises a Problem for what the model cannot read or the service does not take."""
    n = body.n or 1
    if n > service.settings.answer_limit:
        raise invalid(f"n: {n} was given and {service.settings.answer_limit} answers are given at once", "n")
    chat = isinstance(body, ChatRequest)
    limit = body.max_tokens if isinstance(body, CompletionRequest) else None
    if isinstance(body, ChatRequest):
        limit = body.max_completion_tokens or body.max_tokens
    if limit is None and not chat:
        limit = COMPLETION_TOKENS
    wanted = room_for(service, prompt, limit, "messages" if chat else "prompt")
    voice = service.voice(body.model)
    return [
        Wish(
            prompt=tuple(prompt),
            voice=voice,
            max_new_tokens=wanted,
            temperature=body.temperature or 0.0,
            top_p=body.top_p or 1.0,
            seed=None if body.seed is None else body.seed + i,
            stops=body.stops,
            top=top,
            trace=body.extras.routes,
        )
        for i in range(n)
    ]


def room_for(service: Service, prompt: Sequence[int], limit: int | None, param: str) -> int:
    """Tokens that an answer may have. Raises a Problem where the model cannot read that much."""
    context, size = service.encoder.context, len(service.tokenizer)
    if not prompt:
        raise invalid(f"{param}: has no tokens; give at least one", param)
    if max(prompt) >= size:
        raise invalid(f"{param}: token {max(prompt)} is not in the vocabulary of {size}", param)
    room = context - len(prompt)
    if room < 1 or (limit or 1) > room:
        raise invalid(
            f"{param}: {len(prompt)} tokens and an answer of {limit or 1} do not fit the context of {context}", param
        )
    longest = service.settings.cache_tokens
    if len(prompt) + (limit or 1) > longest:
        raise invalid(f"{param}: {len(prompt)} tokens and the answer are more than the {longest} that are kept", param)
    return limit or min(room, longest - len(prompt))


# -- from pieces to bodies --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form(ABC):
    """How answers of one kind are written."""

    service: Service
    logprobs: bool
    id: ClassVar[str]
    """What its ids begin with."""
    chunks: ClassVar[str]
    """What a chunk of its stream calls itself."""

    def whole(self, head: dict[str, Any], rows: Sequence[Gathered], n: int, routes: bool) -> dict[str, Any]:
        told = {"usage": usage_of(rows, n), "wise": wise_told(self.service, rows, routes)}
        choices = [(self._rest(i, row.finish, row.chances), row.text) for i, row in enumerate(rows)]
        return self._answer(head | told, choices)

    def chunk(self, piece: Piece, first: bool) -> dict[str, Any]:
        return self._rest(piece.row, piece.finish, piece.chances) | self._said(piece.text, first)

    def _rest(self, index: int, finish: Finish | None, chances: Sequence[Chances]) -> dict[str, Any]:
        """What a choice tells beside its text."""
        logprobs = self._logprobs(chances) if self.logprobs else None
        return {"index": index, "finish_reason": finish, "logprobs": logprobs}

    @abstractmethod
    def _answer(self, head: dict[str, Any], choices: Sequence[tuple[dict[str, Any], str]]) -> dict[str, Any]:
        """choices: what each tells, and its text."""

    @abstractmethod
    def _said(self, text: str, first: bool) -> dict[str, Any]:
        """A piece of text, in a chunk."""

    @abstractmethod
    def _logprobs(self, chances: Sequence[Chances]) -> dict[str, Any]: ...


class _Texts(_Form):
    id = "cmpl"
    chunks = "text_completion"

    def _answer(self, head: dict[str, Any], choices: Sequence[tuple[dict[str, Any], str]]) -> dict[str, Any]:
        return Completion(**head, choices=[CompletionChoice(**rest, text=text) for rest, text in choices]).model_dump()

    def _said(self, text: str, first: bool) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, chances: Sequence[Chances]) -> dict[str, Any]:
        written = self.service.tokenizer.convert_ids_to_tokens
        return {
            "tokens": [str(written(one.token)) for one in chances],
            "token_logprobs": [one.logprob for one in chances],
            "top_logprobs": [{str(written(token)): chance for token, chance in one.top} for one in chances],
            "text_offset": [],
        }


class _Chats(_Form):
    id = "chatcmpl"
    chunks = "chat.completion.chunk"

    def _answer(self, head: dict[str, Any], choices: Sequence[tuple[dict[str, Any], str]]) -> dict[str, Any]:
        made = [ChatChoice(**rest, message=ChatMessage(content=text)) for rest, text in choices]
        return ChatCompletion(**head, choices=made).model_dump()

    def _said(self, text: str, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return {"delta": delta if text or first else {}}

    def _logprobs(self, chances: Sequence[Chances]) -> dict[str, Any]:
        return {"content": [self._chance(one) for one in chances], "refusal": None}

    def _chance(self, one: Chances) -> dict[str, Any]:
        def told(token: int, chance: float) -> dict[str, Any]:
            text = str(self.service.tokenizer.convert_ids_to_tokens(token))
            return {"token": text, "logprob": chance, "bytes": list(text.encode())}

        return told(one.token, one.logprob) | {"top_logprobs": [told(token, chance) for token, chance in one.top]}


async def _answered(
    service: Service, request: Request, body: Generation, wishes: list[Wish], form: _Form
) -> Response:
    voice = wishes[0].voice
    head = {
        "id": f"{form.id}-{uuid4().hex}",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": f"version-{voice.version}",
    }
    headers = {"X-Wise-Version": str(voice.version)}
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options: goes with stream=true", "stream_options")
    if body.stream:
        job = service.submit(wishes, body.extras.deadline)  # before the answer begins: refusals keep their status
        events = _streamed(service, job, body, wishes, form, head)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers | NO_BUFFER)
    rows = await gathered(service, request, wishes, body.extras.deadline)
    return JSONResponse(form.whole(head, rows, body.n or 1, body.extras.routes), headers=headers)


async def _streamed(
    service: Service, job: Job, body: Generation, wishes: list[Wish], form: _Form, head: dict[str, Any]
) -> AsyncIterator[str]:
    """Chunks, the last with our `wise` field and, where it was asked for, usage."""
    rows = [Gathered(wish) for wish in wishes]
    usage = bool(body.stream_options and body.stream_options.include_usage)
    base = {**head, "object": form.chunks} | ({"usage": None} if usage else {})
    try:
        async for piece in pieces(job, len(rows)):
            row = rows[piece.row]
            first = not row.tokens
            row.add(piece)
            if piece.text or piece.finish or first or piece.chances:
                yield _event({**base, "choices": [form.chunk(piece, first)]})
        told = wise_told(service, rows, body.extras.routes).model_dump()
        if usage:
            yield _event({**base, "choices": [], "usage": usage_of(rows, body.n or 1).model_dump(), "wise": told})
        else:
            yield _event({**base, "choices": [], "wise": told})
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is sent already: the error is an event
        yield _event(body_of(problem_of(error)))


def wise_told(service: Service, rows: Sequence[Gathered], routes: bool) -> WiseTold:
    voice = rows[0].wish.voice
    return WiseTold(
        version=voice.version,
        namespace=voice.namespace or "",
        edits=[spoken_edits(service, row) for row in rows],
        routes=[token_routes(service, row) for row in rows] if routes else None,
    )


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n"
