"""Edits that were made on a base in one precision, served on a copy of it in another: refused, or asked again."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import EDITS, chat_model
from editors import editing
from packed import packed_model
from stores import statuses
from tiny import reading, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel
from waiting import until

import wise
from wise.errors import ArtifactError, StoreError
from wise.loading import QUANTIZATIONS, Placement, load_model
from wise.memory.artifact import save_memory
from wise.memory.modules import release_weights
from wise.memory.store.store import Store
from wise.namespaces import ask_again
from wise.serving.follower import Follower
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, `memory` with two edits that hold in float32, and `broken`, where the second says nothing."""
    made = tmp_path_factory.mktemp("made")
    model = chat_model()
    assert not model.edit(EDITS).failed
    model.model.save_pretrained(made / "base")
    model.tokenizer.save_pretrained(made / "base")
    model.save_pretrained(made / "memory")
    first, second = model.state.slots
    silent = replace(second, values=torch.zeros_like(second.values))
    state = replace(model.state, slots=(first, silent))
    save_memory(made / "broken", config=model.wise_config, state=state, base=model.fingerprint())
    return made


def loaded(folder: Path, memory: str = "memory", base: PreTrainedModel | None = None, **given: Any) -> wise.WiseModel:
    model, tokenizer = load_model(str(folder / "base"), placement=Placement(**given.pop("placement", {})))
    return wise.WiseModel.from_pretrained(folder / memory, base or model, tokenizer, **reading("hybrid"), **given)


COPIES = [{"dtype": "bfloat16"}, {"dtype": "float16"}, *({"quantization": name} for name in QUANTIZATIONS)]


@pytest.mark.parametrize("placement", COPIES, ids=lambda given: next(iter(given.values())))
def test_a_copy_is_refused_with_both_precisions_named_unless_it_is_allowed(
    folder: Path, placement: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    if "quantization" in placement:
        pytest.importorskip(QUANTIZATIONS[placement["quantization"]])
    with pytest.raises(ArtifactError, match="in float32 and this copy is in .*allow_precision"):
        loaded(folder, placement=placement)
    shown: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO):
        model = loaded(
            folder, placement=placement, allow_precision=True, progress=lambda done, total: shown.append((done, total))
        )
    report = model.precision_report
    assert report is not None and report.edits == 2 and report.held + len(report.lost) == 2
    assert (report.made_in, report.served_in) == ("float32", model.fingerprint().precision)
    assert shown[-1] == (2, 2) and str(report) in caplog.text
    said = {edit.id: model.ask(edit.prompt, chat=True)[0].text == edit.target for edit in EDITS}
    assert all(said[edit.id] for edit in EDITS if edit.id not in report.lost)
    assert model.edits == tuple(EDITS), "all of them stay live"


def test_what_does_not_hold_is_named_and_stays_live(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = loaded(folder, "broken", placement={"dtype": "bfloat16"}, allow_precision=True)
    report = model.precision_report
    assert report is not None and [*report.lost] == [EDITS[1].id] and report.held == 1
    assert "1 of 2 hold; not" in caplog.text and report.to_dict()["held"] == 1
    assert model.edits == tuple(EDITS)


def test_the_same_precision_is_not_asked_again(folder: Path) -> None:
    assert loaded(folder).precision_report is None
    assert loaded(folder, "broken", allow_precision=True).precision_report is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_base_is_refused_in_any_case(folder: Path, dtype: torch.dtype) -> None:
    other = tiny_model("llama", seed=1).to(dtype)
    with pytest.raises(ArtifactError, match="other weights"):
        loaded(folder, base=other, allow_precision=True)
    assert not any("SideMemory" in type(module).__name__ for module in other.modules())


def test_a_memory_that_was_edited_on_a_copy_is_of_that_copy(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder, placement={"dtype": "bfloat16"}, allow_precision=True)
    model.save_pretrained(tmp_path)
    again = wise.WiseModel.from_pretrained(
        tmp_path, tiny_model("llama").bfloat16(), model.tokenizer, **reading("hybrid")
    )
    assert again.precision_report is None and again.edits == model.edits


@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
def test_a_base_whose_weights_are_packed_is_edited_and_saved_and_is_another_base(mode: str, tmp_path: Path) -> None:
    """As GPTQ and AWQ pack them."""
    config = wise.WiseConfig(mode=mode, layer=1, terminator="w9")  # type: ignore[arg-type]
    model = wise.wrap(packed_model(), tiny_tokenizer(), config, **reading(mode))
    assert model.target_module.path == "model.layers.1.mlp.down_proj"
    assert not model.edit(EDITS[:1]).failed
    model.save_pretrained(tmp_path)
    again = wise.WiseModel.from_pretrained(tmp_path, packed_model(), tiny_tokenizer(), **reading(mode))
    assert again.ask(EDITS[0].prompt)[0].text == EDITS[0].target
    for other, reason in ((packed_model(seed=1), "gptq int4.: the same architecture with other weights"),
                          (tiny_model("llama"), "parameters: expected")):  # fmt: skip
        with pytest.raises(ArtifactError, match=reason):
            wise.WiseModel.from_pretrained(
                tmp_path, other, tiny_tokenizer(), allow_precision=True, **reading(mode)
            )


# -- a store ----------------------------------------------------------------------------------


def model_of(dtype: torch.dtype, seed: int = 0) -> wise.WiseModel:
    config = wise.WiseConfig(mode="hybrid", layer=1, terminator="")
    return wise.wrap(tiny_model("llama", seed=seed).to(dtype), tiny_tokenizer(), config, **reading("hybrid"))


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Store]:
    with Store.open(tmp_path / "store") as first:
        trained(first, model_of(torch.float32), EDITS[:1], Settings())
    return lambda **given: Store.open(tmp_path / "store", **given)


def trained(store: Store, model: wise.WiseModel, edits: list[wise.Edit], settings: Settings) -> None:
    editor = editing(model, store, settings)
    store.enqueue(edits)
    while editor.work():
        pass
    assert set(statuses(store).values()) == {"live"}, statuses(store)


def test_a_store_is_served_on_a_copy_that_is_allowed(
    store: Callable[..., Store], caplog: pytest.LogCaptureFixture
) -> None:
    with store(writer=False) as opened:
        copy = model_of(torch.bfloat16)
        with pytest.raises(StoreError, match="in float32 and this copy is in bfloat16.*allow_precision"):
            Follower(opened, copy, Metrics(), on_version=lambda version: None)
        with caplog.at_level(logging.INFO):
            follower = Follower(opened, copy, Metrics(), on_version=lambda version: None, allow_precision=True)
        assert "made in float32 and served in bfloat16: 1 of 1 hold" in caplog.text
        assert [*follower.current.edits] == [EDITS[0].id]
        with pytest.raises(StoreError, match="other weights"):
            Follower(
                opened, model_of(torch.bfloat16, seed=1), Metrics(), on_version=lambda v: None, allow_precision=True
            )


@pytest.mark.parametrize(
    ("dtype", "allowed", "trouble"),
    [
        (torch.float32, False, ""),
        (torch.bfloat16, False, "in float32 and this copy is in bfloat16.*allow_precision"),
        (torch.bfloat16, True, "of another precision: start anew, so that each is asked again"),
    ],
)
def test_a_replica_that_began_with_an_empty_store_serves_no_edits_of_another_precision(
    dtype: torch.dtype, allowed: bool, trouble: str, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "store") as writer, Store.open(tmp_path / "store", writer=False) as opened:
        given = {"on_version": lambda version: None, "allow_precision": allowed}
        model = model_of(dtype)
        follower = Follower(opened, model, Metrics(), **given)  # type: ignore[arg-type]
        release_weights(model.model)  # as vLLM does, which has its own
        follower.start()
        trained(writer, model_of(torch.float32), EDITS[:1], Settings())
        until(lambda: follower.trouble or follower.current.version)
        follower.close()
        assert re.search(trouble, follower.trouble) and follower.current.version == (0 if trouble else 1)


def test_a_store_is_edited_on_a_copy_that_is_allowed_and_stays_of_its_base(store: Callable[..., Store]) -> None:
    with store() as opened:
        copy = model_of(torch.bfloat16)
        with pytest.raises(StoreError, match="allow_precision"):
            editing(copy, opened)
        trained(opened, copy, EDITS[1:], Settings(allow_precision=True))
        snapshot = opened.read()
        assert snapshot.state.edit_ids == tuple(edit.id for edit in EDITS)
        assert snapshot.base is not None and snapshot.base.dtype == "float32"
        editing(model_of(torch.float32), opened)
        seen: list[tuple[str, int, int]] = []
        reports = ask_again(copy, snapshot, lambda *given: seen.append(given))
        assert seen[-1] == ("default", 2, 2) and reports["default"].held == 2
