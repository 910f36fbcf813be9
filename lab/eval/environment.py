"""The versions, machine and threads of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import wise
from wise.memory.fingerprint import Fingerprint

PACKAGES = ("torch", "transformers", "faiss-cpu", "numpy")


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


def base_description(base: Fingerprint) -> dict[str, Any]:
    """Which base was measured, ready for JSON."""
    return {
        "type": base.model_type,
        "parameters": base.parameters,
        "depth": base.depth,
        "dtype": base.dtype,
        "fingerprint": base.digest,
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
