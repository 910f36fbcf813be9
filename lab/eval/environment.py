"""The versions, machine and threads of a measurement."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import wise
import wise.memory
import wise.router
import wise.training

PACKAGES = ("torch", "transformers", "faiss-cpu", "numpy")
CODE = ("*.py", "*.toml", "data/*.safetensors")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, threads and device, ready for JSON; nothing that names a person or a place."""
    return {
        "wise": wise.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def code_digest() -> str:
    """SHA-256 over the package's own files: another version of the code, of the questions that edits are fitted on, or
    of what the relation reader was taught may measure otherwise."""
    found = hashlib.sha256()
    for package in (wise, wise.training, wise.router, wise.memory):
        root = Path(package.__path__[0])
        for file in sorted(file for kind in CODE for file in root.rglob(kind)):
            found.update(f"{package.__name__} {file.relative_to(root)}".encode() + file.read_bytes())
    return found.hexdigest()


def _processor() -> str:
    """The processor's name, as the system says it."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
