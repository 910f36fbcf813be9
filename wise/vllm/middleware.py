"""Middleware of vLLM's own server: `vllm serve MODEL --middleware wise.vllm.middleware.EditingMiddleware`.

It serves the newest version of the store at `WISE_STORE`; the header `X-Wise-Namespace` names a namespace. An answer
has a field `wise` with its version and the edits that were active; a stream has it in an event before `[DONE]`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any
from unicodedata import normalize

from starlette.datastructures import Headers, MutableHeaders

from wise.edits import DEFAULT_NAMESPACE
from wise.errors import ConfigError
from wise.vllm.edited_client import EditedClient, RequestMemory, request_memory

STORE = "WISE_STORE"
"""Environment variable: the store's folder, or its postgresql:// URL."""
NAMESPACE = "X-Wise-Namespace"
CLIENT = "wise_client"
"""Name of the `EditedClient` in the state of the server."""
DONE = b"data: [DONE]"
HEAD = ("id", "object", "created", "model")
"""Fields that the events of a stream have in common."""
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class EditingMiddleware:
    """Starts and ends with the server; the server does not start if edits would have no effect."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._client: EditedClient | None = None

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, partial(self._lifespan, scope["app"].state, send))
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _lifespan(self, state: Any, send: Send, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            store = store_place()
            if state.args.chat_template:
                raise ConfigError("--chat-template: chats are known by the tokenizer's own template; put it there")
            self._client = EditedClient.open(state.engine_client, store)
            await self._client.start()  # the server reports an error of this, and ends
            setattr(state, CLIENT, self._client)
        elif self._client is not None:
            self._client.close()
        await send(message)

    async def _request(self, scope: Message, receive: Any, send: Send) -> None:
        with ExitStack() as exit_stack:
            request = RequestMemory(_namespace(Headers(scope=scope)), exit_stack)
            token = request_memory.set(request)
            try:
                await self._app(scope, receive, _Answer(send, request))
            finally:
                request_memory.reset(token)
                request.exit_stack = None


def store_place() -> str:
    """Raises ConfigError if the environment names no store."""
    place = os.environ.get(STORE)
    if not place:
        raise ConfigError(f"{STORE} is not set: the folder of a store was expected, or its URL")
    return place


def _namespace(headers: Headers) -> str:
    """The namespace in its stored form. A header is read as Latin-1, and clients send non-ASCII letters as UTF-8."""
    name = headers.get(NAMESPACE, DEFAULT_NAMESPACE)
    with suppress(UnicodeDecodeError):  # a client that sends Latin-1
        name = name.encode("latin-1").decode()
    return normalize("NFC", name)


class _Answer:
    def __init__(self, send: Send, request: RequestMemory) -> None:
        self._send, self._request = send, request
        self._start: Message | None = None
        """The start of an answer in JSON, delayed because the answer's length changes."""
        self._body = b""
        self._head: dict[str, Any] = {}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if kind.startswith("application/json"):
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            message["body"] = self._with_edits()
            headers = MutableHeaders(raw=self._start["headers"])
            headers["content-length"] = str(len(message["body"]))
            await self._send(self._start)
        elif self._request.answers:
            message["body"] = self._with_last_event(message.get("body", b""))
        await self._send(message)

    def _with_edits(self) -> bytes:
        if not self._request.answers:
            return self._body
        answer = json.loads(self._body)
        if not isinstance(answer, dict) or "error" in answer:
            return self._body
        return json.dumps(answer | {"wise": self._request.to_dict()}, ensure_ascii=False).encode()

    def _with_last_event(self, body: bytes) -> bytes:
        if not self._head and body.startswith(b"data: {"):
            first = json.loads(body[6 : body.index(b"\n\n")])
            self._head = {name: first[name] for name in HEAD if name in first}
        if not body.startswith(DONE):  # vLLM sends it by itself
            return body
        event = json.dumps({**self._head, "choices": [], "wise": self._request.to_dict()}, ensure_ascii=False)
        return f"data: {event}\n\n".encode() + body
