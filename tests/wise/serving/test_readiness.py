"""Answering and editing are reported apart: what one of them waits for does not stop the other."""

from __future__ import annotations

import json
import logging
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving import NAME, Running, demo_model, running
from waiting import until

from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.memory.store import journal
from wise.memory.store.store import Store
from wise.serving import service as module
from wise.serving.canaries import Canaries
from wise.serving.editor_client import PREPARING, READY, EditorClient, Worker
from wise.serving.editor_process import run_editor
from wise.serving.engines import EngineError
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings, without_effect


def metric(served: Running, name: str) -> float:
    with served.client("reader") as client:
        lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))


def status(served: Running) -> dict[str, Any]:
    with served.client("reader") as client:
        answer = client.get("/v1/status")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_service_is_ready_while_the_editor_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path / "store", editing=False) as served, served.client("reader") as client:
        assert client.get("/ready").status_code == 200
        report = status(served)
        assert report["answering"] is None and report["editing"].startswith("the editor starts, for ")
        assert (report["editor"]["state"], metric(served, 'wise_editor_state{state="starting"}')) == ("starting", 1)
        assert metric(served, 'wise_editor_state{state="ready"}') == 0

        editor = served.service.editor
        monkeypatch.setattr(editor, "state", PREPARING)
        monkeypatch.setattr(editor, "stage", "measuring the model")
        assert status(served)["editing"].startswith("the editor prepares: measuring the model, for ")
        assert status(served)["editor"]["stage"] == "measuring the model"
        monkeypatch.setattr(editor, "state", READY)
        assert status(served)["editing"] is None
        monkeypatch.setattr(module, "SILENCE_LIMIT", -1.0)
        assert "was stopped, or gets no CPU" in status(served)["editing"]
        assert client.get("/ready").status_code == 200
    with running(tmp_path / "store", editing=False) as served, served.client("") as stranger:
        assert stranger.get("/v1/status").status_code == 401


def test_preparing_says_how_far_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(store=str(tmp_path / "store"), mode="retrieve")
    stages: list[tuple[str, str]] = []
    may_load, stores = threading.Event(), list[Store]()

    def opened(_: str) -> Store:
        stores.append(Store.open(settings.store))
        return stores[-1]

    def load(_: Store) -> Any:
        assert may_load.wait(60)
        return demo_model(settings.wise_config(None))

    class Listening(EditorClient):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "state":
                stages.append((value, getattr(self, "stage", "")))

    def make(connection: Connection) -> Worker:
        arguments = {"open_store": opened, "load": load}
        return threading.Thread(target=run_editor, args=(connection, settings), kwargs=arguments, daemon=True)

    editor = Listening(make)
    with caplog.at_level(logging.INFO):
        editor.start()
        until(lambda: editor.stage == "loading the model")
        until(lambda: editor.silent > 0)
        assert editor.state == PREPARING
        may_load.set()
        until(lambda: editor.state == READY)
        editor.close(60)
    stage_names = [stage for _, stage in dict.fromkeys(stages) if stage]
    assert stage_names[0] == "loading the model" and "measuring the model" in stage_names
    assert "preparing: measuring the model" in caplog.text and editor.stage == ""
    stores[-1].close()


class Broken:
    """An engine that cannot run anything."""

    def submit(self, *_: Any, **__: Any) -> None:
        raise EngineError("it is broken")


def test_canaries_that_cannot_be_run_raise_the_alarm(tmp_path: Path) -> None:
    with running(tmp_path / "store", canaries=("The capital of Norway is",)) as served:
        served.edit({"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"})
        until(lambda: metric(served, "wise_canary_tokens") > 0)
        assert (metric(served, "wise_canary_alarm"), metric(served, "wise_canary_failures")) == (0, 0)
        metrics = Metrics()
        broken = Canaries([[5, 6, 7]], Broken, metrics, 1.0)  # type: ignore[arg-type]
        broken.start()
        broken.check(served.service.follower.current)

        def value(name: str) -> float | None:
            return metrics.registry.get_sample_value(name)

        until(lambda: value("wise_canary_alarm") == 1)
        assert (value("wise_canary_failures"), value("wise_canary_false_routes")) == (1, 3)
        broken.close()


def test_canaries_of_a_version_that_was_dropped_raise_no_alarm(tmp_path: Path) -> None:
    spain = {"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"}
    with running(tmp_path / "store") as served:
        served.edit(spain)
        old = served.service.follower.current
        served.edit(spain | {"target": "Vigo"})
        newer, alarms = served.service.follower.current, list[bool]()

        class Dropping:
            """A newer version comes while an older one is checked, and the engine drops the older one."""

            def submit(self, requests: Any, **more: Any) -> Any:
                if requests[0].handle.version == old.version:
                    canaries.check(newer)
                    raise EngineError("version 1 is not served any more")
                return served.service.engine.submit(requests, **more)

        metrics = Metrics()
        metrics.alarm = SimpleNamespace(set=alarms.append)  # type: ignore[assignment]
        canaries = Canaries([[5, 6, 7]], Dropping, metrics, 1.0)  # type: ignore[arg-type]
        canaries.start()
        canaries.check(old)
        until(lambda: alarms)
        assert alarms == [False]
        canaries.close()


def test_canaries_ask_only_the_namespaces_that_changed(tmp_path: Path) -> None:
    porto, vigo = ({"prompt": f"The capital of {country} is", "target": "Vigo"} for country in ("Spain", "Italy"))
    namespaces: list[str | None] = []
    with running(tmp_path / "store") as served:

        class Counting:
            def submit(self, requests: Any, **more: Any) -> Any:
                namespaces.extend(request.handle.namespace for request in requests)
                return served.service.engine.submit(requests, **more)

        metrics = Metrics()
        canaries = Canaries([[5, 6, 7], [8]], Counting, metrics, 1.0)  # type: ignore[arg-type]
        canaries.start()

        def check() -> list[str | None]:
            namespaces.clear()
            metrics.canary_tokens.set(0)
            canaries.check(served.service.follower.current)
            until(lambda: metrics.registry.get_sample_value("wise_canary_tokens") > 0)
            return namespaces

        served.edit(porto, model=f"{NAME}@a")
        served.edit(vigo, model=f"{NAME}@b")
        assert check() == ["a", "a", "b", "b"] and check() == []
        served.edit(porto | {"target": "Porto"}, model=f"{NAME}@a")
        assert check() == ["a", "a"]
        canaries.close()


def test_a_canary_that_the_model_cannot_read_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="canaries: 'word word.* tokens"), running(
        tmp_path / "store", editing=False, canaries=("word " * 5000,)
    ):
        pass


def test_a_version_takes_over_the_memory_of_every_namespace_in_which_nothing_changed(tmp_path: Path) -> None:
    spain = {"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"}
    with running(tmp_path / "store", namespaces=3) as served, served.client("editor") as client:
        for team in ("a", "b"):
            served.edit(spain, model=f"demo@{team}")
        before = served.service.follower.current.handles
        served.edit(spain | {"prompt": "In Spain the capital is"}, model="demo@b")
        after = served.service.follower.current.handles
        assert after["a"].memory is before["a"].memory and after["a"].version == 3
        assert after["b"].memory is not before["b"].memory

        body = {"edits": [spain | {"prompt": "Spain's capital is"}], "model": "demo@a"}
        assert client.post("/v1/edits", json=body).status_code == 202
        refused = client.post("/v1/edits", json=body | {"model": "demo@c"})
        assert refused.status_code == 409 and "namespaces=3" in json.dumps(refused.json())


def test_a_namespace_counts_while_its_edits_are_queued_and_none_of_these_is_parsed_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown_ticket, parsed = journal.shown_ticket, []

    def parse(row: Any) -> Any:
        parsed.append(row)
        return shown_ticket(row)

    with running(tmp_path / "store", editing=False, namespaces=2) as served, served.client("editor") as client:
        monkeypatch.setattr(journal, "shown_ticket", parse)
        for place, space, status in (("Spain", "a", 202), ("Italy", "a", 202), ("Italy", "b", 409)):
            edit = {"prompt": f"The capital of {place} is", "target": "Porto"}
            body = {"edits": [edit], "model": f"{NAME}@{space}"}  # the default namespace counts as well
            assert client.post("/v1/edits", json=body).status_code == status
        assert not parsed


def test_what_an_existing_store_does_not_take_is_told() -> None:
    stored = WiseConfig(layer=3)
    [warning] = without_effect(Settings(layer=4), stored)
    assert warning == "setting layer=4 has no effect: the store was made with 3"
    assert without_effect(Settings(), stored) == without_effect(Settings(layer=3), stored) == []
    assert without_effect(Settings(layer=4), None) == [], "a new store takes all of it"


def test_an_edit_in_training_is_cancelled_over_http_and_large_ones_are_refused(tmp_path: Path) -> None:
    with running(tmp_path / "store", editing=False, target_tokens=8, preview_limit=2) as served:
        with served.client("editor") as client:
            long = {"prompt": "The capital of Spain is", "target": "a b c d e f g h i j k"}
            refused = client.post("/v1/edits", json={"edits": [long]})
            assert refused.status_code == 400 and "edits.0: field 'target': it has" in refused.text
            edit = long | {"target": "Porto"}
            reworded = edit | {"paraphrases": ["In Spain the capital is"]}
            many = client.post("/v1/edits/preview", json={"edit": reworded, "prompts": ["one"]})
            assert many.status_code == 400 and "preview_limit=2" in many.text
            [edit_view] = client.post("/v1/edits", json={"edits": [edit]}).json()["edits"]
            with Store.open(tmp_path / "store") as writer:
                writer.claim()
                assert client.get(f"/v1/edits/{edit_view['id']}").json()["status"] == "training"
                answer = client.delete(f"/v1/edits/{edit_view['id']}")
                assert answer.status_code == 503, "there is no editor here: it is not refused as what cannot be deleted"
