"""Running the service: parts brought up, a port opened, signals heard."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import torch
import uvicorn

from wise.errors import ConfigError
from wise.ingest import open_reader
from wise.serve.app import build_app
from wise.serve.loading import config_of, editor_process, load_wrapped, model_name
from wise.serve.logs import set_up
from wise.serve.security import ADMIN, Holder, Tokens, digest_of, new_token
from wise.serve.service import Service
from wise.serve.settings import Settings

OWNER = "owner"
"""Holder of the one token that is made for a run without a file of them."""
SWITCH = 0.001
"""Seconds that a thread keeps the interpreter: the engine must not wait long for the event loop, nor it for her."""


class Server(uvicorn.Server):
    """Says that the service is about to end as soon as it is asked to, and not when the last answer is through."""

    service: Service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.draining.set()
        super().handle_exit(sig, frame)


def run(settings: Settings, show: Callable[[str, str | None], None]) -> None:
    """Serves until it is told to end. `show` is called with the URL, and the token of this run if one was made.

    Raises ConfigError or StoreError for what stands against it, before anything is served.
    """
    set_up(settings.audit)
    sys.setswitchinterval(SWITCH)
    torch.set_num_threads(settings.threads)
    token = None if settings.tokens else new_token()
    service = assembled(settings, token)
    listener = _listener(settings)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        build_app(service),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
        timeout_keep_alive=30,
    )
    server = Server(config)
    server.service = service
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more when all is over
    show(f"http://{f'[{host}]' if ':' in host else host}:{port}", token)
    server.run(sockets=[listener])


def assembled(settings: Settings, token: str | None) -> Service:
    """The service with all its parts, not started. token: of the owner, where there is no file of tokens."""
    name = model_name(settings)
    if settings.tokens:
        tokens = Tokens.read(settings.tokens)
    else:
        tokens = Tokens([(Holder(name=OWNER, scope=ADMIN), digest_of(token or new_token()))])
    canaries = _canaries(settings)
    store = open_reader(settings.store)
    try:
        model = load_wrapped(settings, config_of(store, settings))
        return Service(
            settings,
            name=name,
            model=model,
            store=store,
            tokens=tokens,
            editor=editor_process(settings),
            canaries=canaries,
        )
    except BaseException:
        store.close()
        raise


def _canaries(settings: Settings) -> list[str]:
    if settings.canaries is None:
        return []
    try:
        lines = settings.canaries.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"canaries {settings.canaries}: {error}; a text file was expected") from error
    return [line for line in lines if line.strip()]


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"{settings.host}:{settings.port} cannot be listened on: {error}; give another") from error
    return listener
