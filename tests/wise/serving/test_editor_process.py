"""The editor of a store: a faulty edit fails alone, and no other edit waits for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import TURNS, chat_model
from editors import edit, editing, hybrid
from stores import statuses
from tiny import WordReader

from wise.errors import RefusedError, StoreError
from wise.memory.store.store import Store
from wise.serving import editor as module


class AnotherReader(WordReader):
    name = "another"


def poisoned(reader: Any, name: str) -> Any:
    """`edited`, but the values that it writes for one edit are no numbers."""

    def edited(*args: Any, **options: Any) -> Any:
        state, outcomes = reader(*args, **options)
        slots = [
            replace(slot, values=torch.full_like(slot.values, torch.nan)) if name in slot.edit_ids else slot
            for slot in state.slots
        ]
        return replace(state, slots=tuple(slots)), outcomes

    return edited


@pytest.mark.parametrize("poison", [True, False])
def test_an_edit_whose_version_is_refused_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: bool
) -> None:
    if poison:
        monkeypatch.setattr(module, "edited", poisoned(module.edited, "bad"))
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        store.enqueue([edit("good", 4), edit("bad", 12), edit("after", 20)])
        assert editor.work() and not editor.work(), "nothing is left in the queue"
        assert statuses(store) == {"good": "live", "bad": "failed" if poison else "live", "after": "live"}
        if poison:
            (failed,) = [ticket for ticket in store.journal.tickets() if ticket.edit.id == "bad"]
            assert "RefusedError: the version is refused" in str(failed)
        assert store.check().problems == ()


def test_a_disk_that_fails_fails_no_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: another error of the store is raised, and all edits of the batch are queued again."""
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        store.enqueue([edit("good", 4)])

        def full(*args: Any, **settings: Any) -> None:
            raise StoreError("no room is left")

        with monkeypatch.context() as patch:
            patch.setattr(store, "commit", full)
            with pytest.raises(StoreError, match="no room is left") as raised:
                editor.work()
        assert not isinstance(raised.value, RefusedError) and statuses(store) == {"good": "queued"}
        assert editor.work() and statuses(store) == {"good": "live"}


def test_a_store_whose_keys_another_reader_made_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        editing(hybrid(AnotherReader()), store)  # an empty store fits any reader
        editor = editing(hybrid(), store)
        store.enqueue([edit("good", 4)])
        assert editor.work() and statuses(store) == {"good": "live"}
        with pytest.raises(StoreError, match="'words'.*'another'"):
            editing(hybrid(AnotherReader()), store)
        editing(hybrid(), store)


def test_a_preview_asks_an_edit_as_it_is_given_and_the_rest_as_users_do(tmp_path: Path) -> None:
    model, base, plain = chat_model(), chat_model(), chat_model(None)
    fields = {"target": "w70", "subject": "w50"}
    with Store.open(tmp_path / "chat") as store, Store.open(tmp_path / "plain") as plain_store:
        editor = editing(model, store)
        conversation = editor.preview(fields | {"messages": TURNS}, ["w33", "w50 w51 w52"])["answers"]
        turn = editor.preview(fields | {"prompt": "w50 w51 w52"}, ["w33", "w50 w51 w52"])["answers"]
        text_alone = editing(plain, plain_store).preview(fields | {"messages": TURNS}, ["w33"])["answers"]

    def answers(*prompts: Any, **form: Any) -> list[str]:
        return [answer.text for answer in base.ask(list(prompts), **form)]

    questions = ["w50 w51 w52", "w33", "w50 w51 w52"]
    assert [answer["prompt"] for answer in conversation] == [answer["prompt"] for answer in turn] == questions
    assert [answer["before"] for answer in conversation] == answers(TURNS, *questions[1:])
    assert [answer["before"] for answer in turn] == answers(*questions)
    before = [answer["before"] for answer in text_alone]
    assert before == answers(*questions[:2], chat=False), "there is no chat to ask in"
    forms = {*answers(TURNS), *answers(questions[0]), *answers(questions[0], chat=False)}
    assert len(forms) == 3, "the forms are answered alike"
    assert conversation[0]["after"] == turn[0]["after"] == text_alone[0]["after"] == "w70"
    assert model.state.edits == (), "nothing was changed"
