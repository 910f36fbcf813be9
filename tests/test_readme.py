"""The README: its Python runs, its commands and scripts exist. `test_documents` checks the other pages alike."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from wise.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELLS = ("bash", "sh", "shell", "console")

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


def wise_commands(text: str) -> set[str]:
    """The sub-commands of `wise` in shell blocks: `edit` of `wise edit ...` and of `python -m wise edit ...`."""
    found: set[str] = set()
    for block in blocks(text, *SHELLS):
        lines = (line.strip().removeprefix("$ ") for line in block.splitlines())
        code = "\n".join(line for line in lines if not line.startswith("#"))
        found |= set(re.findall(r"(?:^|[;&|(]|-m|bin/)[ ]*wise[ ]+([a-z][\w-]*)", code, flags=re.MULTILINE))
    return found


def scripts(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w/])scripts/[\w.]*\w", text))


def run_blocks(code: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", RUN_BLOCKS, *code], cwd=cwd, env=env, capture_output=True, text=True)


def missing_commands(names: set[str]) -> list[str]:
    return [name for name in sorted(names) if CliRunner().invoke(app, [name, "--help"]).exit_code != 0]


def missing_scripts(names: set[str]) -> list[str]:
    """Those that are not there, and those that cannot be run as they are shown: Python files are run by Python."""
    return [
        name
        for name in sorted(names)
        if not (ROOT / name).is_file() or not (name.endswith(".py") or os.access(ROOT / name, os.X_OK))
    ]


def test_the_python_runs(tmp_path: Path) -> None:
    code = blocks(README, "python")
    assert code, "the README shows no Python"
    done = run_blocks(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_python_that_fails_would_be_seen(tmp_path: Path) -> None:
    done = run_blocks(["x = 1", "assert x == 2"], tmp_path)
    assert done.returncode != 0
    assert "README.md, Python block 2" in done.stderr


def test_the_commands_are_there() -> None:
    assert missing_commands(wise_commands(README)) == []


def test_the_scripts_are_there() -> None:
    named = scripts(README)
    assert {"scripts/demo", "scripts/test"} <= named
    assert missing_scripts(named) == []


SAMPLE = """
Run `scripts/demo`, or scripts/nothing.

```bash
wise edit --model m   # then wise forget
# wise comment
OUT=x; wise ask --model m
.venv/bin/wise info m | wise vanish
python -m wise eval
scripts/bench_cost.py --wise unseen
```
```python
x = "wise elsewhere"
```
"""


def test_what_is_looked_for_is_found() -> None:
    assert blocks(SAMPLE, "python") == ['x = "wise elsewhere"\n']
    assert wise_commands(SAMPLE) == {"edit", "ask", "info", "vanish", "eval"}
    assert missing_commands(wise_commands(SAMPLE)) == ["vanish"]
    assert scripts(SAMPLE) == {"scripts/demo", "scripts/nothing", "scripts/bench_cost.py"}
    assert missing_scripts(scripts(SAMPLE)) == ["scripts/nothing"]


def absent_files(text: str) -> list[str]:
    """Files and tests named in backticks that are nowhere in the repository, wherever their room."""
    named = re.findall(r"`([\w/]+\.(?:py|toml))`", text)
    named += [f"tests/{name}.py" for name in re.findall(r"`(test_\w+)`", text)]
    rooms = ("", "wise", "memory", "router", "training", "lab")
    return [name for name in named if not any((ROOT / room / name).is_file() for room in rooms)]
