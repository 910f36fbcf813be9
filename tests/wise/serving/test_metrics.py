"""What the service measures, and that the dashboard and the alert rules ask for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import ROOT
from serving import NAME, Running, hold, running
from waiting import until

from wise.serving import canaries
from wise.serving.canaries import Canaries
from wise.serving.engines import BusyError, Job
from wise.serving.engines.local import LocalEngine
from wise.serving.metrics import Metrics

FRANCE = "The capital of France is"
SELECTOR = re.compile(r"\b(wise_\w+)(?:\{([^}]*)\})?")
FROM_PROMETHEUS = {"instance", "le"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("metrics") / "store", editing=False) as service:
        yield service


def metrics(served: Running) -> dict[str, float]:
    with served.client("reader") as client:
        lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}


def test_tokens_are_timed(served: Running) -> None:
    before = metrics(served)
    with served.client("reader") as client:
        body = {"model": NAME, "prompt": FRANCE, "max_tokens": 5, "temperature": 1.3, "n": 2, "seed": 1}
        count = client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"]
        streamed = client.post("/v1/completions", json=body | {"stream": True, "n": 1})
        assert streamed.status_code == 200
    now = metrics(served)
    grown = {name: now[name] - before[name] for name in now if name.endswith("_count") and "{" not in name}
    assert grown["wise_first_token_seconds_count"] == 3
    assert grown["wise_inter_token_seconds_count"] >= count - 2 > 0
    assert 0 < now["wise_first_token_seconds_sum"] < 60
    assert (now["wise_cache_tokens"], now["wise_cache_tokens_limit"]) == (0, served.service.settings.cache_tokens)


def test_the_queue_of_edits_is_counted_and_dated(served: Running) -> None:
    assert metrics(served)["wise_oldest_queued_seconds"] == 0
    edit = {"prompt": FRANCE, "target": "Lyon", "subject": "France"}
    with served.client("editor") as client:
        assert client.post("/v1/edits", json={"edits": [edit]}).status_code == 202
        with client.stream("GET", "/v1/events", params={"since": 0}) as stream:
            assert any(line == "event: queued" for line in stream.iter_lines())
    now = metrics(served)
    assert {name: n for name, n in now.items() if name.startswith("wise_tickets{")} == {
        f'wise_tickets{{status="{status}"}}': float(status == "queued")
        for status in ("queued", "training", "live", "failed", "retired")
    }
    assert 0 < now["wise_oldest_queued_seconds"] < 600
    states = [name for name, value in now.items() if name.startswith("wise_editor_state{") and value == 1]
    assert states == [f'wise_editor_state{{state="{served.service.editor.state}"}}']


def test_an_edit_that_a_rollback_brings_back_was_not_just_accepted(tmp_path: Path) -> None:
    def outcomes(served: Running) -> tuple[float, float]:
        now = metrics(served)
        return now['wise_edits_total{outcome="live"}'], now["wise_edit_seconds_count"]

    with running(tmp_path / "store") as served, served.client() as client:
        [edit] = served.edit({"prompt": FRANCE, "target": "Lyon", "subject": "France"})
        assert client.delete(f"/v1/edits/{edit['id']}").status_code == 200
        assert client.post("/v1/versions/1/rollback").status_code == 200
        assert client.get(f"/v1/edits/{edit['id']}").json()["live_in"] == 3
        until(lambda: served.service.follower.last_event == served.service.store.anchor().event)
        assert outcomes(served) == (1, 1)
        served.edit({"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"})
        until(lambda: served.service.follower.last_event == served.service.store.anchor().event)
        assert outcomes(served) == (2, 2), "one that was just accepted is counted"


def test_a_canary_that_waits_for_room_is_no_refused_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_step, submit, errors = hold(monkeypatch), LocalEngine.submit, list[Exception]()

    def noted(*arguments: Any, **more: Any) -> Job:
        try:
            return submit(*arguments, **more)
        except BusyError as error:
            errors.append(error)
            raise

    monkeypatch.setattr(LocalEngine, "submit", noted)
    monkeypatch.setattr(canaries, "ROOM", 0.01)
    body = {"model": NAME, "prompt": FRANCE, "max_tokens": 1}
    with running(tmp_path / "store", max_batch_size=1, max_queue=0) as served:
        served.edit({"prompt": FRANCE, "target": "Lyon", "subject": "France"})  # the base alone needs no canary
        checker = Canaries([[5, 6, 7]], lambda: served.service.engine, Metrics(), 1.0)
        with served.client("reader") as client, client.stream("POST", "/v1/completions", json=body | {"stream": True}):
            until(lambda: served.service.engine.busy == 1)
            checker.start()
            checker.check(served.service.follower.current)
            until(lambda: len(errors) > 2)
            assert metrics(served)["wise_refused_requests_total"] == 0
            assert client.post("/v1/completions", json=body).status_code == 429
            assert metrics(served)["wise_refused_requests_total"] == 1, "a user's is counted"
            may_step.set()
        checker.close()


SAMPLES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def exposed() -> dict[str, set[str]]:
    """Every name that can be asked for, with its labels."""
    attributes = vars(Metrics()).values()
    collectors = [metric for metric in attributes if hasattr(metric, "describe") and hasattr(metric, "labels")]
    families = [(family, metric) for metric in collectors for family in metric.describe()]
    return {
        family.name + ending: set(getattr(metric, "_labelnames", ()))
        for family, metric in families
        for ending in SAMPLES[family.type]
    }


def unknown(expressions: list[str]) -> set[str]:
    """Names of metrics in expressions that are not exposed, and labels that they do not have."""
    names, wrong = exposed(), set()
    for expression in expressions:
        for name, selector in SELECTOR.findall(expression):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) - FROM_PROMETHEUS
            if name not in names:
                wrong.add(name)
            elif labels - names[name]:
                wrong.add(f"{name}: {', '.join(sorted(labels - names[name]))}")
    return wrong


def dashboard() -> list[str]:
    panels: list[dict[str, Any]] = json.loads((ROOT / "deploy/grafana.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def alerts() -> list[str]:
    groups = yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def test_the_dashboard_and_the_alerts_ask_for_what_is_there() -> None:
    assert len(dashboard()) > 15 and len(alerts()) > 5
    assert unknown(dashboard()) == set() == unknown(alerts())
    wrong = ["rate(wise_lost_total[5m])", 'wise_tickets{state="queued"}', "wise_requests"]  # negative controls
    assert unknown(wrong) == {"wise_lost_total", "wise_tickets: state", "wise_requests"}


def test_every_metric_is_on_the_dashboard() -> None:
    names = {name for expression in dashboard() for name, _ in SELECTOR.findall(expression)}
    families = {family.name for family in Metrics().registry.collect()}
    assert not {f for f in families if not any(name.startswith(f) for name in names)} - {"wise_editor_restarts"}


def test_every_alert_says_what_it_means_and_how_bad_it_is() -> None:
    for group in yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"]["summary"].endswith(".")
