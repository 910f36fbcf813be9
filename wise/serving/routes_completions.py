"""Routes that answer: completions, chats, responses and models as OpenAI has them, and `/v1/ask`.

`/tokenize` and `/detokenize` are as vLLM has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from wise.edits import DEFAULT_NAMESPACE
from wise.serving import prompts, schemas_chat
from wise.serving import schemas_completions as schemas
from wise.serving.answers import (
    AnswerSerializer,
    ChatSerializer,
    CompletionSerializer,
    GeneratedAnswer,
    active_edits,
    deltas_of,
    token_routes,
    usage_of,
)
from wise.serving.auth import AuthorizedRoute, NamespaceReader
from wise.serving.clients import while_connected
from wise.serving.engines import GenerationRequest, MemoryHandle
from wise.serving.event_stream import event_stream
from wise.serving.http_errors import bad_request
from wise.serving.logs import note
from wise.serving.responses import ResponseAnswer, ResponseRequest, ResponseSerializer
from wise.serving.service import Service, ServiceDep
from wise.training.encoding import Question

router = APIRouter(prefix="/v1", tags=["answers"], route_class=AuthorizedRoute)
tokens = APIRouter(tags=["answers"], route_class=AuthorizedRoute)
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, its chunks.",
        "content": {"text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}}},
    }
}


@router.get("/models")
async def models(service: ServiceDep, _: NamespaceReader) -> schemas.ModelList:
    """The base's namespaces, each as a model; the default one first, since clients take the first."""
    named_handles = sorted(service.visible().items(), key=lambda pair: pair[1].namespace != DEFAULT_NAMESPACE)
    return schemas.ModelList(data=[_model(service, name, handle) for name, handle in named_handles])


@router.get("/models/{model:path}")
async def model(model: str, service: ServiceDep, _: NamespaceReader) -> schemas.Model:
    return _model(service, model, service.handle(model))


def _model(service: Service, name: str, handle: MemoryHandle) -> schemas.Model:
    return schemas.Model(
        id=name,
        edits=len(handle.state.edits),
        chat=service.encoder.template is not None,
        max_model_len=service.encoder.context,
    )


@router.post("/completions", response_model=schemas.Completion, responses=STREAM)
async def completions(
    body: schemas.CompletionRequest, request: Request, service: ServiceDep, _: NamespaceReader
) -> Response:
    """Continues a text. With `stream`, server-sent events as OpenAI sends them."""
    requests = await service.in_thread(prompts.completion_requests, service, body)
    echoes = await service.in_thread(prompts.echoed_prompts, service, body, requests) if body.echo else None
    serializer = CompletionSerializer(service, body, requests[0].handle.version, echoes)
    return await _answer(request, serializer, requests, body.best_of)


@router.post("/chat/completions", response_model=schemas_chat.ChatCompletion, responses=STREAM)
async def chat(body: schemas_chat.ChatRequest, request: Request, service: ServiceDep, _: NamespaceReader) -> Response:
    """Answers messages. If the model has no chat template, it reads their texts, one per line."""
    requests = await service.in_thread(prompts.chat_requests, service, body)
    return await _answer(request, ChatSerializer(service, body, requests[0].handle.version), requests)


@router.post("/responses", response_model=ResponseAnswer, responses=STREAM)
async def respond(body: ResponseRequest, request: Request, service: ServiceDep, _: NamespaceReader) -> Response:
    """Answers as OpenAI's Responses API does. Nothing is stored: `input` is the whole conversation."""
    requests = await service.in_thread(prompts.chat_requests, service, body.chat, "input")
    return await _answer(request, ResponseSerializer(service, body, requests[0].handle.version), requests)


@router.post("/ask", response_model=schemas.AskAnswer)
async def ask(body: schemas.AskRequest, request: Request, service: ServiceDep, _: NamespaceReader) -> Response:
    """Greedy answers to the model's own stop, without and with the edits of one version."""
    questions, requests = await service.in_thread(prompts.ask_requests, service, body)
    answers = await _generate(service, request, requests, None)
    _note(requests[-1].handle.version, usage_of(answers))
    return await service.in_thread(_ask_response, service, questions, answers)


def _ask_response(service: Service, questions: Sequence[Question], answers: Sequence[GeneratedAnswer]) -> Response:
    """answers: to each question without edits, then with them."""
    edited = answers[1::2]
    handle = edited[0].request.handle
    asked_prompts = [
        schemas.AskedPrompt(
            prompt=question.text,
            before=service.encoder.answer(before.tokens, chat=question.chat),
            after=service.encoder.answer(after.tokens, chat=question.chat),
            edits=active_edits(after),
            routes=routes,
        )
        for question, before, after, routes in zip(
            questions, answers[::2], edited, token_routes(service, edited), strict=True
        )
    ]
    answer = schemas.AskAnswer(version=handle.version, namespace=handle.namespace or "", answers=asked_prompts)
    return JSONResponse(answer.model_dump())


@tokens.post("/tokenize")
async def tokenize(
    body: schemas_chat.TokenizeRequest, service: ServiceDep, _: NamespaceReader
) -> schemas_chat.TokenizeAnswer:
    """The ids of a text, or of messages up to where the answer begins."""
    service.namespace(body.model)
    ids = await service.in_thread(_token_ids, service, body)
    token_texts = [service.token_text.text(token) for token in ids] if body.return_token_strs else None
    return schemas_chat.TokenizeAnswer(
        count=len(ids), max_model_len=service.encoder.context, tokens=ids, token_strs=token_texts
    )


def _token_ids(service: Service, body: schemas_chat.TokenizeRequest) -> list[int]:
    if body.messages is not None:
        return prompts.chat_ids(service, body.messages, body.tools or ())
    return prompts.text_ids(service, body.prompt or "", "prompt", special=body.add_special_tokens)


@tokens.post("/detokenize")
async def detokenize(
    body: schemas_chat.DetokenizeRequest, service: ServiceDep, _: NamespaceReader
) -> schemas_chat.DetokenizeAnswer:
    """The text of ids, special tokens included."""
    service.namespace(body.model)
    size = len(service.tokenizer)
    if max(body.tokens, default=0) >= size:
        raise bad_request(f"tokens: {max(body.tokens)} is not in the vocabulary of {size}", "tokens")
    text = await service.in_thread(service.tokenizer.decode, body.tokens)
    return schemas_chat.DetokenizeAnswer(prompt=str(text))


async def _answer(
    request: Request, serializer: AnswerSerializer, requests: Sequence[GenerationRequest], best_of: int | None = None
) -> Response:
    """best_of: answers that are generated to each prompt, of which the best `n` are returned."""
    service, body, version = serializer.service, serializer.body, requests[0].handle.version
    headers = {"X-Wise-Version": str(version)}
    if body.stream:
        job = service.submit(requests, body.options.deadline)  # before the answer begins: errors keep their status
        answers = [GeneratedAnswer(generation) for generation in requests]
        events = serializer.stream(job, answers, partial(_note, version))
        return event_stream(events, request.state.access, headers)
    answers = await _generate(service, request, requests, body.options.deadline)
    usage = usage_of(answers)
    _note(version, usage)
    best = answers if best_of is None else _best(answers, best_of, body.n or 1)
    return await service.in_thread(lambda: JSONResponse(serializer.answer(best, usage), headers=headers))


def _best(answers: Sequence[GeneratedAnswer], each: int, n: int) -> list[GeneratedAnswer]:
    """Of each prompt's answers those with the highest mean logprob."""
    groups = [answers[i : i + each] for i in range(0, len(answers), each)]
    return [answer for group in groups for answer in sorted(group, key=lambda answer: -answer.mean_logprob)[:n]]


def _note(version: int, usage: schemas.Usage) -> None:
    """For the line of the log."""
    note(version=version, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


async def _generate(
    service: Service, request: Request, requests: Sequence[GenerationRequest], seconds: float | None
) -> list[GeneratedAnswer]:
    """The complete answers; cancelled when the client leaves."""
    job = service.submit(requests, seconds)
    answers = [GeneratedAnswer(generation) for generation in requests]

    async def collect() -> None:
        async for _ in deltas_of(job, answers):
            pass

    await while_connected(request, collect())
    return answers
