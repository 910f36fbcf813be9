"""`/v1/edits` in vLLM's own server: an endpoint plug-in of vLLM (`vllm.endpoint_plugins`).

Edits go into the store that `EditingMiddleware` follows; a `wise serve` or `wise stream` on the same store trains them.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.routing import Route

from wise.edits import DEFAULT_NAMESPACE
from wise.errors import ConfigError
from wise.memory.state import MemoryState
from wise.memory.store.store import open_reader
from wise.router.chat_template import ChatTemplate
from wise.serving import http_errors, routes_edits, settings
from wise.serving.auth import Tokens
from wise.serving.engines import MemoryHandle
from wise.serving.follower import Listener, ServedVersion
from wise.serving.http_errors import ERRORS, unavailable
from wise.serving.logs import log_as_json
from wise.serving.metrics import Metrics
from wise.serving.middleware import RequestMiddleware
from wise.serving.store_service import StoreService
from wise.training.encoding import Encoder
from wise.vllm.middleware import CLIENT, store_place

METHODS = ("GET", "POST", "PUT", "DELETE")
"""Of the routes of edits."""


class EditEndpoints:
    """The interface that vLLM prescribes for such a plug-in."""

    name = "wise"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes behind those of the server. They keep their own errors, and the server keeps its own."""
        http_errors.install(self._app)
        self._app.include_router(routes_edits.router, responses=ERRORS)
        app.router.routes.append(Route("/v1/edits{rest:path}", self._app, methods=METHODS))

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Raises ConfigError if no store or no token is named, or StoreError if there is no such store."""
        place = store_place()
        model = engine_client.vllm_config.model_config.model
        service_settings = settings.load(None, {"model": model, "name": _name(args)})
        log_as_json(service_settings.log_level, service_settings.audit)
        encoder, tokens = _encoder(engine_client), _tokens(service_settings, args)
        service = StoreService(service_settings, store=open_reader(place), tokens=tokens, encoder=encoder)
        service.follower = ServedStore(state)
        self._app.state.service = service
        self._app.add_middleware(RequestMiddleware, metrics=Metrics(), settings=service_settings)


class ServedStore:
    """The version with which vLLM's server answers, with the states of its memories, which the routes read."""

    def __init__(self, state: State) -> None:
        """state: of the server; the middleware stores its client there."""
        self._state = state
        self._built: ServedVersion | None = None

    @property
    def current(self) -> ServedVersion:
        """Raises HTTPError 503 if the server has no edits."""
        client = getattr(self._state, CLIENT, None)
        if client is None:
            raise unavailable("the server runs without --middleware wise.vllm.middleware.EditingMiddleware: give it")
        version, memories = client.served
        if self._built is None or self._built.version != version:
            states = {DEFAULT_NAMESPACE: MemoryState()} | {name: memory.state for (_, name), memory in memories.items()}
            handles = {name: MemoryHandle(version=version, namespace=name, state=one) for name, one in states.items()}
            self._built = ServedVersion(version=version, edits={}, handles=handles)
        return self._built

    def listen(self) -> Listener:
        """A listener that is never woken: routes that wait look again after a while."""
        return Listener(set())


def _name(args: Namespace) -> str:
    names: list[str] = args.served_model_name or []
    return names[0] if names else args.model


def _tokens(service_settings: settings.Settings, args: Namespace) -> Tokens:
    keys = args.api_key or [key for key in [os.environ.get("VLLM_API_KEY")] if key]
    if service_settings.tokens and keys:
        raise ConfigError(
            "WISE_TOKENS is set and the server has an API key, which it wants in the place of a token; give one of both"
        )
    if service_settings.tokens:
        return Tokens.read(service_settings.tokens)
    if not keys:
        raise ConfigError(
            "who may edit? Give the server --api-key, whose holder may, or set WISE_TOKENS to a file of `wise token`"
        )
    return Tokens.of_owner(*keys)


def _encoder(client: Any) -> Encoder:
    """The encoder that checks an edit before it is accepted; the editor, which has the base, checks it again."""
    tokenizer = client.get_tokenizer()
    template = ChatTemplate.learn(tokenizer)
    return Encoder(
        tokenizer=tokenizer,
        bos=(),
        terminator=(),
        stops=frozenset({tokenizer.eos_token_id} - {None}),
        context=client.vllm_config.model_config.max_model_len,
        template=template,
        in_chat=template is not None,
    )
