"""A version goes live only when the engine has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from serving import demo_model, running
from waiting import until

import wise
from wise.memory.store.store import open_reader
from wise.memory.store.versions import Snapshot
from wise.serving import follower as module
from wise.serving.engines import EngineError, MemoryHandle
from wise.serving.engines.local import LocalEngine
from wise.serving.follower import Follower
from wise.serving.metrics import Metrics


def test_an_engine_prepares_a_version_before_requests_get_it(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        follower, prepared = service.service.follower, list[tuple[int, int]]()

        class Preparing(LocalEngine):
            def __init__(self) -> None:
                """Only prepares."""

            def prepare(self, handles: Sequence[MemoryHandle]) -> None:
                prepared.append((handles[0].version, follower.current.version))
                if len(prepared) == 2:
                    raise EngineError("the workers are busy")

        follower.serve_with(Preparing())
        service.edit({"prompt": "The capital of France is", "target": "Lyon", "subject": "France"})
        assert prepared == [(0, 0), (1, 0), (1, 0)], "what the engine refuses is tried again"
        until(lambda: follower.current.version == 1)


def test_what_keeps_a_version_from_being_served_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    with running(tmp_path) as service:
        tried: list[int] = []

        class Preparing(LocalEngine):
            def __init__(self) -> None:
                """Only prepares."""

            def prepare(self, handles: Sequence[MemoryHandle]) -> None:
                tried.append(handles[0].version)
                if 1 < len(tried) < 9:
                    raise EngineError("the workers are busy" if len(tried) < 5 else "the workers are gone")

        service.service.follower.serve_with(Preparing())
        service.edit({"prompt": "The capital of France is", "target": "Lyon", "subject": "France"})
    problems = [str(record.exc_info[1]) for record in caplog.records if record.exc_info and record.levelname == "ERROR"]
    assert problems == ["the workers are busy", "the workers are gone"] and tried == [0] + 8 * [1]


def test_what_happens_while_the_first_version_is_read_is_announced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start takes minutes if each edit is asked again in another precision."""
    with open_reader(str(tmp_path)) as store:
        read_store, before = store.read, store.anchor().event

        def slow() -> Snapshot:
            snapshot = read_store()
            store.enqueue([wise.Edit(prompt="The sea is", target="blue")])
            return snapshot

        monkeypatch.setattr(store, "read", slow)
        follower = Follower(store, demo_model(wise.WiseConfig(mode="retrieve")), Metrics(), on_version=lambda _: None)
        assert follower.last_event == before < store.anchor().event
