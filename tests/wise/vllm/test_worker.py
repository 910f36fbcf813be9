"""What a worker refuses before any request: a layer that vLLM does not have, and a memory that reads activations."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from tiny import wrap_tiny

import wise
from wise.vllm import worker as worker_file
from wise.vllm.worker import Memories, WiseWorker


@pytest.mark.parametrize("path", ["model.layers.1", "model.layers.1.mlp.down_proj"])
def test_a_layer_that_was_not_built_is_refused(path: str) -> None:
    """As where wise edits the output of a whole block, which is no layer that vLLM lets a plug-in replace."""
    worker = WiseWorker()
    worker.vllm_config = SimpleNamespace(additional_config={"wise": {"layer": path}})
    with pytest.raises(wise.ConfigError, match=f"{path}'.*RowParallelLinear"):
        worker.wise_attach()


@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_a_memory_that_reads_activations_is_refused(tmp_path: Path, mode: str) -> None:
    wrap_tiny("llama", mode).save_pretrained(tmp_path / "memory")
    with pytest.raises(wise.ConfigError, match=f"mode='{mode}'.*token ids"):
        Memories({}, "unused", None).read(1, str(tmp_path / "memory"))


def test_a_version_needs_a_store_or_a_folder() -> None:
    with pytest.raises(wise.ConfigError, match="version 7: no store"):
        Memories({}, "unused", None).read(7, None)


def test_a_version_is_there_when_it_is_taken_and_its_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    may_read, held = Event(), SimpleNamespace(adds=True, memories={})

    def read(version: int, folder: str | None) -> dict[tuple[int, str], str]:
        assert may_read.wait(60)
        if version == 2:
            raise wise.StoreError("segment 2 is damaged")
        return {(version, "default"): "memory"}

    monkeypatch.setattr(worker_file, "side_of", lambda layer: SimpleNamespace(adds=True))
    monkeypatch.setattr(worker_file, "Followed", lambda side, record: held)
    monkeypatch.setattr(worker_file, "Memories", lambda *_: SimpleNamespace(read=read))
    monkeypatch.setattr(worker_file, "observe", lambda *_: "V1")
    worker = WiseWorker()
    worker.model_runner = None
    model = SimpleNamespace(tokenizer="")
    worker.vllm_config = SimpleNamespace(additional_config={"wise": {"layer": "down"}}, model_config=model)
    worker.wise_attach("store")
    worker.wise_load(1)
    worker.wise_load(2)
    assert not worker.wise_loaded(1)
    may_read.set()
    worker.wise_take(1)
    assert held.memories == {(1, "default"): "memory"} and worker.wise_loaded(1)
    with pytest.raises(wise.StoreError, match="damaged"):
        worker.wise_take(2)
    assert [*held.memories] == [(1, "default")]
