"""Deleting from a store whose edits share slots: the version after holds what it would had they never been made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from editors import done, editing
from stores import digest, new_folder, statuses
from tiny import same_tensors, text, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import wise
from wise.cli import options
from wise.cli.app import app
from wise.errors import StoreError
from wise.memory.artifact import load_memory
from wise.memory.state import MemoryState
from wise.memory.store.segments import decode_segment
from wise.memory.store.store import Store
from wise.serving.editor import Editor

WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
SHARED = ("merge", "retrieve")


def wrapped(mode: str) -> wise.WiseModel:
    fitting = {"learning_rate": 0.03, "max_steps": 100, "prefixes": 1, "slot_capacity": 2, "layer": 1}
    return wise.wrap(
        tiny_model("llama", **WIDE), tiny_tokenizer(), wise.WiseConfig(mode=mode, terminator="", bos=False, **fitting)
    )


def edit(number: int, **fields: Any) -> wise.Edit:
    first = 5 + 7 * number
    prompt, target = text([first, first + 1, first + 2, 30 + number]), text([60 + 3 * number, 61 + 2 * number])
    return wise.Edit(**{"id": f"e{number}", "prompt": prompt, "target": target} | fields)


def learn(editor: Editor, store: Store, *calls: Sequence[wise.Edit]) -> None:
    """Each call is trained, and becomes a version, by itself."""
    for edits in calls:
        store.enqueue(edits)
        assert editor.work()
    assert set(statuses(store).values()) == {"live"}


def held(place: Path) -> MemoryState:
    """The current memory, as it is read from the disk."""
    with Store.open(place, writer=False) as store:
        assert store.check().problems == ()
        return store.read().state


def made(place: Path, mode: str, *calls: Sequence[wise.Edit], gone: Sequence[str] = ()) -> MemoryState:
    """The memory of a store that learned in calls, and then was told to delete."""
    with Store.open(place) as store:
        editor = editing(wrapped(mode), store)
        learn(editor, store, *calls)
        if gone:
            done(editor, "delete", edit_ids=list(gone), author="me", reason="wrong")
    return held(place)


@pytest.fixture
def folder() -> Iterator[Path]:
    with new_folder() as found:
        yield found


@pytest.mark.parametrize("mode", SHARED)
def test_what_is_left_is_what_the_others_alone_make(mode: str, folder: Path) -> None:
    first, second = [edit(0), edit(1)], [edit(2), edit(3)]
    if mode == "merge":  # one slot: all of it is written anew in one call
        fresh = made(folder / "fresh", mode, [edit(0), edit(1), edit(2)])
    else:
        fresh = made(folder / "fresh", mode, first, [edit(2)])
    left = made(folder / "store", mode, first, second, gone=["e3"])
    assert left.edit_ids == ("e0", "e1", "e2")
    assert digest(left) == digest(fresh)
    with Store.open(folder / "store") as store:
        traced = store.read(2).state.without(["e3"])
        assert digest(traced) != digest(left), "what is not written anew keeps a trace"
        assert statuses(store) == {"e0": "live", "e1": "live", "e2": "live", "e3": "retired"}
        store.gc(keep=1)
        segments = [store.backend.get(digest) for digest in store.read().manifest.segments]  # type: ignore[union-attr]
        kept = [stored.slot for data in segments for stored in decode_segment(data, "")]
        weights = {slot.tensors()["values"].numpy().tobytes() for slot in kept}
        assert traced.slots[-1].tensors()["values"].numpy().tobytes() not in weights


@pytest.mark.parametrize("mode", SHARED)
def test_an_edit_whose_time_is_over_leaves_no_trace_either(
    mode: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = made(folder / "fresh", mode, [edit(0)])
    with Store.open(folder / "store") as store:
        editor = editing(wrapped(mode), store)
        learn(editor, store, [edit(0), edit(1)])
        over = store.journal.tickets(edit_id="e1")
        monkeypatch.setattr(store, "expired", lambda: over)
        editor.attend()
        assert editor.work()
    assert digest(held(folder / "store")) == digest(fresh)


def test_one_that_cannot_be_written_without_the_deleted_one_is_retired_as_lost(folder: Path) -> None:
    with Store.open(folder / "store") as store:
        model = wrapped("merge")
        editor = editing(model, store)
        learn(editor, store, [edit(0), edit(1)])
        object.__setattr__(model.trainer.config, "max_steps", 0)
        version = done(editor, "delete", edit_ids=["e0"], author=None, reason=None)
        assert version["edits"] == 0 and set(statuses(store).values()) == {"retired"}
        assert [event.detail for event in store.log() if event.kind == "retired"] == [
            {"why": "deleted"}, {"why": "lost"}
        ]


def test_a_store_does_not_keep_a_trace_for_want_of_a_model(folder: Path) -> None:
    made(folder / "store", "merge", [edit(0), edit(1)])
    with Store.open(folder / "store") as store:
        events = store.log()
        with pytest.raises(StoreError, match="'e0' shares a slot"):
            store.delete(["e0"])
        with pytest.raises(StoreError, match="'e0'.*still in the state"):
            store.delete(["e0"], forget=lambda state, edit_ids: state)
        with pytest.raises(StoreError, match="edit 'e9' was neither live nor claimed"):
            store.delete(["e0"], forget=lambda state, edit_ids: MemoryState(edits=(edit(9),)))
        assert store.log() == events
        assert store.delete(["e0", "e1"]).edits == 0  # of nobody else's slot


def test_the_command_writes_anew_what_shared_a_slot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = made(folder / "fresh", "merge", [edit(0)])
    made(folder / "store", "merge", [edit(0), edit(1)])
    asked: list[str | None] = []

    def load(name: str | None, **_: Any) -> tuple[Any, Any]:
        asked.append(name)
        return tiny_model("llama", **WIDE), tiny_tokenizer()

    monkeypatch.setattr(options, "load_model", load)
    command = ["store", "delete", str(folder / "store"), "e1", "--model", "tiny", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert asked == ["tiny"] and json.loads(result.stdout.splitlines()[-1])["edits"] == 1
    assert digest(held(folder / "store")) == digest(fresh)
    result = CliRunner().invoke(app, ["store", "delete", str(folder / "store"), "e0", "--json"])
    assert (result.exit_code, asked) == (0, ["tiny"]), "a slot of its own needs no model"


def test_the_command_refuses_another_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(folder / "store", "merge", [edit(0), edit(1)])
    other = tiny_model("llama", **WIDE)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    monkeypatch.setattr(options, "load_model", lambda name, **_: (other, tiny_tokenizer()))
    result = CliRunner().invoke(app, ["store", "delete", str(folder / "store"), "e1"])
    assert result.exit_code == 2 and "made for another base" in result.stderr
    assert digest(held(folder / "store")) == digest(before)


@pytest.mark.parametrize("mode", SHARED)
def test_another_namespace_keeps_its_slots_bit_for_bit(mode: str, folder: Path) -> None:
    """In `merge` each has a memory of its own."""
    own, theirs = [edit(0), edit(1)], [edit(2, namespace="geo"), edit(3, namespace="geo")]
    fresh = made(folder / "fresh", mode, own, theirs[:1])
    left = made(folder / "store", mode, own, theirs, gone=["e3"])
    assert digest(left) == digest(fresh) and len(left.slots) == 2
    with Store.open(folder / "store") as store:
        before = store.read(2).state
        assert same_tensors(before.slots[0].tensors(), left.slots[0].tensors())
        assert not same_tensors(before.slots[1].tensors(), left.slots[1].tensors())
        store.export_pack(folder / "pack", namespace="geo")
        assert load_memory(folder / "pack")[1].edit_ids == ("e2",)
        if mode == "merge":
            with pytest.raises(StoreError, match="default, geo"):
                store.export_pack(folder / "all")
            first, second = left.slots[0].without(["e1"]), left.slots[0].without(["e0"])
            wrong = replace(left, edits=tuple(own), slots=(first, replace(second, id=1)))
            wrong = replace(wrong, keys={i: before.keys[i] for i in ("e0", "e1")})
            current = store.read()
            with pytest.raises(StoreError, match="'default' has 2"):
                store.commit([], wrong, parent=3, config=current.config, base=current.base)  # type: ignore[arg-type]


def test_namespaces_that_a_memory_from_elsewhere_put_into_one_slot_are_written_anew_together(folder: Path) -> None:
    def memory_from_elsewhere(count: int) -> wise.WiseModel:
        model = wrapped("merge")
        model.edit([edit(i) for i in range(count)])
        edits = (edit(i, namespace="geo") if i == 1 else edit(i) for i in range(count))
        model.state = replace(model.state, edits=tuple(edits))
        return model

    memory_from_elsewhere(3).save_pretrained(folder / "memory")
    fresh = memory_from_elsewhere(2)
    with Store.open(folder / "store") as store:
        store.import_pack(folder / "memory")
        done(editing(wrapped("merge"), store), "delete", edit_ids=["e2"], author=None, reason=None)
    assert digest(held(folder / "store")) == digest(fresh.state)
