"""Loads a causal LM and its tokenizer, for all that name one: on which device, and in which precision.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wise.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wise.memory.fingerprint import Fingerprint

DTYPES = ("float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
QUANTIZATIONS = {"bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes", "torchao-int8": "torchao"}
"""Each with the library that it needs."""
MODEL_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""Endings of what is read of a model and its tokenizer."""
NO_TOKENIZER = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What transformers raises for a tokenizer without its files."""
QUANTIZATION_NEEDS = "pip install 'wise-runtime[quantization]'"


def prepare(threads: int | None) -> None:
    """Sets the number of CPU threads, if given, and keeps transformers' own bars and notes off stderr."""
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if threads is not None:
        torch.set_num_threads(threads)


def check_device(name: str | None) -> None:
    """Raises ConfigError if torch cannot put a tensor there."""
    import torch

    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("tensors on it hold no values")
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = _first_line(error)
        raise ConfigError(f"--device {name}: {reason} (expected a device of torch's, such as cpu or cuda)") from error


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a model is loaded and in which precision. What is None is as the folder says, on the CPU.

    Raises ConfigError for a value that is not known, or two that exclude each other.
    """

    device: str | None = None
    """Of torch, such as `cuda` or `cuda:1`."""
    dtype: str | None = None
    """One of `DTYPES`."""
    device_map: str | None = None
    """One of `DEVICE_MAPS`, or a JSON object of accelerate's: the device of each module."""
    quantization: str | None = None
    """One of `QUANTIZATIONS`. A folder that is quantized already says so itself."""

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("quantization", QUANTIZATIONS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ConfigError(f"--{name} {value}: expected one of {', '.join(known)}")
        if self.device is not None and self.device_map is not None:
            raise ConfigError(
                f"--device {self.device} and --device-map {self.device_map}: give one of the two; a map names devices"
            )
        self._parsed_map()
        library = None if self.quantization is None else QUANTIZATIONS[self.quantization]
        if library is not None and find_spec(library) is None:
            raise ConfigError(f"--quantization {self.quantization}: {library} is not installed: {QUANTIZATION_NEEDS}")

    def _parsed_map(self) -> str | dict[str, int | str] | None:
        if self.device_map is None or self.device_map in DEVICE_MAPS:
            return self.device_map
        try:
            parsed = json.loads(self.device_map)
        except json.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict) or not parsed or not all(isinstance(v, int | str) for v in parsed.values()):
            raise ConfigError(
                f"--device-map {self.device_map}: expected one of {', '.join(DEVICE_MAPS)}, or a JSON object of "
                'modules and their devices, such as {"": "cuda:0"}'
            )
        return parsed

    def arguments(self) -> dict[str, Any]:
        """The arguments of `from_pretrained`. Raises ConfigError for a device that is not there."""
        import torch

        placed = self._parsed_map()
        named = placed.values() if isinstance(placed, dict) else [self.device]
        for device in named:
            if device != "disk":
                check_device(f"cuda:{device}" if isinstance(device, int) else device)
        arguments = {
            "dtype": None if self.dtype is None else getattr(torch, self.dtype),
            "device_map": self.device if placed is None else placed,
            "quantization_config": self._quantization(),
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def _quantization(self) -> Any:
        from transformers import BitsAndBytesConfig, TorchAoConfig

        if self.quantization == "torchao-int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig())
        if self.quantization is None:
            return None
        four = self.quantization == "bnb-4bit"
        kind = {"bnb_4bit_quant_type": "nf4"} if four else {}
        return BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four, **kind)  # type: ignore[no-untyped-call]


DEFAULT_PLACEMENT = Placement()


def load_model(
    name: str | None, *, threads: int | None = None, placement: Placement = DEFAULT_PLACEMENT
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer. name: a folder or hub id; None is the demo model.

    Raises ConfigError if there is none, no such device, or what its quantization needs is not installed.
    """
    from transformers import AutoTokenizer

    from wise.demo import model_path

    prepare(threads)
    arguments = placement.arguments()
    source = str(model_path()) if name is None else name
    _check_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except NO_TOKENIZER as error:
        raise _no_model(source, error) from error
    return _causal_lm(source, **arguments), tokenizer


def load_base(source: str | PathLike[str], *, revision: str | None = None, dtype: str = "auto") -> PreTrainedModel:
    """The causal LM at a folder or hub id, from safetensors alone, without its code. Raises ConfigError."""
    _check_folder(source)
    return _causal_lm(str(source), revision=revision or "main", dtype=dtype)


def _check_folder(source: str | PathLike[str]) -> None:
    from wise.memory.bounded_file import unfetched

    name, folder = str(source), Path(source)
    is_hub_id = not name.startswith((".", "~")) and not folder.is_absolute() and name.count("/") <= 1
    if (isinstance(source, PathLike) or not is_hub_id) and not folder.is_dir():
        raise ConfigError(f"model {name!r}: no such folder; give one that holds a causal LM, or a hub id")
    for file in sorted(folder.glob("*.*")):
        pointer = unfetched(file) if file.is_file() and file.suffix in MODEL_FILES else None
        if pointer is not None:
            raise ConfigError(f"model {name!r}: {file.name} {pointer}")


def _causal_lm(source: str, **arguments: Any) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **arguments)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"model {source!r}: {reason} (for bitsandbytes and torchao: {QUANTIZATION_NEEDS})") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _no_model(source, error) from error
    return model


def _no_model(source: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"model {source!r}: {_first_line(error)} (expected a causal LM with safetensors weights, in a folder or on the "
        "hub)"
    )


def load_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer at the folder or hub id that a model was loaded from. Raises ConfigError if there is none."""
    from transformers import AutoTokenizer

    name = str(getattr(model, "name_or_path", ""))
    if not name:
        raise ConfigError("no tokenizer was given, and the model does not say where it was loaded from; give both")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=getattr(model.config, "_commit_hash", None) or "main")
    except NO_TOKENIZER as error:
        raise ConfigError(
            f"no tokenizer was given, and there is none beside the model at {name!r} ({_first_line(error)}); give one"
        ) from error
    return tokenizer


def loaded(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model, and the tokenizer beside it if none is given. A model that is named by folder or hub id is loaded."""
    model = load_base(model) if isinstance(model, str | PathLike) else model
    return model, load_tokenizer(transformers_model(model)) if tokenizer is None else tokenizer


def named_base(base: Fingerprint) -> PreTrainedModel:
    """The base that a memory names. Raises ConfigError if it names none, or none that can be loaded."""
    if not base.name:
        raise ConfigError("the memory does not name it; give the model and its tokenizer")
    return load_base(base.name, revision=base.revision or None, dtype=base.dtype)


def transformers_model(model: Any) -> Any:
    """The model of transformers inside a model of peft; any other model itself.

    Raises UnsupportedModelError for what is no model to generate with, and for adapters that are no part of the layers.
    """
    from torch import nn

    peft: Any = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel | peft.PeftMixedModel):
        for name, config in model.peft_config.items():
            if config.is_prompt_learning:
                raise UnsupportedModelError(
                    f"adapter {name!r} ({config.peft_type}) puts embeddings before each prompt, which the router "
                    "cannot read; wrap a model whose adapters change its layers, such as LoRA"
                )
        model = model.base_model.model
    if not isinstance(model, nn.Module) or not hasattr(model, "config") or not hasattr(model, "generate"):
        around = isinstance(model, nn.Module) and hasattr(getattr(model, "module", None), "generate")
        hint = "; give the model inside, its field 'module'" if around else ""
        raise UnsupportedModelError(
            f"wrap() was given a {type(model).__name__}: expected a causal LM of transformers, such as "
            f"AutoModelForCausalLM loads, a model of peft around one, or a folder or hub id of one{hint}"
        )
    return model


def check_tokenizer(tokenizer: Any) -> None:
    """Raises ConfigError for anything but a tokenizer of transformers."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        inner = getattr(tokenizer, "tokenizer", None)
        hint = "its field 'tokenizer'" if isinstance(inner, PreTrainedTokenizerBase) else "one of transformers"
        raise ConfigError(f"tokenizer={type(tokenizer).__name__}: expected a tokenizer; give {hint}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
