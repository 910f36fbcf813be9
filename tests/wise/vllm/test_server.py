"""vLLM's own server with the middleware, for real: it answers with the edits of a store, also with new ones."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from waiting import until

import wise
from wise.demo import model_path
from wise.loading import load_model
from wise.memory.store.store import Store
from wise.namespaces import edited

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
pytest.importorskip("vllm")
FRANCE = "The capital of France is"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
OPTIONS = ["--served-model-name", "demo", "--dtype", "float32", "--enforce-eager", "--block-size", "32"]
SECONDS = 600.0
KEY = {"Authorization": "Bearer a-key"}


def trained(store: Store, model: wise.WiseModel) -> None:
    """Trains the next edit and makes it live."""
    tickets, before = store.claim(1), store.read()
    state, _ = edited(model, before.state, [ticket.edit for ticket in tickets])
    store.commit(tickets, state, parent=before.version, config=model.wise_config, base=model.fingerprint())


@contextmanager
def serving(store: Path, log: Path, layer: str) -> Iterator[httpx.Client]:
    options = ["--middleware", "wise.vllm.middleware.EditingMiddleware"]
    options += ["--worker-extension-cls", "wise.vllm.worker.WiseWorker", "--additional-config.wise.layer", layer]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path())]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | ENVIRONMENT | {"WISE_STORE": str(store), "VLLM_PLUGINS": "wise"}
    with log.open("wb") as output:
        command += [*OPTIONS, *options, "--api-key", "a-key", "--port", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, headers=KEY) as client:
                until(lambda: process.poll() is not None or _healthy(client), SECONDS)
                assert process.poll() is None, log.read_text()[-4000:]
                yield client
        finally:
            process.terminate()
            process.wait(SECONDS)


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def answer(client: httpx.Client) -> tuple[int, str, list[str]]:
    """The version of a streamed answer, its text, and the targets of the edits that were active."""
    body = {"model": "demo", "prompt": FRANCE, "max_tokens": 8, "temperature": 0, "stream": True}
    lines = client.post("/v1/completions", json=body).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    metadata = events[-1]["wise"]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    return metadata["version"], text, [edit["target"] for edit in metadata["edits"][0]]


def test_a_server_of_vllm_answers_with_a_store_that_changes(tmp_path: Path) -> None:
    model = wise.wrap(*load_model(None))
    with Store.open(tmp_path / "store") as store:
        store.enqueue([wise.Edit(prompt=FRANCE, target="Lyon", subject="France")])
        trained(store, model)
        with serving(tmp_path / "store", tmp_path / "log", model.target_module.path) as client:
            assert answer(client) == (1, " Lyon.", ["Lyon"])
            headers = {"X-Wise-Namespace": "other"}
            assert client.get("/v1/models", headers=headers | {"Authorization": "none"}).status_code == 401
            refusal = client.post("/v1/completions", json={"model": "demo", "prompt": FRANCE}, headers=headers)
            assert refusal.status_code == 404 and "there are: default" in refusal.json()["error"]["message"]
            body = {"edits": [{"prompt": FRANCE, "target": "Nice", "subject": "France"}]}
            assert client.post("/v1/edits", json=body).status_code == 202
            trained(store, model)
            until(lambda: answer(client)[0] == 2, SECONDS)
            assert answer(client) == (2, " Nice.", ["Nice"])
            statuses = [(edit["target"], edit["status"]) for edit in client.get("/v1/edits").json()["data"]]
            assert statuses == [("Lyon", "retired"), ("Nice", "live")]
            assert client.get("/v1/edits", headers={"Authorization": "Bearer other"}).status_code == 401
