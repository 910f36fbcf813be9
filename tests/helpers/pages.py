"""What the pages of the documentation show: blocks of code, commands, scripts, files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from repository import ROOT

# Runs each argument as one block, all in one namespace; a traceback names the block.
RUN_BLOCKS = """
import sys
namespace = {"__name__": "__main__"}
for number, block in enumerate(sys.argv[1:], start=1):
    exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)
"""


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in one of `languages`, in order."""
    fenced = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", text, flags=re.MULTILINE | re.DOTALL)
    return [body for language, body in fenced if language in languages]


def scripts(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w/])scripts/[\w.]*\w", text))


def run_blocks(code: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", RUN_BLOCKS, *code], cwd=cwd, env=env, capture_output=True, text=True)


def missing_scripts(names: set[str]) -> list[str]:
    """Those that are not there, and those that cannot be run as they are shown: Python files are run by Python."""
    return [
        name
        for name in sorted(names)
        if not (ROOT / name).is_file() or not (name.endswith(".py") or os.access(ROOT / name, os.X_OK))
    ]


def absent_files(text: str) -> list[str]:
    """Files and tests named in backticks that are nowhere in the repository, wherever their room."""
    named = re.findall(r"`([\w/]+\.(?:py|toml))`", text)
    rooms = ("", "wise", "memory", "router", "training", "lab")
    absent = [name for name in named if not any((ROOT / room / name).is_file() for room in rooms)]
    tests = re.findall(r"`(?!scripts/)((?:[\w/]+/)?test_\w+)`", text)
    return absent + [name for name in tests if not any((ROOT / "tests").rglob(f"{name}.py"))]
