"""Where the repository and the shared data lie, and how its files outside of packages are loaded."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
SHARED = Path(os.environ.get("WISE_SHARED", ROOT.parent / "shared"))
"""Data that is not part of the repository; tests of it are skipped where it is absent."""


def shared(name: str) -> Path:
    """A file or folder of the shared data; where it is absent, the test that asks for it is skipped."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not among the shared data (WISE_SHARED or ../shared)")
    return path


def loaded(name: str) -> ModuleType:
    """A file of the repository that is in no package, as a module."""
    file = ROOT / name
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
