"""Several services on one store: the writer runs the commands of all, once, and reports the results."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from editors import done
from secrets_told import found
from serving import FRANCE, LYON, PATIENCE, Running, running
from stores import end, waiting
from waiting import until

from wise.errors import EditError, StoreError
from wise.memory.store.command_queue import CommandQueue
from wise.memory.store.store import Store
from wise.serving import editor_client
from wise.serving.editor import INTERRUPTED, Editor
from wise.serving.editor_client import WAITING, command_result, send_to_writer
from wise.serving.settings import Settings


@pytest.fixture
def place(place: str) -> str:
    """A store without edits."""
    Store.open(place).close()
    return place


def count_commands(served: Running) -> int:
    """Commands whose answers were not taken."""
    with served.service.store.backend.reading() as execute:
        return int(execute("SELECT COUNT(*) FROM commands")[0][0])


@pytest.mark.slow
def test_what_a_replica_is_asked_for_the_writer_does(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(place) as writer, running(place, editor_state=WAITING) as reader:
        [live] = reader.edit(LYON)
        with reader.client() as client:
            spain = {"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"}
            preview = client.post("/v1/edits/preview", json={"edit": spain, "prompts": [FRANCE]}).json()
            assert [(a["before"], a["after"]) for a in preview["answers"]] == [("Madrid", "Porto"), ("Lyon", "Lyon")]
            assert preview["outcome"]["status"] == "verified" and reader.said() == " Lyon."

            deletion = client.delete(f"/v1/edits/{live['id']}", params={"reason": "a mistake"})
            version = deletion.json()
            assert (deletion.status_code, version["kind"], version["author"]) == (200, "delete", "the-admin")
            assert reader.said() == " Paris."  # the delete is answered when its version is served here

            back = client.post("/v1/versions/1/rollback", json={"reason": "it was right"})
            assert (back.status_code, back.json()["number"], back.json()["reason"]) == (200, 3, "it was right")
            assert reader.said() == " Lyon."

            def refused(*_: Any, **__: Any) -> None:
                raise EditError("field 'prompt': no")

            monkeypatch.setattr(Editor, "preview", refused)
            answer = client.post("/v1/edits/preview", json={"edit": spain})
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, "field 'prompt': no")
        assert [v.kind for v in writer.service.store.journal.versions()] == ["commit", "delete", "rollback"]
        assert count_commands(reader) == 0


@pytest.mark.slow
def test_an_edit_is_erased_while_the_services_run(place: str) -> None:
    words = ("Lyon", "France", "Zebedee", "Kierkegaard")

    def search() -> set[str]:
        if "://" not in place:
            return found(Path(place), words, values)
        with served.service.store.backend.reading() as execute:
            tables = ("tickets", "events", "versions", "commands", "blobs")
            rows = [row for table in tables for row in execute(f"SELECT * FROM {table}")]
        content = b" ".join(value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row)
        return {word for word in words if word.encode() in content} | ({"values"} if values in content else set())

    with running(place), running(place, editor_state=WAITING) as served, served.client() as client:
        spain = {"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"}
        served.edit(spain)
        [live] = served.edit(LYON | {"reason": "as Zebedee said"})
        path = f"/v1/edits/{live['id']}"
        values = served.service.store.read(2).state.slots[-1].tensors()["values"].numpy().tobytes()
        refused = client.post(f"{path}/erase")
        assert refused.status_code == 409 and "is live; delete it first" in refused.text
        assert client.delete(path, params={"reason": "Kierkegaard asked for it"}).status_code == 200
        assert search() == {*words, "values"}, "it would not be seen"
        wrong = client.post(f"{path}/erase", json={"reason": "Lyon is wrong"})
        assert wrong.status_code == 400 and "it repeats text that is to be erased" in wrong.text
        answer = client.post(f"{path}/erase", json={"reason": "request 17", "with_author": True})
        assert (answer.status_code, answer.json()["versions"], answer.json()["left"]) == (200, [2], {})
        assert search() == set()
        edit = client.get(path).json()
        assert (edit["prompt"], edit["target"], edit["status"]) == ("(erased)", "(erased)", "retired")
        assert [(e["kind"], e["author"]) for e in edit["events"]][-1] == ("erased", "the-admin")
        assert client.post("/v1/versions/2/rollback").status_code == 409
        assert client.post("/v1/versions/1/rollback").status_code == 200
        again = client.post(f"{path}/erase")
        assert again.status_code == 200 and again.json()["tickets"] == []
        assert served.said() == " Paris." and served.edit(LYON | {"target": "Nice"})[0]["status"] == "live"
        assert served.service.store.check().problems == ()
        assert search() == {"France"}, "of the edit that came later"


def test_a_replica_that_was_started_in_another_mode_says_so_and_is_not_ready(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(place) as writer, running(place, editor_state=WAITING, mode="retrieve") as replica:
        writer.edit(LYON)
        until(lambda: replica.service.follower.trouble)
        assert "is of mode 'hybrid' and this serves 'retrieve': start it anew" in replica.service.follower.trouble
        with replica.client("") as client:
            assert client.get("/ready").status_code == 503
        assert (writer.said(), replica.said()) == (" Lyon.", " Paris.") and "serves 'retrieve'" in caplog.text
    with running(place, editing=False, mode="retrieve") as again:
        assert again.said() == " Lyon."  # the store keeps the settings that it was made with


def test_what_no_writer_takes_up_is_taken_back(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_client, "COMMAND_TIMEOUT", 0.2)
    with Store.open(place, writer=False) as reader:
        with pytest.raises(StoreError, match="none will"):
            asyncio.run(send_to_writer(reader, "delete", {"edit_ids": ["e1"]}))
        assert reader.commands.claim() is None
        claim = CommandQueue.claim

        def looks(self: CommandQueue, command: str) -> None:
            claim(self)

        monkeypatch.setattr(CommandQueue, "take_answer", looks)  # the command starts, and is never answered
        with pytest.raises(StoreError, match="may still"):
            asyncio.run(send_to_writer(reader, "delete", {"edit_ids": ["e1"]}))


def test_a_command_whose_sender_leaves_while_it_is_queued_is_not_left_behind(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_go_on, queued = threading.Event(), threading.Event(), list[str]()
    enqueue = CommandQueue.enqueue

    def slow(self: CommandQueue, *arguments: Any) -> str:
        has_begun.set()
        assert may_go_on.wait(PATIENCE)
        queued.append(enqueue(self, *arguments))
        return queued[-1]

    async def leave(sends: asyncio.Task[Any]) -> None:
        assert await asyncio.to_thread(has_begun.wait, PATIENCE)
        sends.cancel()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await sends

    async def run() -> None:
        await leave(asyncio.create_task(send_to_writer(reader, "delete", {"edit_ids": ["e1"]})))

    monkeypatch.setattr(CommandQueue, "enqueue", slow)
    with Store.open(place, writer=False) as reader:
        asyncio.run(run())
        assert len(queued) == 1 and reader.commands.claim() is None
        command = reader.commands.enqueue("delete", {}, PATIENCE)  # negative control: the client does not leave
        claimed = reader.commands.claim()
        assert claimed is not None and claimed.id == command


def test_a_command_is_claimed_once_in_its_order_and_its_answer_taken_away(place: str) -> None:
    with Store.open(place) as writer, Store.open(place, writer=False) as reader:
        first, second = (reader.commands.enqueue("preview", {"edit": i}, 60) for i in (1, 2))
        assert reader.commands.take_answer(first) is None
        command = writer.commands.claim()
        assert command is not None and (command.id, command.name, command.arguments) == (first, "preview", {"edit": 1})
        claimed = writer.commands.claim()
        assert claimed is not None and claimed.id == second and writer.commands.claim() is None
        writer.commands.answer(first, {"done": {"é": 1}})
        assert reader.commands.take_answer(first) == {"done": {"é": 1}} and reader.commands.take_answer(first) is None
        assert not reader.commands.withdraw(second)
        writer.commands.answer(second, {"done": {}})  # its client does not wait any more
        assert reader.commands.take_answer(second) is None


def test_what_is_asked_for_too_late_is_not_done(place: str) -> None:
    with Store.open(place) as writer:
        late, current = writer.commands.enqueue("delete", {}, -1), writer.commands.enqueue("delete", {}, 60)
        command = writer.commands.claim()
        assert command is not None and command.id == current and writer.commands.take_answer(late) is None


def test_what_a_writer_had_begun_when_it_was_killed_is_said_by_the_next(place: str) -> None:
    """Else it could run twice: it may have run before."""
    with Store.open(place, writer=False) as reader:
        first, second = (reader.commands.enqueue("rollback", {"version": i}, 60) for i in (0, 1))

    def writes() -> object:
        store = Store.open(place)
        assert store.commands.claim() is not None
        return store

    end(waiting(writes))
    with Store.open(place) as writer:
        writer.commands.abandon(INTERRUPTED)
        answer = writer.commands.take_answer(first)
        assert answer is not None
        with pytest.raises(StoreError, match="ended meanwhile"):
            command_result(answer)
        command = writer.commands.claim()
        assert command is not None and command.id == second


def test_a_command_that_breaks_down_is_answered(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    with Store.open(place) as store:
        monkeypatch.setattr(store, "rollback", broken)
        with pytest.raises(StoreError, match="a bug"):
            done(Editor(store, Settings()), "rollback", version=0, author=None, reason=None)
