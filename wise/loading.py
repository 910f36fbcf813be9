"""Loads a causal LM and its tokenizer, for the commands, the service, and calls that name one.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import sys
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wise.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wise.memory.fingerprint import Fingerprint


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
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = _first_line(error)
        raise ConfigError(f"--device {name}: {reason} (expected a device of torch's, such as cpu or cuda)") from error


def load_model(
    name: str | None, *, threads: int | None = None, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer. name: a folder or hub id; None is the demo model.

    Raises ConfigError if there is none, or no such device.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wise.demo import model_path

    prepare(threads)
    check_device(device)
    source = str(model_path()) if name is None else name
    if _is_path(source) and not Path(source).is_dir():
        raise ConfigError(f"--model {source}: no such folder; give one that holds a causal LM, or a hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = _first_line(error)
        raise ConfigError(
            f"--model {source}: {reason} (expected a causal LM with safetensors weights, in a folder or on the hub)"
        ) from error
    return model if device is None else model.to(device), tokenizer  # type: ignore[arg-type]


def load_base(source: str | PathLike[str], *, revision: str | None = None, dtype: str = "auto") -> PreTrainedModel:
    """The causal LM at a folder or hub id. Only safetensors are read, and no code that comes with a model is run.

    Raises ConfigError if there is none.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    name = str(source)
    if (_is_path(name) or isinstance(source, PathLike)) and not Path(name).is_dir():
        raise ConfigError(f"model {name!r}: no such folder; give one that holds a causal LM, or a hub id")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name, revision=revision or "main", dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model {name!r}: {_first_line(error)} (expected a causal LM with safetensors weights, in a folder or on "
            "the hub)"
        ) from error
    return model


def load_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, in the folder or at the hub id that it was loaded from.

    Raises ConfigError if there is none.
    """
    from transformers import AutoTokenizer

    name = str(getattr(model, "name_or_path", ""))
    if not name:
        raise ConfigError("no tokenizer was given, and the model does not say where it was loaded from; give both")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=getattr(model.config, "_commit_hash", None) or "main")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # of a folder without its files
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
        raise UnsupportedModelError(
            f"wrap() was given a {type(model).__name__}: expected a causal LM of transformers, such as "
            "AutoModelForCausalLM loads, a model of peft around one, or a folder or hub id of one"
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


def _is_path(name: str) -> bool:
    """Whether a name cannot be a hub id, `owner/name`."""
    return name.startswith((".", "~")) or Path(name).is_absolute() or name.count("/") > 1
