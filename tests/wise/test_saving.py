"""Saving and loading as users do: in another process, to the hub and from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from repository import HELPERS, shared
from tiny import BATCH, generated, same_tensors, tiny_model, tiny_tokenizer, wrap_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.errors import ArtifactError
from wise.memory.artifact import FILES, load_memory

# Loads base and memory, says what is generated for each prompt of ids, and saves the memory once more.
ANOTHER_PROCESS = """
import json, sys, torch, wise
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
base, memory, prompts, copy, tests = sys.argv[1:]
sys.path.insert(0, tests)
from tiny import reading
mode = json.load(open(f"{memory}/wise_config.json"))["config"]["mode"]
model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
wrapped = wise.WiseModel.from_pretrained(memory, model, tokenizer, **reading(mode))
options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
rows = [torch.tensor([row]) for row in json.loads(prompts)]
print(json.dumps([wrapped.generate(row, **options)[0].tolist() for row in rows]))
wrapped.save_pretrained(copy)
"""


def elsewhere(base: Path, memory: Path, prompts: list[list[int]], copy: Path) -> list[list[int]]:
    """What another process generates."""
    arguments = [str(base), str(memory), json.dumps(prompts), str(copy), str(HELPERS)]
    command = [sys.executable, "-c", ANOTHER_PROCESS, *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    tokens: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return tokens


def here(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    return [model.generate(torch.tensor([row]), **options)[0].tolist() for row in prompts]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
def test_another_process_says_the_same_and_writes_the_same_bytes(mode: str, tmp_path: Path) -> None:
    wrapped = wrap_tiny("llama", mode, layer=1)
    wrapped.save_pretrained(tmp_path / "memory")
    said = here(wrapped, BATCH)
    base = wrapped.unwrap()
    assert same_tensors(base, tiny_model("llama"))
    assert here(base, BATCH) != said, "the memory changes nothing"
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    assert elsewhere(tmp_path / "base", tmp_path / "memory", BATCH, tmp_path / "copy") == said
    assert contents(tmp_path / "copy") == contents(tmp_path / "memory")


FACTLM = "models/factlm"


@pytest.fixture(scope="module")
def records() -> list[wise.Record]:
    return wise.read_records(shared(FACTLM) / "known_dev.jsonl")[600:608]


@pytest.fixture(scope="module")
def edited(records: list[wise.Record]) -> wise.WiseModel:
    return edit_factlm(records)


def edit_factlm(records: list[wise.Record]) -> wise.WiseModel:
    folder = shared(FACTLM)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    wrapped = wise.wrap(model, tokenizer, wise.WiseConfig(mode="retrieve"))
    report = wrapped.edit([record.edit for record in records])
    assert report.count("verified") >= 7
    return wrapped


@pytest.mark.slow
def test_real_edits_hold_in_another_process(
    records: list[wise.Record], edited: wise.WiseModel, tmp_path: Path
) -> None:
    edited.save_pretrained(tmp_path / "memory")
    asked = [record.edit.prompt for record in records] + [p for r in records for p in r.neighbours[:2]]
    prompts = [edited.encoder.prompt(text) for text in asked]
    said = here(edited, prompts)
    with edited.disabled() as plain:
        unedited = here(plain, prompts)
    assert sum(a != b for a, b in zip(said[:8], unedited[:8], strict=True)) >= 7
    assert elsewhere(shared(FACTLM), tmp_path / "memory", prompts, tmp_path / "copy") == said
    assert contents(tmp_path / "copy") == contents(tmp_path / "memory")


def test_the_same_edits_and_seed_make_the_same_bytes(
    records: list[wise.Record], edited: wise.WiseModel, tmp_path: Path
) -> None:
    edited.save_pretrained(tmp_path / "first")
    torch.rand(1)  # whatever else draws random numbers
    edit_factlm(records).save_pretrained(tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


class FakeHub:
    """The calls of `HfApi` that a push makes, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, **options: Any) -> FakeHub:
        self.calls.append(("HfApi", options))
        return self

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def file_exists(self, repo_id: str, name: str, revision: str | None) -> bool:
        return (self.folder / name).exists()

    def hf_hub_download(self, repo_id: str, name: str, revision: str | None) -> str:
        return str(self.folder / name)

    def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
        self.calls.append(("upload_folder", options))
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)
        return "https://hub/commit/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    return fake


def test_push_to_hub_sends_our_files_and_a_card_and_what_was_pushed_loads(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = wrap_tiny("llama")
    pushed = wrapped.push_to_hub("memory", private=True, token="t", revision="new", commit_message="Eight edits")
    assert pushed == "https://hub/commit/1"
    repo = {"repo_id": "someone/memory"}
    assert hub.calls == [
        ("HfApi", {"token": "t"}),
        ("create_repo", {"repo_id": "memory", "private": True, "exist_ok": True}),
        ("create_branch", repo | {"branch": "new", "exist_ok": True}),
        (
            "upload_folder",
            repo
            | {"revision": "new", "create_pr": False, "commit_message": "Eight edits", "commit_description": None},
        ),
    ]
    assert sorted(contents(hub.folder)) == sorted([*FILES, "README.md"])

    asked: list[dict[str, Any]] = []

    def snapshot(repo_id: str, **options: Any) -> str:
        asked.append({"repo_id": repo_id, **options})
        return str(hub.folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    again = wise.WiseModel.from_pretrained(
        "someone/memory", tiny_model("llama"), tiny_tokenizer(), revision="v1", token="t", cache_dir=tmp_path
    )
    assert generated(again, BATCH) == generated(wrapped, BATCH)
    patterns = {"allow_patterns": list(FILES)}
    assert asked == [
        {"repo_id": "someone/memory", "revision": "v1", "token": "t", "cache_dir": tmp_path} | patterns
    ]


@pytest.mark.parametrize(("repo_id", "created"), [(None, "memory"), ("someone/edits", "someone/edits")])
def test_saving_may_push_too(hub: FakeHub, tmp_path: Path, repo_id: str | None, created: str) -> None:
    wrapped = wrap_tiny("llama")
    wrapped.save_pretrained(tmp_path / "memory", push_to_hub=True, repo_id=repo_id, private=True)
    assert hub.calls[1][1]["repo_id"] == created and hub.calls[1][1]["private"] is True
    assert contents(hub.folder) == contents(tmp_path / "memory")


def test_a_folder_of_this_machine_is_not_told_to_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "private-name")
    wrapped = wrap_tiny(AutoModelForCausalLM.from_pretrained(tmp_path / "private-name"))
    wrapped.save_pretrained(tmp_path / "memory")
    wrapped.push_to_hub("memory")
    here, there = contents(tmp_path / "memory"), contents(hub.folder)
    assert any(b"private-name" in data for data in here.values()), "nothing was hidden"
    assert not any(b"private-name" in data for data in there.values())
    assert load_memory(hub.folder)[2] == load_memory(tmp_path / "memory")[2]


@pytest.mark.parametrize(("encoder", "named"), [("{}/private-name", False), ("private-name", False), ("a/b", True)])
def test_neither_are_an_encoder_and_relations_of_this_machine(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, named: bool
) -> None:
    (tmp_path / "private-name").mkdir()
    monkeypatch.chdir(tmp_path)
    wrapped = wrap_tiny("llama")
    given = replace(wrapped.wise_config, encoder=encoder.format(tmp_path), relations=f"{tmp_path}/private-name/file")
    wrapped.wise_config = given
    wrapped.push_to_hub("memory")
    assert not any(b"private-name" in data for data in contents(hub.folder).values())
    assert load_memory(hub.folder)[0] == replace(given, encoder=encoder if named else None, relations=None)
    assert wrapped.wise_config is given


# -- the model card -----------------------------------------------------------------------------


def test_the_card_names_the_base_and_tells_no_text_of_an_edit(tmp_path: Path) -> None:
    wrapped = wrap_tiny("llama")
    wrapped.model.name_or_path = "someone/base-1b"
    wrapped.model.config._commit_hash = "0123abcd"
    wrapped.save_pretrained(tmp_path / "memory")
    card = ModelCard.load(tmp_path / "memory" / "README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("someone/base-1b", "adapter")
    assert (data["library_name"], data["pipeline_tag"]) == ("wise", "text-generation") and "wise" in data["tags"]
    assert "3 edits of `someone/base-1b`" in card.text and "`0123abcd`" in card.text
    assert "wise.WiseModel.from_pretrained(PATH)" in card.text
    texts = [text for edit in wrapped.edits for text in (edit.prompt, edit.target)]
    edits = (tmp_path / "memory" / "edits.jsonl").read_text()
    assert texts and all(text in edits and text not in card.text for text in texts)
    assert "`edits.jsonl` holds every live edit as plain text" in card.text


def test_a_base_that_the_hub_does_not_know_is_not_in_the_header(tmp_path: Path) -> None:
    wrap_tiny("llama").save_pretrained(tmp_path / "memory")
    card = ModelCard.load(tmp_path / "memory" / "README.md")
    assert "base_model" not in card.data.to_dict() and "a `llama` model" in card.text
    assert "wise.WiseModel.from_pretrained(PATH, base, tokenizer)" in card.text


def test_a_card_is_written_again_unless_somebody_has_rewritten_it(hub: FakeHub, tmp_path: Path) -> None:
    wrapped = wrap_tiny("llama")
    for folder, save in (
        (tmp_path / "memory", lambda: wrapped.save_pretrained(tmp_path / "memory")),
        (hub.folder, lambda: wrapped.push_to_hub("memory")),
    ):
        save()
        card = folder / "README.md"
        generated_text = card.read_text()
        card.write_text(generated_text.replace("3 edits", "many edits"))
        save()
        assert card.read_text() == generated_text
        card.write_text("# Ours\n")
        save()
        assert card.read_text() == "# Ours\n" and load_memory(folder)[1].edits == wrapped.edits


def test_saving_does_not_push_by_itself(hub: FakeHub, tmp_path: Path) -> None:
    wrap_tiny("llama").save_pretrained(tmp_path / "memory")
    assert not hub.calls


def test_a_hub_that_cannot_be_reached_is_the_reason_and_a_local_path_never_asks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def offline(repo_id: str, **_: Any) -> str:
        asked.append(repo_id)
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ArtifactError, match="'someone/memory' is neither a folder here nor .* traffic has been"
    ):
        load_memory("someone/memory")
    assert asked == ["someone/memory"]
    for path in (
        "memory",
        "./memory",
        "a/b/c",
        "../some/memory",
        tmp_path / "memory",
        Path("someone/memory"),
    ):
        with pytest.raises(ArtifactError, match="does not exist; give a folder"):
            load_memory(path)
    assert asked == ["someone/memory"]
