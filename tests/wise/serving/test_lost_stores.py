"""A service that loses its store for a while answers all along, and edits again by itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from postgres import Server, end_sessions
from serving import LYON, PATIENCE, Running, running
from stores import statuses
from waiting import until

from wise.errors import StoreError
from wise.memory.store.store import ENDED
from wise.serving import editor as module
from wise.serving.editor import LOST
from wise.serving.editor_client import READY, WAITING
from wise.serving.editor_process import EditorEnd


def restart(served: Running, server: Server) -> None:
    server.kill()
    until(lambda: served.service.follower.trouble and served.service.editor.state == WAITING)
    assert served.said() == " Lyon."
    server.start()


def end_all_sessions(served: Running, server: Server) -> None:
    end_sessions(server.url)


@pytest.mark.postgres
@pytest.mark.parametrize("lose", [restart, end_all_sessions])
def test_a_service_whose_database_was_away_edits_again_by_itself(
    lose: Callable[[Running, Server], None], server: Server, url: str
) -> None:
    with running(url) as served, served.client() as client:
        served.edit(LYON)
        lose(served, server)
        nice = {"edits": [LYON | {"target": "Nice"}], "wait": "live"}

        def live() -> bool:
            answer = client.post("/v1/edits", json=nice, headers={"Idempotency-Key": "once"})
            assert answer.status_code in (200, 202, 503), answer.text
            return answer.status_code == 200

        until(live)
        assert served.said() == " Nice." and client.get("/ready").status_code == 200
        store = served.service.store
        assert [version.number for version in store.journal.versions()] == [1, 2] and store.check().problems == ()


@pytest.mark.postgres
def test_training_whose_session_was_lost_is_left_and_counts_as_no_ending(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the edit would be quarantined, as one that ends editors."""
    training, may_end, train = threading.Event(), threading.Event(), module.edited

    def edited(*arguments: Any, check: Callable[[], None], **more: Any) -> Any:
        training.set()
        while not may_end.is_set():
            check()
        return train(*arguments, check=check, **more)

    monkeypatch.setattr(module, "edited", edited)
    with running(url) as served, served.client() as client:
        [edit] = client.post("/v1/edits", json={"edits": [LYON]}).json()["edits"]
        for _ in range(2):
            assert training.wait(PATIENCE)
            training.clear()
            end_sessions(url)
        assert training.wait(PATIENCE)
        may_end.set()
        until(lambda: statuses(served.service.store) == {edit["id"]: "live"})
        why = [event.detail.get("why") for event in served.service.store.log() if event.kind == "queued"]
        assert why == [None, LOST, LOST] and ENDED not in why


def test_an_editor_whose_lock_was_replaced_opens_the_store_again(tmp_path: Path) -> None:
    with running(tmp_path / "store") as served:
        served.edit(LYON)
        (tmp_path / "another").touch()
        (tmp_path / "another").rename(tmp_path / "store" / "writer.lock")
        until(lambda: served.service.editor.state != READY)
        served.edit(LYON | {"target": "Nice"})
        assert served.said() == " Nice." and served.service.store.check().problems == ()


def test_why_a_store_cannot_be_asked_is_told_once_and_not_with_each_attempt(caplog: pytest.LogCaptureFixture) -> None:
    service_end, editor_end = Pipe()
    attempts, has_ended = list[int](), threading.Event()
    reasons = {3: "it is full", 5: ""}

    class Asked:
        """Its store fails for two reasons, works once, and fails again."""

        has_lost_store = False

        def attend(self) -> None:
            attempts.append(len(attempts))
            if reason := reasons.get(attempts[-1], "the disk is gone"):
                raise StoreError(reason)

        def leave(self) -> None:
            """It trains nothing."""

    with caplog.at_level(logging.ERROR), service_end, editor_end:
        end: Any = EditorEnd(editor_end, has_ended.set)
        end.editor = Asked()
        until(lambda: len(attempts) > 7)
        service_end.close()
        assert has_ended.wait(PATIENCE)
    problems = [message.rpartition(": ")[2] for message in caplog.messages]
    assert problems == ["the disk is gone", "it is full", "the disk is gone", "the disk is gone"]
