"""The examples run: each script as a user starts it, each notebook in a kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from repository import ROOT

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SECONDS = 600


def run(file: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(file)], cwd=cwd, env=env, capture_output=True, text=True, timeout=SECONDS
    )


def execute(book: nbformat.NotebookNode, folder: Path) -> None:
    at = {"metadata": {"path": folder}}
    nbclient.NotebookClient(book, timeout=SECONDS, kernel_name="python3", resources=at).execute()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_a_script_runs(script: Path, tmp_path: Path) -> None:
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.name)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    execute(nbformat.read(notebook, as_version=4), tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.name)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


def test_every_example_is_run() -> None:
    assert [file.name for file in SCRIPTS] == [
        "correct_a_chat_model.py",
        "measure_routing.py",
        "serve_and_ask.py",
        "stream_edits.py",
    ]
    assert [file.name for file in NOTEBOOKS] == ["correct.ipynb", "measure.ipynb"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_example_that_fails_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("assert 1 == 2\n")
    assert run(tmp_path / "wrong.py", tmp_path).returncode == 1
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")]), tmp_path)
