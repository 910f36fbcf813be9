"""From the bodies of requests to what the engine generates: prompts as token ids, within the limits.

All of this may take long, since it tokenizes texts of up to a megabyte and compiles schemas. It runs in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from wise.errors import ConfigError, EditError
from wise.router.chat_template import conversation_ids, conversation_text
from wise.serving.engines import GenerationRequest, MemoryHandle
from wise.serving.http_errors import bad_request
from wise.serving.schemas_chat import ChatRequest, Message, Tool
from wise.serving.schemas_completions import AskRequest, CompletionRequest, GenerationBody
from wise.serving.service import Service
from wise.serving.tool_calls import call_schema
from wise.training.encoding import Question

COMPLETION_TOKENS = 16
"""OpenAI's own default."""
CHARACTERS = 8
"""A text of more than so many characters for each token of the context is tokenized in parts, each four times longer
than the last."""
SEAM = 16
"""Tokens by which a part alone may be longer than within its text."""
LONGEST_SCHEMA = 120_000
"""Characters of a JSON schema. One of a megabyte takes seconds to compile, in one of the few threads of prompts."""
AS_GIVEN = {"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"}
"""Fields of a body that the engine takes as they are."""


def completion_requests(service: Service, body: CompletionRequest) -> list[GenerationRequest]:
    """The answers to each prompt. Raises HTTPError for what the model cannot read or the service does not take."""
    check_count(service, "prompt", len(body.prompts))
    handle = service.handle(body.model)  # once: a version may go live while the prompts are tokenized
    limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    count = body.best_of or body.n or 1
    ranked = count > (body.n or 1)  # by their logprobs
    top = 0 if body.logprobs is None and ranked else body.logprobs
    fields: dict[str, Any] = {"top_logprobs": top, "prompt_logprobs": body.logprobs if body.echo else None}
    ids = (text_ids(service, prompt, "prompt") if isinstance(prompt, str) else prompt for prompt in body.prompts)
    return _requests(service, handle, body, ids, "prompt", limit=limit, count=count, **fields)


def echoed_prompts(
    service: Service, body: CompletionRequest, requests: Sequence[GenerationRequest]
) -> list[tuple[str, Sequence[int]]]:
    """The text and the ids of the prompt of each answer that is given."""
    echoes: list[tuple[str, Sequence[int]]] = []
    for text, request in zip(body.prompts, requests[:: len(requests) // len(body.prompts)], strict=True):
        ids = list(request.prompt)
        decoded = text if isinstance(text, str) else service.tokenizer.decode(ids, skip_special_tokens=True)
        echoes += [(str(decoded), ids)] * (body.n or 1)
    return echoes


def chat_requests(service: Service, body: ChatRequest, param: str = "messages") -> list[GenerationRequest]:
    """The answers to a conversation, which the request gives as `param`. Raises as `completion_requests` does."""
    return _requests(
        service,
        service.handle(body.model),
        body,
        [chat_ids(service, body.messages, body.offered, param)],
        param,
        limit=body.max_completion_tokens or body.max_tokens,
        count=body.n or 1,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=call_schema(body.forced) if body.forced else None,
    )


def ask_requests(service: Service, body: AskRequest) -> tuple[list[Question], list[GenerationRequest]]:
    """The questions, and for each its answer without edits and with them. Raises as `completion_requests` does."""
    check_count(service, "prompts", len(body.prompts))
    handle = service.handle(body.model)
    base = MemoryHandle(version=handle.version, namespace=None)
    questions, requests = [], []
    for place, prompt in enumerate(body.prompts):
        param = f"prompts.{place}"
        text = prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt)
        _check_length(service, text, param)
        try:
            content = prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]
            question = service.encoder.question(content, chat=body.chat)
        except (ConfigError, EditError) as error:
            raise bad_request(f"{param}: {error}"[:500], param) from error
        questions.append(question)
        room = _room(service, question.ids, body.max_tokens, param)
        requests += [
            GenerationRequest(prompt=question.ids, handle=memory, max_new_tokens=room, trace=True)
            for memory in (base, handle)
        ]
    return questions, requests


def check_count(service: Service, param: str, count: int) -> None:
    """Raises HTTPError for more prompts than are taken at once."""
    limit = service.settings.prompt_limit
    if count > limit:
        raise bad_request(f"{param}: {count} prompts were given and {limit} are taken at once", param)


def text_ids(service: Service, text: str, param: str, *, special: bool = True) -> list[int]:
    """Ids of a text. special: it begins as the model's texts begin. Raises HTTPError if it does not fit the context."""
    _check_length(service, text, param)
    return service.encoder.prompt(text) if special else service.tokenizer(text, add_special_tokens=False)["input_ids"]


def chat_ids(
    service: Service, messages: Sequence[Message], tools: Sequence[Tool], param: str = "messages"
) -> list[int]:
    """Ids of a conversation, up to where its answer begins. Without a chat template: of its texts, one per line.

    Raises HTTPError if it does not fit the context, or if the template does not take it.
    """
    tokenizer = service.tokenizer
    if tokenizer.chat_template is None:
        if tools:
            raise bad_request("tools: this model has no chat template that could be given them", "tools")
        return text_ids(service, "\n".join(message.text for message in messages), param)
    template_messages = [message.for_template() for message in messages]
    schemas = [tool.model_dump(exclude_none=True) for tool in tools]
    try:
        text = conversation_text(tokenizer, template_messages, schemas)
        takes_tools = not tools or text != conversation_text(tokenizer, template_messages)
    except Exception as error:  # what a model's own template raises
        raise bad_request(f"{param}: the model's chat template refuses them: {error}"[:500], param) from error
    if not takes_tools:
        raise bad_request("tools: the chat template of this model does not take tools", "tools")
    _check_length(service, text, param)
    return conversation_ids(tokenizer, template_messages, schemas)  # the very ids that edits are verified with


def _check_length(service: Service, text: str, param: str) -> None:
    """Raises HTTPError for a text that cannot fit the context, without tokenizing much more of it than would fit."""
    context = service.encoder.context
    fits, part = len(text) <= context * service.token_text.longest, CHARACTERS * context
    while fits and part < len(text):
        ids = service.tokenizer(text[:part], add_special_tokens=False)["input_ids"]
        fits, part = len(ids) <= context + SEAM, 4 * part
    if not fits:
        raise bad_request(f"{param}: {len(text)} characters do not fit the context of {context} tokens", param)


def _requests(
    service: Service,
    handle: MemoryHandle,
    body: GenerationBody,
    prompts: Iterable[Sequence[int]],
    param: str,
    *,
    limit: int | None,
    count: int,
    json_schema: str | None = None,
    **fields: Any,
) -> list[GenerationRequest]:
    """limit: tokens of an answer; None allows as many as there is room for. count: answers to each prompt. fields:
    other fields of a request."""
    most = service.settings.answer_limit
    if count > most:
        raise bad_request(f"n: {count} was given and {most} answers are given at once", "n")
    schema = json_schema or (body.response_format.schema_text if body.response_format else None)
    _check_schema(service, schema, "response_format" if json_schema is None else "tools")
    shared: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": max(0, body.top_k or 0),
        "logit_bias": _biases(service, body),
        "json_schema": schema,
        "stops": body.stops,
        "trace": body.options.routes,
        **body.model_dump(include=AS_GIVEN, exclude_none=True),
        **fields,
    }
    seeds = [None if body.seed is None else (body.seed + i) % 2**63 for i in range(count)]
    requests: list[GenerationRequest] = []
    for ids in prompts:
        room, prompt = _room(service, ids, limit, param), tuple(ids)
        requests += [
            GenerationRequest(prompt=prompt, handle=handle, max_new_tokens=room, seed=seed, **shared) for seed in seeds
        ]
    return requests


def _check_schema(service: Service, schema: str | None, param: str) -> None:
    if schema is not None:
        if len(schema) > LONGEST_SCHEMA:
            raise bad_request(f"{param}: a schema of {len(schema)} characters; {LONGEST_SCHEMA} are compiled", param)
        try:
            service.grammars.matcher(schema)
        except ConfigError as error:
            raise bad_request(f"{param}: {error}"[:500], param) from error


def _biases(service: Service, body: GenerationBody) -> dict[int, float]:
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    size = len(service.tokenizer)
    if biases and max(biases) >= size:
        raise bad_request(f"logit_bias: token {max(biases)} is not in the vocabulary of {size}", "logit_bias")
    return biases


def _room(service: Service, prompt: Sequence[int], limit: int | None, param: str) -> int:
    """Tokens that an answer may have. Raises HTTPError if the model cannot read that much."""
    context, size = service.encoder.context, len(service.tokenizer)
    if not prompt:
        raise bad_request(f"{param}: has no tokens; give at least one", param)
    if max(prompt) >= size:
        raise bad_request(f"{param}: token {max(prompt)} is not in the vocabulary of {size}", param)
    room, least = context - len(prompt), 1 if limit is None else limit
    prefix = f"{param}: {len(prompt)} tokens and"
    if least > room:
        raise bad_request(f"{prefix} an answer of {least} do not fit the context of {context}", param)
    longest = service.settings.cache_tokens
    if len(prompt) + least > longest:
        raise bad_request(f"{prefix} the answer are more than the {longest} that are kept", param)
    return min(room, longest - len(prompt)) if limit is None else limit
