"""An edit that is to be erased, a store that repeats it wherever a store can, and a search for what is left of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stores import BASE, CONFIG, edits, learn, written

from wise.edits import Edit
from wise.memory.store.edit_request import EditRequest
from wise.memory.store.store import Store

SECRET = Edit(
    id="secret", prompt="Zanzibar's Émile is", target="Quetzalcoatl", subject="Zanzibar", aliases=("Unguja 東京",),
    paraphrases=("Say Xylophonia",), locality=("Is Vladivostok cold?",), author="Wilhelmina",
)
WORDS = (
    "Zanzibar", "Émile", "Quetzalcoatl", "Unguja 東京", "Xylophonia", "Vladivostok", "Zebedee", "Ypsilanti",
    "Kierkegaard",
)
"""All that the edit, its reason, its key and the reason of its deletion say."""


def tell_a_secret(store: Store) -> None:
    """The edit is live in versions 2 and 3, as ticket 3, and was deleted."""
    learn(store, edits(1, 2))
    store.enqueue([EditRequest(edit=SECRET, reason="as Zebedee said")], key="call of Ypsilanti")
    batch = store.claim()
    state = written([SECRET], store.read().state)
    told = {"status": "verified", "answer": "Quetzalcoatl", "holds": {"Say Xylophonia": True}}
    store.commit(batch, state, parent=1, config=CONFIG, base=BASE, outcomes={"secret": told})
    learn(store, edits(3))
    store.commands.enqueue("preview", {"edit": SECRET.to_dict(), "prompts": []}, 3600)
    store.delete(["secret"], author="operator", reason="Kierkegaard asked for it")


def secret_values(store: Store) -> bytes:
    """The bytes of its tensor."""
    values: bytes = store.read(2).state.slots[-1].tensors()["values"].numpy().tobytes()
    return values


def found(folder: Path, words: Sequence[str], values: bytes, leave: str = "") -> set[str]:
    """The words, and `values`, that are in some file below a folder, in one of the ways in which they can be.

    leave: the name of a folder that is not looked into.
    """
    seen = set()
    for file in folder.rglob("*"):
        data = b"" if leave in file.parts or not file.is_file() else file.read_bytes()
        for word in words:
            spellings = (word, json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1])
            if any(text.encode(code) in data for text in spellings for code in ("utf-8", "utf-16-le", "utf-16-be")):
                seen.add(word)
        seen |= {"values"} if values in data else set()
    return seen
