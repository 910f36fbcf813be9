"""Editors of a store in the test's own thread."""

from __future__ import annotations

from typing import Any

import wise
from wise.memory.store.store import Store
from wise.serving.editor import Editor
from wise.serving.editor_client import command_result
from wise.serving.settings import Settings


def editing(model: wise.WiseModel, store: Store, settings: Settings | None = None) -> Editor:
    """An editor that is ready."""
    editor = Editor(store, settings or Settings())
    editor.prepare(model)
    return editor


def done(editor: Editor, name: str, **arguments: Any) -> dict[str, Any]:
    """What a command did, also one that waits for the model. Raises what the editor raised."""
    answers: list[dict[str, Any]] = []
    editor.do(name, arguments, answers.append)
    if not answers:
        editor.work()
    [answer] = answers
    return command_result(answer)
