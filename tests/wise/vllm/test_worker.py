"""A worker refuses before any request: a layer that vLLM does not have, and a memory that reads activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chats import EDITS
from followed import answer_state
from tiny import WordReader, tiny_tokenizer, wrap_tiny

import wise
from wise.memory.state import MemoryState
from wise.vllm import worker as worker_file
from wise.vllm.worker import Memories, WiseWorker

STATE = answer_state()


@pytest.mark.parametrize("path", ["model.layers.1", "model.layers.1.mlp.down_proj"])
def test_a_layer_that_was_not_built_is_refused(path: str) -> None:
    """Such as a whole block, whose output wise edits elsewhere: vLLM lets no plug-in replace it."""
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


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> Memories:
    """Memories of two namespaces, whose reader is `WordReader`; version 2 is without the edit of the second."""
    both = replace(STATE, edits=(STATE.edits[0], replace(STATE.edits[1], namespace="team")))
    states = {"1": both, "2": both.without([EDITS[1].id]), "3": replace(both)}
    monkeypatch.setattr(worker_file, "load_memory", lambda folder: (wise.WiseConfig(), states[folder], None))
    monkeypatch.setattr(worker_file, "load_encoder", lambda *_, **__: WordReader())
    monkeypatch.setattr(worker_file, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda _: tiny_tokenizer()))
    return Memories({}, "unused", None)


def test_a_namespace_in_which_nothing_changes_keeps_its_memory(memories: Memories) -> None:
    first, second, third = (memories.read(version, str(version)) for version in (1, 2, 3))
    assert [*first] == [(1, "default"), (1, "team")] and [*second] == [(2, "default")]
    assert [edit.id for edit in first[1, "team"].state.edits] == [EDITS[1].id]
    assert first[1, "default"] is second[2, "default"] is third[3, "default"]
    assert first[1, "team"] is not third[3, "team"]


def test_edits_of_another_reader_are_refused(memories: Memories, monkeypatch: pytest.MonkeyPatch) -> None:
    other_reader = type("Other", (WordReader,), {"name": "trained anew"})
    monkeypatch.setattr(worker_file, "load_encoder", lambda *_, **__: other_reader())
    with pytest.raises(wise.ConfigError, match="reader 'words' and vLLM has 'trained anew'.*wise.relations"):
        memories.read(1, "1")


def test_the_base_of_each_version_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the base of the first edit of a store that was empty when the server started."""
    snapshots = [SimpleNamespace(base=None, config=None, state=MemoryState())]
    snapshots += [SimpleNamespace(base="another", config=None, state=STATE)]
    monkeypatch.setattr(worker_file, "open_reader", lambda _: SimpleNamespace(read=snapshots.__getitem__))

    def check(base: Any) -> None:
        if base is not None:
            raise wise.ConfigError(f"{base} is not served")

    memories = Memories({}, "unused", "a store", check)
    assert memories.read(0, None) == {}
    with pytest.raises(wise.ConfigError, match="another is not served"):
        memories.read(1, None)


def attached(monkeypatch: pytest.MonkeyPatch, read_version: Any, sequences: SimpleNamespace) -> WiseWorker:
    """A worker that reads versions with `read_version` and gives them to `sequences`."""
    monkeypatch.setattr(worker_file, "addition_of", lambda layer: SimpleNamespace(adds=True))
    monkeypatch.setattr(worker_file, "FollowedSequences", lambda addition, record: sequences)
    monkeypatch.setattr(worker_file, "Memories", lambda *_: SimpleNamespace(read=read_version))
    monkeypatch.setattr(worker_file, "observe", lambda *_: "V1")
    worker = WiseWorker()
    worker.model_runner = None
    model = SimpleNamespace(tokenizer="")
    worker.vllm_config = SimpleNamespace(additional_config={"wise": {"layer": "down"}}, model_config=model)
    worker.wise_attach("store")
    return worker


def test_a_version_is_there_when_it_is_taken_and_its_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    may_read, sequences = Event(), SimpleNamespace(adds=True, memories={})

    def read_version(version: int, folder: str | None) -> dict[tuple[int, str], str]:
        assert may_read.wait(60)
        if version == 2:
            raise wise.StoreError("segment 2 is damaged")
        return {(version, "default"): "memory"}

    worker = attached(monkeypatch, read_version, sequences)
    worker.wise_load(1)
    worker.wise_load(2)
    assert not worker.wise_loaded(1)
    may_read.set()
    worker.wise_take(1)
    assert sequences.memories == {(1, "default"): "memory"} and worker.wise_loaded(1)
    with pytest.raises(wise.StoreError, match="damaged"):
        worker.wise_take(2)
    assert [*sequences.memories] == [(1, "default")]


def test_loading_has_no_team_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads would make those of the steps sleep between two operations: a step would take a third longer."""
    sequences, own_threads = SimpleNamespace(adds=True, memories={}), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        worker = attached(monkeypatch, lambda *_: {"threads": torch.get_num_threads()}, sequences)
        worker.wise_load(1)
        worker.wise_take(1)
        assert sequences.memories == {"threads": 1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(own_threads)
