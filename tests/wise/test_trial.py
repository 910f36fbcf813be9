"""Which models can be edited: of every kind one is tried here, and all of them where slow tests run."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import ROOT
from tiny import tiny_tokenizer
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from trial import FAILED, REFUSED, WORKS, Trial, attempt
from zoo import DEPTH, EXCLUDED, model_types, zoo_model

import wise
from wise.memory.layer import SideMemoryLayer

pytestmark = pytest.mark.filterwarnings("ignore")  # what models of transformers warn of is not ours

NO_FEED_FORWARD = "has a feed-forward layer in its residual stream"
OTHER_COLUMNS = "runs other columns than those of the text"
REFUSALS: dict[str, str] = {
    "cpmant": OTHER_COLUMNS,
    "falcon_mamba": NO_FEED_FORWARD,
    "mamba": NO_FEED_FORWARD,
    "mamba2": NO_FEED_FORWARD,
    "paligemma": "gives other logits",
    "prophetnet": OTHER_COLUMNS,
    "reformer": "no gradient",
    "rwkv": NO_FEED_FORWARD,
    "xlm": "cannot be run by itself",
    "xlnet": "a tuple that has no layers",
    "xlstm": "a xLSTMCache that has no layers",
}
"""What is refused when it is wrapped, with a part of the reason. Everything else works."""

OF_EVERY_KIND = (
    "deepseek_v32",  # sparse and latent attention, shared experts
    "falcon_h1",  # attention and state space side by side
    "gemma3",  # images, a norm behind the feed-forward
    "gpt_oss",  # packed experts
    "jamba",  # state space, experts
    "lfm2",  # convolution
    "llama",
    "longcat_flash",  # two feed-forwards in a block
    "mamba",  # no feed-forward
    "opt",  # rows flattened
    "qwen3_5_moe",  # linear attention, experts, images
    "zamba2",  # one block in several places
)


def expected(model_type: str) -> str:
    return REFUSED if model_type in REFUSALS else WORKS


def check(model_type: str) -> None:
    trial = attempt(model_type)
    assert trial.outcome == expected(model_type), trial
    assert REFUSALS.get(model_type, "") in trial.reason


@pytest.mark.parametrize("model_type", OF_EVERY_KIND)
def test_one_of_every_kind_works(model_type: str) -> None:
    check(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({*model_types()} - {*OF_EVERY_KIND}))
def test_all_work_but_those_that_are_named(model_type: str) -> None:
    check(model_type)


@pytest.mark.parametrize("model_type", ["mamba2", pytest.param("falcon_mamba", marks=pytest.mark.slow)])
def test_a_state_space_model_is_edited_at_a_module_that_is_named(model_type: str) -> None:
    """No layer of its cache counts tokens."""
    trial = attempt(model_type, target_module="backbone.layers.{i}.mixer")
    assert trial.outcome == WORKS, trial


@pytest.mark.parametrize("model_type", ["xlnet", "xlstm", "rwkv"])
def test_a_base_that_keeps_no_layers_is_refused_in_hybrid_alone(model_type: str) -> None:
    """A decoded token would be taken for a whole text."""
    named = {"target_module": "rwkv.blocks.{i}.feed_forward"} if model_type == "rwkv" else {}
    trial = attempt(model_type, **named)
    assert trial.outcome == REFUSED and "has no layers" in trial.reason and "mode='retrieve'" in trial.reason
    assert wise.wrap(zoo_model(model_type), tiny_tokenizer(), wise.WiseConfig(mode="retrieve", **named)).is_wrapped


def test_the_outcomes_that_are_told_are_those_expected() -> None:
    models = json.loads((ROOT / "docs/results/models.json").read_text())["models"]
    told = {name: one["outcome"] for name, one in models.items()}
    assert told == {name: expected(name) for name in model_types()}


def test_every_type_of_transformers_is_tried_or_excluded_with_a_reason() -> None:
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    assert {*EXCLUDED} < known == {*EXCLUDED, *model_types()}
    assert {*REFUSALS, *OF_EVERY_KIND} <= {*model_types()}
    assert len([name for name in model_types() if expected(name) == WORKS]) > 240


def test_a_model_is_the_same_each_time_and_has_every_kind_of_block() -> None:
    one, other = (zoo_model("qwen3_next") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert {*one.config.layer_types} == {"linear_attention", "full_attention"}
    assert one.config.num_hidden_layers == DEPTH


# -- a trial sees what is wrong ---------------------------------------------------------------


@contextmanager
def _louder(monkeypatch: pytest.MonkeyPatch, when: Any) -> Iterator[None]:
    """The wrapped layer adds to every token, as soon as `when` says so of its memory."""
    plain = SideMemoryLayer.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        return out + 1 if when(self.memory) else out

    with monkeypatch.context() as patch:
        patch.setattr(SideMemoryLayer, "forward", forward)
        yield


def failed_at(trial: Trial) -> str:
    return trial.reason.partition(":")[0]


def test_a_wrapped_model_that_is_not_the_bare_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with _louder(monkeypatch, lambda memory: memory is None):
        assert failed_at(attempt("llama")) == "wrap and change nothing"


def test_an_edit_that_is_heard_everywhere_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with _louder(monkeypatch, lambda memory: memory is not None):
        assert failed_at(attempt("llama")) in ("edit", "say it alone", "leave other prompts alone")


def test_an_edit_that_is_not_deleted_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wise.WiseModel, "delete", lambda self, ids: None)
    assert failed_at(attempt("llama")) == "delete"



# -- the script ----------------------------------------------------------------------------------


def test_the_file_keeps_what_is_not_tried_again_and_no_fault_stops_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "models.json"
    main = runpy.run_path(str(ROOT / "scripts/check_models.py"))["main"]

    def run(*types: str, wrong: str = "") -> int:
        tried = {name: Trial(outcome=FAILED if name == wrong else WORKS) for name in types}
        monkeypatch.setitem(main.__globals__, "attempt", tried.__getitem__)
        monkeypatch.setitem(main.__globals__, "prepare", lambda threads: None)
        monkeypatch.setattr("sys.argv", ["check_models.py", *types, "--output", str(file)])
        return int(main())

    def told() -> dict[str, str]:
        return {name: one["outcome"] for name, one in json.loads(file.read_text())["models"].items()}

    assert run("opt", "llama", "gpt2", wrong="llama") == 1
    assert told() == {"gpt2": WORKS, "llama": FAILED, "opt": WORKS}
    assert run("llama") == 0
    assert told() == {"gpt2": WORKS, "llama": WORKS, "opt": WORKS}
    assert capsys.readouterr().out.splitlines() == ["2 works, 1 failed", "3 works"]
    with pytest.raises(SystemExit, match="lama: not a type of the zoo"):
        run("lama")
    assert len(told()) == 3
