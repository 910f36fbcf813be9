"""Loads a causal LM and its tokenizer, for the commands and for the service.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wise.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        reason = next(iter(str(error).splitlines()), type(error).__name__)
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
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"--model {source}: {reason} (expected a causal LM with safetensors weights, in a folder or on the hub)"
        ) from error
    return model if device is None else model.to(device), tokenizer  # type: ignore[arg-type]


def _is_path(name: str) -> bool:
    """Whether a name cannot be a hub id, `owner/name`."""
    return name.startswith((".", "~")) or Path(name).is_absolute() or name.count("/") > 1
