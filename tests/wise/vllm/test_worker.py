"""What a worker refuses before any request: a layer that vLLM does not have, and a memory that reads activations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import wrap_tiny

import wise
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
