"""Editors of a store in the test's own thread, and what they edit."""

from __future__ import annotations

from typing import Any

from tiny import WordReader, text, tiny_model, tiny_tokenizer

import wise
from wise.memory.store.store import Store
from wise.router.readers import RelationReader
from wise.serving.editor import Editor
from wise.serving.editor_client import command_result
from wise.serving.settings import Settings


def hybrid(reader: RelationReader | None = None) -> wise.WiseModel:
    """A tiny model that edits in `hybrid`."""
    config = wise.WiseConfig(mode="hybrid", layer=1, terminator="")
    return wise.wrap(tiny_model("llama"), tiny_tokenizer(), config, reader=reader or WordReader())


def edit(name: str, first: int, **fields: Any) -> wise.Edit:
    """Of three words from `first` on."""
    asked, target = text([first, first + 1, first + 2]), text([60 + first, 61])
    return wise.Edit(id=name, prompt=asked, target=target, subject=text([first]), **fields)


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
