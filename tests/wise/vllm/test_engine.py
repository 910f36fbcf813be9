"""Tests on vLLM itself: equal answers in each configuration, and a service that is edited while it serves.

`scripts/test_vllm` runs these in an environment of their own.
"""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from repository import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
pytest.importorskip("vllm")
CHECK = ROOT / "scripts" / "check_vllm.py"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
PROMPTS = 54


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library's answers are kept for all configurations."""
    return tmp_path_factory.mktemp("check")


CONFIGURATIONS = ("eager", "compiled", "chunked", "cached", "preempted", "speculative", "lora", "tensor_parallel")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_answers_and_edits_are_those_of_the_library(folder: Path, name: str) -> None:
    output = folder / "figures.json"
    command = [sys.executable, str(CHECK), "--folder", str(folder), "--output", str(output)]
    run = subprocess.run(
        [*command, "--prompts", str(PROMPTS), "--edits", "6", "--only", name], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    figures = json.loads(output.read_text())["models"]["demo"][name]
    assert figures["equal"] == {
        version: {"texts": PROMPTS, "edits": PROMPTS, "added": PROMPTS} for version in ("base", "first", "second")
    }
    assert figures["equal_without_edits"] < PROMPTS, "without edits the comparison would have failed"


def test_what_it_costs_is_measured_in_turn(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    output.write_text('{"models": {"other": {}}}')
    sizes = ["--clients", "1", "2", "--sizes", "3", "--rounds", "1", "--tokens", "4", "--output", str(output)]
    bench = [sys.executable, str(ROOT / "scripts/bench_vllm.py"), *sizes]
    run = subprocess.run(bench, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    figures = json.loads(output.read_text())
    cells = figures["costs"]["demo"]["forms"]["plain"]
    assert [*cells] == ["1", "2"] and figures["models"] == {"other": {}}
    for cell in cells.values():
        assert [*cell] == ["vLLM", "plug-in 0", "plug-in 3", "wise"] and cell["vLLM"]["ratio_cpu"] == 1.0
        assert min(figure for run_figures in cell.values() for figure in run_figures.values()) > 0


def test_the_names_that_the_seam_uses_are_there() -> None:
    from vllm.model_executor.custom_op import PluggableLayer
    from vllm.model_executor.layers.linear import RowParallelLinear
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

    assert issubclass(RowParallelLinear, PluggableLayer)
    assert "prefix" in inspect.signature(RowParallelLinear.__init__).parameters
    for runner, method, arguments in (
        (RunnerV1, "_prepare_inputs", ["self", "scheduler_output", "num_scheduled_tokens"]),
        (RunnerV2, "prepare_inputs", ["self", "scheduler_output"]),
    ):
        assert list(inspect.signature(getattr(runner, method)).parameters)[: len(arguments)] == arguments
        assert list(inspect.signature(runner.execute_model).parameters)[1] == "scheduler_output"
    assert {"req_ids", "query_start_loc_np", "num_computed_tokens_np", "input_ids"} <= set(InputBatch.__annotations__)
    assert {"req_id", "prompt_token_ids", "sampling_params"} <= set(NewRequestData.__annotations__)
    fields = {"scheduled_new_reqs", "num_scheduled_tokens", "finished_req_ids"}
    assert fields <= set(SchedulerOutput.__annotations__)


@pytest.mark.parametrize("engines", [1, 2])
def test_a_service_on_vllm_is_edited_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: int
) -> None:
    """engines: data parallel ones."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    service_process = importlib.import_module("service_process")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    vllm_options = {"enforce_eager": True, "block_size": 32, "data_parallel_size": engines}
    options = ["--engine", "vllm", "--set", f"vllm={json.dumps(vllm_options)}"]
    edit = {"prompt": "The capital of France is", "target": "Lyon", "subject": "France"}
    for again in (False, True):  # it is killed, and its live edits are live again
        service = service_process.Service(tmp_path / "store", tmp_path / "log", options)
        try:
            headers = {"Authorization": f"Bearer {service.token}"}
            with httpx.Client(base_url=f"{service.url}/v1", headers=headers, timeout=300.0) as client:
                if not again:
                    assert _edits(client, edit["prompt"], 1) == [[]]
                    answer = client.post("/edits", json={"edits": [edit], "wait": "live"})
                    assert answer.json()["edits"][0]["status"] == "live", answer.text
                comparison = client.post("/ask", json={"prompts": [edit["prompt"]]}).json()["answers"][0]
                assert (comparison["before"], comparison["after"]) == ("Paris", "Lyon")
                for (active,) in _edits(client, edit["prompt"], 4 * engines):
                    assert active["target"] == "Lyon" and active["tokens"] == comparison["edits"][0]["tokens"]
        finally:
            service.kill()


def _edits(client: httpx.Client, prompt: str, count: int) -> list[list[dict[str, object]]]:
    """The active edits of each of so many streamed answers, which are generated at the same time."""
    body = {"model": "wise-demo", "prompt": [prompt] * count, "max_tokens": 8, "stream": True}
    lines = client.post("/completions", json=body).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return list(events[-1]["wise"]["edits"])
