"""The application and the server that runs it: the parts are built from the settings, and wired to their routes."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

import wise
from wise.errors import ConfigError
from wise.loading import load_model
from wise.memory.store.store import open_reader
from wise.model import wrap
from wise.serving import http_errors, routes_admin, routes_completions, routes_edits, routes_files, routes_versions
from wise.serving.auth import Tokens, new_token
from wise.serving.connections import BACKLOG, Connections, LimitedProtocol
from wise.serving.editor_process import editor_process
from wise.serving.http_errors import ERRORS
from wise.serving.middleware import RequestMiddleware
from wise.serving.service import LEAST_SECONDS_TO_END, Service
from wise.serving.settings import Settings, without_effect

logger = logging.getLogger(__name__)

KEEP_ALIVE = 30
"""Seconds of silence between two requests after which a connection is closed."""
RECEIVED = 65_536
"""Bytes of a connection that the system holds before they are read; what strangers send takes no more."""
SWITCH_INTERVAL = 0.001
"""Seconds that a thread keeps the interpreter: engine and event loop must not wait long for each other."""


def build_app(service: Service) -> FastAPI:
    """The service, which was started, as an ASGI application, which ends it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    app = FastAPI(
        title="wise",
        version=wise.__version__,
        description="Completions from a model whose facts are edited while it serves.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would believe the request's `Host`
    )
    app.state.service = service
    http_errors.install(app)
    for part in (routes_completions, routes_edits, routes_files, routes_versions):
        app.include_router(part.router, responses=ERRORS)
    app.include_router(routes_completions.tokens, responses=ERRORS)
    app.include_router(routes_admin.router, responses={503: ERRORS[503]})
    app.include_router(routes_admin.console)
    settings = service.settings
    app.add_middleware(RequestMiddleware, metrics=service.metrics, settings=settings)
    if settings.cors_origins:  # outermost, so that errors have its headers too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "X-Wise-Version", "Retry-After"],
        )
    _remove_422(app)
    return app


def _remove_422(app: FastAPI) -> None:
    """Removes FastAPI's own error for bad input from the schema: here it is a 400, like all errors in one shape."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


class Server(uvicorn.Server):
    """Starts and serves one service. It begins the service's shutdown at the signal, and not when the last answer is
    finished. A failed start raises its error, which uvicorn would log as a traceback."""

    def __init__(self, service: Service, on_start: Callable[[], None] = lambda: None) -> None:
        """on_start: called when the port accepts connections."""
        self.service, self._on_start = service, on_start
        settings = service.settings
        self.connections = Connections(settings)
        super().__init__(
            uvicorn.Config(
                build_app(service),
                http=partial(LimitedProtocol, self.connections),  # type: ignore[arg-type]  # called as the class is
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nothing here depends on what a proxy says of the client
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout - LEAST_SECONDS_TO_END)),
                timeout_keep_alive=KEEP_ALIVE,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises as `Service.start` does."""
        self.service.start()
        await super().startup(sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.drain()
        super().handle_exit(sig, frame)


def run(settings: Settings, show: Callable[[str, str | None], None]) -> None:
    """Serves until a signal. Once the port accepts connections, `show` is called with the URL, and the token of this
    run if one was made. Raises ConfigError, StoreError or StartError if it cannot be served, before anything is."""
    token = None if settings.tokens else new_token()
    service = build_service(settings, token)
    with bound_socket(settings) as listener:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = Server(service, on_start=lambda: show(url, token))
        signal.signal(signal.SIGTERM, server.handle_exit)  # until uvicorn listens, and when it raises it once more
        server.run(sockets=[listener])
    gc.freeze()  # else the interpreter searches a million objects for garbage at its end, for seconds


def build_service(settings: Settings, token: str | None) -> Service:
    """The service, not started; it changes settings of the whole process. token: of the owner, without a file of
    tokens."""
    settings.served_name()  # raises before the model is loaded
    settings.placement()
    sys.setswitchinterval(SWITCH_INTERVAL)
    torch.set_num_threads(1)  # the engine's thread takes `threads`
    tokens = Tokens.read(settings.tokens) if settings.tokens else Tokens.of_owner(token or new_token())
    canaries = _canaries(settings)
    with ExitStack() as on_error:
        store = on_error.enter_context(open_reader(settings.store))
        stored = store.read().config
        config = settings.wise_config(stored)  # settings without an effect are refused or logged before the model loads
        for warning in without_effect(settings, stored):
            logger.warning("%s", warning)
        logger.info("loading %s: a minute or more if the model is large", settings.model or "the demo model")
        model = wrap(*load_model(settings.model, placement=settings.placement()), config)
        editor = partial(editor_process, settings)
        service = Service(settings, model=model, store=store, tokens=tokens, editor=editor, canaries=canaries)
        on_error.pop_all()
    return service


def _canaries(settings: Settings) -> list[str]:
    try:
        text = "" if settings.canaries is None else settings.canaries.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"canaries {settings.canaries}: {error}; a text file was expected") from error
    return [line for line in text.splitlines() if line.strip()]


def bound_socket(settings: Settings) -> socket.socket:
    """The socket to listen on. Raises ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sets TCP_NODELAY where the protocol is given: otherwise each answer waits for the client's acknowledgement
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"{settings.host}:{settings.port} cannot be listened on: {error}; give another") from error
    return listener
