"""The README: its Python runs, its scripts exist. `test_documents` checks its commands with those of other pages."""

from __future__ import annotations

from pathlib import Path

from pages import blocks, missing_scripts, run_blocks, scripts
from repository import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_runs(tmp_path: Path) -> None:
    code = blocks(README, "python")
    assert code, "the README shows no Python"
    done = run_blocks(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_python_that_fails_would_be_seen(tmp_path: Path) -> None:
    done = run_blocks(["x = 1", "assert x == 2"], tmp_path)
    assert done.returncode != 0
    assert "README.md, Python block 2" in done.stderr


def test_the_scripts_are_there() -> None:
    named = scripts(README)
    assert {"scripts/demo", "scripts/test"} <= named
    assert missing_scripts(named) == []


SAMPLE = """
Run `scripts/demo`, or scripts/nothing.

```bash
scripts/bench_cost.py
```
```python
x = 1
```
"""


def test_what_is_looked_for_is_found() -> None:
    assert blocks(SAMPLE, "python") == ["x = 1\n"]
    assert scripts(SAMPLE) == {"scripts/demo", "scripts/nothing", "scripts/bench_cost.py"}
    assert missing_scripts(scripts(SAMPLE)) == ["scripts/nothing"]
