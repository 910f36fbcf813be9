"""What comes from elsewhere is looked at before it is read, and judged by what it means before it is used."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stores import BASE, CONFIG, digest, edits, learn, new_folder, reseal, seal, written

from wise.errors import ArtifactError, EditError
from wise.formats.edit_file import read_records
from wise.formats.files import MAX_BYTES
from wise.memory import bounded_file
from wise.memory.artifact import load_memory, save_memory
from wise.memory.store.pack import MOST_OUTCOME
from wise.memory.store.store import Store

FILES = ("wise_config.json", "edits.jsonl", "memory.safetensors")


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    save_memory(tmp_path / "memory", config=CONFIG, state=written(edits(1, 2)), base=BASE)
    return tmp_path / "memory"


def test_a_memory_that_was_only_sealed_again_is_read(memory: Path) -> None:
    save_file(load_file(memory / FILES[2]), memory / FILES[2], {"format": "wise-memory"})
    reseal(memory)
    assert digest(load_memory(memory)[1]) == digest(written(edits(1, 2)))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "device", "elsewhere", "folder", "nowhere"])
def test_a_file_that_is_none_is_refused_before_it_is_opened(memory: Path, name: str, kind: str) -> None:
    file = memory / name
    data = file.read_bytes()
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "elsewhere":  # its own bytes, but what lies there may be anything later
        (memory.parent / "other").write_bytes(data)
        file.symlink_to(memory.parent / "other")
    else:
        file.symlink_to("/dev/zero" if kind == "device" else "/no/such/file")
    with pytest.raises(ArtifactError, match=f"{name}: is (a|missing)"):
        load_memory(memory)


def test_a_snapshot_of_the_hubs_cache_is_read(memory: Path) -> None:
    snapshot = memory.parent / "models--a--b" / "snapshots" / "0" / ""
    blobs = memory.parent / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in FILES:
        (memory / name).rename(blobs / f"x{name}")
        (snapshot / name).symlink_to(f"../../blobs/x{name}")
    assert load_memory(snapshot)[1].edits


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (FILES[0], "has 2,147,483,648 bytes, and 16,777,216 are read"),
        (FILES[1], "has 2,147,483,648 bytes, and 1,073,741,824 are read"),
        (FILES[2], r"has 2147483648 bytes of \d"),
    ],
)
def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    memory: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (memory / name).open("ab") as stream:
        stream.truncate(2 * bounded_file.MOST_TEXT)  # a hole, which takes no place
    reads: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read_bytes(path))
    with pytest.raises(ArtifactError, match=f"{name}: {said}"):
        load_memory(memory)
    assert name not in reads


def test_a_header_that_is_too_large_is_refused_before_it_is_parsed(memory: Path) -> None:
    size = bounded_file.MOST_HEADER + 1
    (memory / FILES[2]).write_bytes(size.to_bytes(8, "little") + b" " * size)
    reseal(memory)
    with pytest.raises(ArtifactError, match="its header has 1,048,577 bytes"):
        load_memory(memory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(keys=t["keys"] * 1e4), "has length .*, expected 1"),
        (lambda t: t.update(keys=t["keys"] * 0), "has length 0, expected 1"),
        (lambda t: t.update({"slots.scores": t["slots.scores"] * 0 - 1}), "scores"),
        (lambda t: t.update({"slots.scores": t["slots.scores"] * 0}), "scores"),
        (lambda t: t.update({"slots.scores": t["slots.scores"] * 0 + 1.5}), "scores"),
        (lambda t: t.update({n: t[n] * 1e30 for n in t if n.endswith("/values")}), "holds numbers beyond 1e\\+06"),
        (lambda t: t.update({n: t[n] + 9 for n in t if n.endswith("/ids")}), "says tokens that the base of 9"),
        (lambda t: t.update({"key_space.thresholds": t["key_space.thresholds"] * 0 - 1}), "no space of keys"),
        (lambda t: t.update({"key_space.size": torch.tensor(2**40)}), "expected torch.float16"),
        (lambda t: t.update({"slots.edits": t["slots.edits"].double()}), "do not fit"),
    ],
)
def test_a_memory_that_means_what_no_edit_means_is_refused(
    memory: Path, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    reseal(memory, tensors=change)
    with pytest.raises(ArtifactError, match=said):
        load_memory(memory)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["config"].update(seed=10**400),
        lambda m: m["config"].update(seed=2**65),
        lambda m: m["config"].update(max_steps=2**40),
        lambda m: m["base"].update(quantized=[float("inf")]),
        lambda m: m["base"].update(sample=[10**400]),
        lambda m: m.update(config=[]),
        lambda m: m.update(kinds=7),
    ],
)
def test_settings_beyond_their_range_are_refused(memory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    reseal(memory, change)
    with pytest.raises(ArtifactError, match="wise_config.json"):
        load_memory(memory)


@pytest.mark.parametrize(
    ("ticket", "said"),
    [
        ([], "an object of our fields was expected"),
        ("x", "an object of our fields was expected"),
        ({"more": 1}, "an object of our fields was expected"),
        ({"reason": 7}, "field 'reason' is 7, a text was expected"),
        ({"valid_from": ["x"]}, "field 'valid_from'"),
        ({"valid_until": "never"}, "field 'valid_until'"),
        ({"verified": "x"}, "field 'verified' is 'x'"),
        ({"verified": ["x"]}, "field 'verified'"),
        ({"verified": {"holds": "all"}}, "field 'verified.holds'"),
        ({"verified": {"holds": {"a": 1}}}, "field 'verified.holds'"),
        ({"verified": {"tried": [1]}}, "field 'verified.tried'"),
        ({"verified": {"loss": float("nan")}}, "it holds NaN"),
        ({"verified": {"answer": "\ud800"}}, "surrogates not allowed"),
        ({"verified": {"answer": "x" * MOST_OUTCOME}}, f"an object of up to {MOST_OUTCOME} characters"),
        ({"verified": {"other": {"deep": []}}}, "field 'verified.other'"),
    ],
)
def test_a_ticket_of_a_pack_is_judged_before_anything_is_written(ticket: object, said: str) -> None:
    with new_folder() as folder:
        with Store.open(folder / "source") as store:
            learn(store, edits(1))
            store.export_pack(folder / "pack")
        seal(folder / "pack" / "tickets.json", lambda data: data["tickets"].update(e1=ticket))
        with Store.open(folder / "target") as store:
            with pytest.raises(ArtifactError, match=said):
                store.import_pack(folder / "pack")
            assert store.log() == ()


def test_a_packed_file_of_edits_is_measured_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edits.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        for _ in range(3):
            stream.write(b" " * 1_000_000)
    monkeypatch.setattr("wise.formats.files.MAX_BYTES", 2_000_000)
    read: list[int] = []
    readline = gzip.GzipFile.readline
    monkeypatch.setattr(gzip.GzipFile, "readline", lambda self, size=-1: read.append(size) or readline(self, size))
    with pytest.raises(EditError, match="holds more than 2,000,000 bytes"):
        read_records(file)
    assert read == [] and MAX_BYTES == 268_435_456
