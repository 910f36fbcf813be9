"""Where a model is loaded, and in which precision: options of the commands, settings of the service."""

from __future__ import annotations

import inspect
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from tiny import tiny_model, tiny_tokenizer

import wise
from wise import loading
from wise.cli.app import app
from wise.cli.options import EditedModelOptions, with_options
from wise.errors import ConfigError
from wise.loading import QUANTIZATIONS, Placement, load_model
from wise.serving.settings import Settings

LOADING = ("ask bench.editors chat-demo demo edit eval eval-chat forget harness info locate serve store.delete").split()
PLACEMENT = [*inspect.signature(Placement).parameters]
NO_MODEL = ("compare stream token train-router store.check store.log").split()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def options_of(command: str) -> set[str]:
    found: Any = typer.main.get_command(app)
    for name in command.split("."):
        found = found.commands[name]
    return {option for parameter in found.params for option in parameter.opts}


@pytest.mark.parametrize("command", LOADING)
def test_every_command_that_loads_a_model_takes_the_same_options(command: str) -> None:
    assert {f"--{name.replace('_', '-')}" for name in PLACEMENT} <= options_of(command)


@pytest.mark.parametrize("command", ["edit", "stream", "eval", "eval-chat", "locate", "bench.editors"])
def test_every_command_that_reads_records_takes_the_format_and_other_names_of_columns(command: str) -> None:
    assert {"--format", "--columns"} <= options_of(command)
    assert "--columns" not in options_of("compare")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_of_which_a_file_was_not_fetched_is_refused_by_name(base: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "notes.bin").write_text("version https://git-lfs.github.com/spec/v1\n")  # is not read
    load_model(str(folder))
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for load in (lambda: load_model(str(folder)), lambda: wise.wrap(folder)):
        with pytest.raises(ConfigError, match=f"{name} is a Git LFS pointer, .*`git lfs pull`"):
            load()


def test_a_model_without_a_tokenizer_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    with pytest.raises(ConfigError, match="model '.*bare'"):
        load_model(str(folder))


@pytest.mark.parametrize("command", NO_MODEL)
def test_one_that_loads_none_does_not(command: str) -> None:
    assert "--dtype" not in options_of(command)


def test_the_service_takes_them_as_settings() -> None:
    settings = Settings(dtype="bfloat16", device="cpu")
    assert settings.placement() == Placement(dtype="bfloat16", device="cpu")
    with pytest.raises(ConfigError, match="expected one of float32"):
        Settings(dtype="int4").placement()


def test_a_command_is_given_its_groups_of_options() -> None:
    seen = []

    @with_options
    def command(name: str, edited: EditedModelOptions, last: int = 1) -> None:
        seen.append((name, edited, last))

    options = ["model", "threads", *PLACEMENT, "allow_precision"]
    assert [*inspect.signature(command).parameters] == ["name", *options, "last"]
    command(name="a", last=2, **dict.fromkeys(options) | {"dtype": "float16", "threads": 3})
    ((_, edited, _),) = seen
    assert seen == [("a", edited, 2)] and edited.is_named
    assert (edited.base.threads, edited.base.placement.dtype, edited.base.placement.device) == (3, "float16", None)
    with pytest.raises(ConfigError, match="--dtype int4: expected one of"):
        command(name="a", last=2, **dict.fromkeys(options) | {"dtype": "int4"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "nowhere"}, "--device nowhere: .*expected a device of torch's"),
        ({"device": "meta"}, "--device meta: .*hold no values"),
        ({"device_map": '{"": "nowhere"}'}, "--device nowhere: "),
        ({"dtype": "int8"}, "--dtype int8: expected one of float32, bfloat16, float16"),
        ({"quantization": "bnb-3bit"}, "--quantization bnb-3bit: expected one of bnb-8bit, bnb-4bit, torchao-int8"),
        ({"device_map": "everywhere"}, "--device-map everywhere: expected one of auto"),
        ({"device_map": "{}"}, "--device-map {}: expected one of auto"),
        ({"device_map": "[1]"}, r"--device-map \[1\]: expected one of auto"),
        ({"device_map": "auto", "device": "cpu"}, "--device cpu and --device-map auto: give one of the two"),
    ],
)
def test_what_cannot_be_is_refused_and_named(base: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(str(base), placement=Placement(**given))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("given", [{"device": "cuda"}, {"device_map": '{"": 0}'}])
def test_a_gpu_that_is_not_there_is_named(base: Path, given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="--device cuda.*CUDA"):
        load_model(str(base), placement=Placement(**given))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_library_that_is_not_installed_is_named_with_what_installs_it(
    quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = QUANTIZATIONS[quantization]
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == library else find_spec(name))
    with pytest.raises(ConfigError, match=rf"{library} is not installed: pip install 'wise-runtime\[quantization\]'"):
        Placement(quantization=quantization)


def test_a_folder_whose_own_quantization_is_not_installed_is_named(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    four = {"bits": 4, "group_size": 128}
    for method, library, told in (("hqq", "hqq", "[Hh][Qq][Qq]"), ("gptq", "optimum", "GPTQ .*pip install optimum"),
                                  ("awq", "gptqmodel", "AWQ .*pip install gptqmodel")):  # fmt: skip
        if find_spec(library) is None:
            own = {"quant_method": method, **({"quant_config": {}} if method == "hqq" else four)}
            (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
            with pytest.raises(ConfigError, match=f"model .*{told}"):
                load_model(str(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("place", [{}, {"device": "cpu"}, {"device_map": "auto"}, {"device_map": '{"": "cpu"}'}])
def test_a_model_is_loaded_as_asked(base: Path, dtype: str, place: dict[str, str]) -> None:
    model, _ = load_model(str(base), placement=Placement(dtype=dtype, **place))
    assert model.dtype == getattr(torch, dtype) and model.device.type == "cpu"
    assert torch.equal(model.lm_head.weight, tiny_model("llama", hidden_size=64).lm_head.weight.to(model.dtype))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_model_is_quantized_as_asked_saved_and_read_from_its_folder(
    base: Path, quantization: str, tmp_path: Path
) -> None:
    pytest.importorskip(QUANTIZATIONS[quantization])
    model, _ = load_model(str(base), placement=Placement(quantization=quantization))
    plain, _ = load_model(str(base))
    ids = torch.tensor([[5, 6, 7, 8]])
    near, exact = model(ids).logits, plain(ids).logits
    assert not torch.equal(near, exact)
    assert torch.nn.functional.cosine_similarity(near.flatten(), exact.flatten(), dim=0) > 0.95
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    again, _ = load_model(str(tmp_path))
    assert torch.equal(again(ids).logits, near)


def test_a_bad_value_ends_a_command(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typer.main.get_command(app)(["info", "--model", str(base), "--dtype", "x"], standalone_mode=False) == 2
    assert "--dtype x: expected one of" in capsys.readouterr().err
