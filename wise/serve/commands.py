"""What the store's one writer is told to do, whoever was asked for it, and its answer as JSON.

They go by a pipe to the editor of the replica that was asked (`wise.serve.link`), or by way of the store to another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from wise.errors import ConfigError, EditError, StoreError, WiseError
from wise.memory.store.store import Store

logger = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that a command may take: it waits for the batch that is being trained."""
LOOK = 0.05
"""Seconds between two looks for the answer of another replica."""
ENDED = {"kind": "StoreError", "problem": "the writer ended meanwhile; see whether it was done, and try again"}
"""What came of a command that was begun by a writer that is no more."""
_KINDS: dict[str, type[WiseError]] = {kind.__name__: kind for kind in (ConfigError, EditError, StoreError)}


class Commanded(Protocol):
    """What can be told to do something."""

    def do(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]: ...


def answer_of(editor: Commanded, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What came of a command: `done`, or the `kind` of a problem and the `problem`."""
    try:
        return {"done": editor.do(name, arguments)}
    except Exception as error:
        if not isinstance(error, WiseError):
            logger.exception("the command %s failed", name)
        return {"kind": type(error).__name__, "problem": str(error)}


def result_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What was done. Raises what the writer raised."""
    if "done" in answer:
        return dict(answer["done"])
    raise _KINDS.get(answer["kind"], StoreError)(answer["problem"])


def handed_on(store: Store, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Has the writer of a store, which is another process, do a command.

    Raises what the writer raised, or StoreError where none takes it up or it takes too long.
    """
    command = store.commands.enqueue(name, arguments, PATIENCE)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answer = store.commands.take_answer(command)
        if answer is not None:
            return result_of(answer)
        time.sleep(LOOK)
    if store.commands.withdraw(command):
        raise StoreError(f"no writer took it up within {PATIENCE:.0f} s, and none will; see that a replica can write")
    raise StoreError(f"the writer did not answer within {PATIENCE:.0f} s; it may still do it")
