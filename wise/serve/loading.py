"""Bringing up the parts: the model, the store, and the process that edits."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.memory.store.store import Store
from wise.model import WiseModel, wrap
from wise.serve.editor import Editor
from wise.serve.link import Worker, serve
from wise.serve.logs import JsonFormatter
from wise.serve.settings import Settings


def load_wrapped(settings: Settings, config: WiseConfig) -> WiseModel:
    """The model as the settings say, wrapped. Raises ConfigError where there is none."""
    from wise.cli.common import load_model

    base, tokenizer = load_model(settings.model)
    return wrap(base, tokenizer, config)


def model_name(settings: Settings) -> str:
    """What requests call the model. `@` goes before a namespace, so it cannot stand in a name."""
    name = settings.name or (Path(settings.model).name if settings.model else "wise-demo")
    if "@" in name:
        raise ConfigError(f"setting name={name!r}: '@' goes before a namespace; give the model another name")
    return name


def config_of(store: Store, settings: Settings) -> WiseConfig:
    """The settings that the store's memory was made with, or those of a new one; where the encoder is found and what
    it was taught may be told anew, since they lie elsewhere on another machine."""
    config = store.read().config or WiseConfig(mode=settings.mode)
    if settings.encoder is not None:
        config = replace(config, encoder=settings.encoder)
    if settings.relations is not None:
        config = replace(config, relations=str(settings.relations.resolve()))
    return config


def editor_process(settings: Settings) -> Callable[[Connection], Worker]:
    """What makes the process that edits, with the other end of a connection."""
    context = multiprocessing.get_context("spawn")  # a forked torch hangs
    told = settings.model_dump(mode="json")

    def make(connection: Connection) -> Worker:
        return context.Process(target=_edit, args=(connection, told), name="wise-editor", daemon=True)

    return make


def _edit(connection: Connection, told: dict[str, Any]) -> None:
    """The process that edits."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service says when it is to end
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    settings = Settings(**told)
    with suppress(OSError):
        os.nice(settings.edit_niceness)
    torch.set_num_threads(settings.edit_threads)
    models: list[WiseModel] = []

    def opened() -> Editor:
        store = Store.open(settings.store)
        try:
            if not models:
                models.append(load_wrapped(settings, config_of(store, settings)))
            return Editor(models[0], store, batch=settings.edit_batch, keep=settings.keep)
        except BaseException:
            store.close()
            raise

    serve(connection, opened)
