"""The scripts: whole, executable, at home in any working directory, and saying what they promise."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import pytest
import torch
from repository import ROOT
from transformers import AutoModelForCausalLM

from wise.demo.facts import load_facts

COMMANDS = (
    "scripts/demo", "scripts/test", "scripts/test_floor", "scripts/test_vllm", ".ci/run", ".ci/postgres", ".ci/chromium"
)  # fmt: skip

# Stands in for Python in `.venv`: notes how it was called, one line per call, and does nothing.
FAKE_PYTHON = """#!/bin/sh
echo "$PWD: $*" >>"$CALLS"
"""


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts in a repository of their own, with an environment in which nothing happens."""
    root = tmp_path / "a checkout"
    for folder in ("scripts", ".ci"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints-cpu.txt"):
        shutil.copy(ROOT / name, root)
    write_python(root, FAKE_PYTHON)
    write_program(root / ".ci/postgres", "#!/bin/sh\necho looked for PostgreSQL\n")
    write_program(root / ".ci/chromium", "#!/bin/sh\necho looked for Chromium\n")
    return root


def write_python(root: Path, text: str) -> None:
    for venv in (".venv", ".venv/floor", ".venv/vllm"):
        write_program(root / venv / "bin/python", text)


def write_program(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def calls(root: Path, script: str, *args: str) -> list[str]:
    """What Python was asked for when `script` ran elsewhere; calls that only look whether it is there left out."""
    log = root.parent / "calls"
    log.write_text("")
    done = run(root / script, *args, cwd=root.parent, CALLS=str(log))
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix(f"{root}: ") for line in log.read_text().splitlines()]
    return [line for line in lines if not line.startswith("-c ")]


@pytest.mark.parametrize("script", [*COMMANDS, "scripts/_env"])
def test_shell_scripts_are_well_formed(script: str) -> None:
    done = run("bash", "-n", ROOT / script, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_malformed_script_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("if true; then\n")
    assert run("bash", "-n", "broken", cwd=tmp_path).returncode != 0


@pytest.mark.parametrize("script", COMMANDS)
def test_commands_are_executable_and_stop_at_the_first_failure(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines


def test_torch_is_installed_first_under_the_constraints_and_once(checkout: Path) -> None:
    first = calls(checkout, "scripts/test", "-k", "two words")
    torch, package, tests = first
    assert torch.startswith("-m pip install ") and torch.endswith("-c constraints-cpu.txt torch")
    assert package.startswith("-m pip install ") and package.endswith("-c constraints-cpu.txt -e .[dev]")
    assert tests == "-m pytest -n auto -m not slow -k two words"
    assert calls(checkout, "scripts/test") == ["-m pytest -n auto -m not slow"]


def test_the_oldest_releases_are_installed_apart(checkout: Path) -> None:
    torch, package, tests = calls(checkout, "scripts/test_floor", "-x")
    assert torch.endswith("-c constraints-cpu.txt -c out/floors.txt torch")
    assert package.endswith("-c constraints-cpu.txt -c out/floors.txt -e .[encoder,serve,test]")
    assert tests.startswith("-m pytest -n auto ") and tests.endswith(" -x")
    named = [word for word in tests.split() if word.startswith("tests/")]
    assert named and [name for name in named if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    floors = (checkout / "out/floors.txt").read_text().split()
    assert floors == [line.replace(">=", "==") for line in wanted if not line.startswith("torch")]
    assert len(calls(checkout, "scripts/test")) == 3, "the other environment is another"


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints-cpu.txt"])
def test_it_is_installed_again_when_what_it_was_made_from_changes(checkout: Path, changed: str) -> None:
    calls(checkout, "scripts/test")
    with (checkout / changed).open("a") as file:
        file.write("# changed\n")
    assert len(calls(checkout, "scripts/test")) == 3
    assert len(calls(checkout, "scripts/test")) == 1


def test_the_demo_draws_its_picture_and_passes_options_on(checkout: Path) -> None:
    *install, demo = calls(checkout, "scripts/demo", "--small", "--edits", "20")
    assert install[-1].endswith("-e .[encoder,report]")
    assert demo == "-m wise demo --picture out/routing.png --edits 20"
    assert (checkout / "out").is_dir()
    *install, demo = calls(checkout, "scripts/demo", "--threads", "2")
    assert install[-1].endswith("-e .[demo,encoder,report]")
    assert demo == "-m wise chat-demo --picture out/routing.png --threads 2"


def test_an_installation_that_failed_is_not_taken_for_one(checkout: Path) -> None:
    write_python(checkout, '#!/bin/sh\n[ "$2" != pip ] || exit 7\n')
    assert run(checkout / "scripts/test", cwd=checkout).returncode == 7
    write_python(checkout, FAKE_PYTHON)
    assert len(calls(checkout, "scripts/test")) == 3


def without_venv(checkout: Path, base: str) -> subprocess.CompletedProcess[str]:
    """`scripts/test` where there is no environment yet, and Python is the shell script `base`."""
    shutil.rmtree(checkout / ".venv")
    python = checkout.parent / "python"
    python.write_text(f"#!/bin/sh\n{base}\n")
    python.chmod(0o755)
    return run(checkout / "scripts/test", cwd=checkout, PYTHON=str(python))


def test_a_python_that_is_too_old_is_named(checkout: Path) -> None:
    done = without_venv(checkout, '[ "$1" = --version ] && echo Python 3.10.1; [ "$1" = --version ]')
    assert done.returncode == 1
    assert "is Python 3.10.1: wise needs 3.11 or newer" in done.stderr


def test_a_python_without_venv_is_told_what_it_lacks_and_leaves_nothing(checkout: Path) -> None:
    done = without_venv(checkout, '[ "$2" != venv ] || { mkdir -p .venv; exit 1; }')
    assert done.returncode == 1
    assert "install its venv module" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    done = run(checkout / "scripts/test", cwd=checkout, PYTHON="no-such-python")
    assert done.returncode == 1
    assert "there is no 'no-such-python' here" in done.stderr


@pytest.mark.parametrize("failing", ["ruff", "mypy", "mkdocs", "pytest", "none"])
def test_every_check_runs_and_one_that_fails_fails_all(checkout: Path, failing: str) -> None:
    write_python(checkout, f'#!/bin/sh\necho "ran $2"\n[ "$2" != {failing} ]\n')
    done = run(checkout / ".ci/run", cwd=checkout.parent)
    assert done.returncode == (failing != "none")
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    checks = [f"ran {name}" for name in ("ruff", "mypy", "mkdocs", "pytest", "pytest", "pytest")]
    assert [line for line in ran if line not in ("ran ", "ran pip")] == checks
    assert ("all passed" in done.stdout) == (failing == "none")
    assert "looked for PostgreSQL" in done.stdout and "looked for Chromium" in done.stdout


@pytest.mark.parametrize("reason", ["No matching distribution found for vllm", "no network"])
def test_where_there_is_no_vllm_its_tests_are_not_passed(checkout: Path, reason: str) -> None:
    """Only where none exists for the machine; what else hinders it fails."""
    no_vllm = f'case "$*" in *"install --quiet vllm"*) echo "{reason}-cpu" >&2; exit 1;; esac'
    write_python(checkout, f'#!/bin/sh\n{no_vllm}\necho "ran $2"\n')
    done = run(checkout / ".ci/run", cwd=checkout.parent, PATH=f"{checkout}:/usr/bin:/bin")
    there_is_none = reason != "no network"
    assert done.returncode == (not there_is_none)
    assert ("NOT RUN: scripts/test_vllm\nall others passed" in done.stdout) is there_is_none
    assert ("FAILED: scripts/test_vllm" in done.stdout) is not there_is_none
    assert ("its tests are NOT run" in done.stderr) is there_is_none and f"{reason}-cpu" in done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder that is all of PATH: what a shell needs, no PostgreSQL, and an `sh` that does nothing."""
    for name in ("bash", "env", "mktemp", "rm", "tail"):
        write_program(tmp_path / "bin" / name, f'#!/bin/sh\nexec {shutil.which(name)} "$@"\n')
    write_program(tmp_path / "bin/sh", "#!/bin/sh\n")
    return tmp_path


def look_for_postgres(machine: Path, apt_get: str = "") -> tuple[str, str, list[str]]:
    """What `.ci/postgres` says on stdout and stderr where `apt-get` is that script, and what it asked apt-get for."""
    log = machine / "calls"
    log.write_text("")
    if apt_get:
        write_program(machine / "bin/apt-get", f'#!/bin/sh\necho "$@" >>"$CALLS"\nPATH=/usr/bin:/bin\n{apt_get}\n')
    done = run(ROOT / ".ci/postgres", machine / "programs", cwd=machine, PATH=str(machine / "bin"), CALLS=str(log))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, log.read_text().splitlines()


def test_where_postgresql_is_nothing_is_installed(machine: Path) -> None:
    write_program(machine / "programs/15/bin/initdb", "")
    assert look_for_postgres(machine, "exit 1") == ("", "", [])
    shutil.rmtree(machine / "programs")
    write_program(machine / "bin/initdb", "#!/bin/sh\n")
    assert look_for_postgres(machine, "exit 1") == ("", "", [])


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root installs without sudo")


@as_root
def test_where_it_is_missing_debians_package_is_installed(machine: Path) -> None:
    installs = "mkdir -p programs/15/bin && touch programs/15/bin/initdb"
    said, wrong, asked = look_for_postgres(machine, installs)
    assert (said, wrong) == ("installing PostgreSQL\n", "")
    assert asked == ["update -qq", "install -qq --yes --no-install-recommends postgresql"]


@as_root
@pytest.mark.parametrize(
    ("apt_get", "said"),
    [
        ("", "is not installed, and there is no apt-get here"),
        ("echo E: no network >&2; exit 100", "apt-get did not install it (E: no network)"),
        ("exit 0", "was installed, and there is no "),
    ],
)
def test_what_hinders_it_is_said_and_fails_nothing(machine: Path, apt_get: str, said: str) -> None:
    _, wrong, _ = look_for_postgres(machine, apt_get)
    assert wrong.startswith(f"PostgreSQL: {said}") and wrong.endswith("; the tests that need it are skipped\n")


@as_root
def test_a_browser_is_installed_if_there_is_none_and_what_hinders_it_is_said(machine: Path) -> None:
    def look(apt_get: str) -> tuple[str, str]:
        write_program(machine / "bin/apt-get", f"#!/bin/sh\n{apt_get}\n")
        done = run(ROOT / ".ci/chromium", cwd=machine, PATH=str(machine / "bin"))
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    wrong = look("echo E: no network >&2; exit 100")[1]
    assert wrong == "Chromium: apt-get did not install it (E: no network); the tests that need it are skipped\n"
    assert look(f'echo "$@" >>{machine}/calls') == ("installing Chromium\n", "")
    asked = (machine / "calls").read_text().splitlines()
    assert asked == ["update -qq", "install -qq --yes --no-install-recommends chromium"]
    write_program(machine / "bin/chromium", "#!/bin/sh\n")
    assert look("exit 1") == ("", "")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs the script here, where torch is loaded already."""

    def run_it(*args: str, script: str) -> None:
        monkeypatch.setattr(sys, "argv", [script, *args])
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")

    threads, of_faiss = torch.get_num_threads(), faiss.omp_get_max_threads()
    yield run_it
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(of_faiss)


@pytest.mark.slow
def test_the_bench_of_costs_ends_with_its_figures_as_json(
    bench: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    bench("--edits", "3", "--repeats", "2", script="bench_cost.py")
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert {"model", "threads", "repeats", "rows"} == figures.keys()
    rows = [(row["mode"], row["edits"] > 0) for row in figures["rows"]]
    assert rows == [(mode, edited) for mode in ("merge", "retrieve", "hybrid") for edited in (False, True)]
    assert len(table) == 1 + len(rows)
    for row in figures["rows"]:
        assert row["prefill"] > 0 and row["decode"] > 0 and row["bare_decode_milliseconds"] > 0
        assert (row.get("cpu_seconds_per_edit", 0) > 0) == (row["edits"] > 0)
        assert (row["decide_milliseconds"] is not None) == (row["mode"] == "hybrid" and row["edits"] > 0)


@pytest.mark.slow
def test_the_bench_of_costs_serves_larger_memories_of_hybrid_alone(
    bench: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    bench("--edits", "2", "--modes", "hybrid", "--sizes", "300", "--repeats", "1", script="bench_cost.py")
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["edits"] for row in rows] == [0, 2, 300] and rows[-1]["decide_milliseconds"] > 0
    with pytest.raises(SystemExit, match="leave out the other modes"):
        bench("--edits", "1", "--modes", "merge", "--sizes", "3", "--repeats", "1", script="bench_cost.py")


@pytest.mark.slow
def test_the_bench_of_many_edits_ends_with_its_figures_as_json(
    bench: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    bench("--sizes", "0", "30", script="bench_scale.py")
    head, *table, last = capsys.readouterr().out.splitlines()
    none, some = json.loads(last)
    assert head.split() == list(none) == list(some) and len(table) == 2
    assert (none["edits"], some["edits"], some["bytes"]) == (0, 30, 1024)
    assert all(row[name] > 0 for row in (none, some) for name in ("save", "load", "first", "edit", "unnamed"))
    assert some["verified"] == none["verified"] > 0 and some["delete"] > 0


def test_the_bench_refuses_what_it_cannot_measure(
    bench: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        bench("--repeats", "0", script="bench_cost.py")
    assert refused.value.code == 2 and "start at 1" in capsys.readouterr().err


def test_the_bench_of_a_store_ends_with_its_figures_as_json(
    bench: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench("--edits", "3", "70", "--folder", str(tmp_path), script="bench_store.py")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["edits"] for row in figures] == [3, 70]
    assert all(value > 0 for row in figures for value in row.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_check_of_a_gpu_runs_its_code_on_a_tiny_base_and_writes_its_figures(
    bench: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    bench("--tiny", "--edits", "1", "--pairs", "1", "--output", str(file), script="check_gpu.py")
    figures = json.loads(file.read_text())
    assert figures["date"] and figures["environment"]["torch"] == torch.__version__
    dtypes = {row["dtype"] for row in figures["holds"]}
    assert dtypes == {"float32", "bfloat16", "float16"} and all(row["verified"] for row in figures["holds"])
    costs = figures["costs"]
    assert all(costs[name] > 0 for name in ("milliseconds_at_once", "milliseconds_alone", "decode_ratio"))
    assert "bfloat16" in capsys.readouterr().out


def test_a_precision_that_cannot_be_tried_is_told_and_the_others_are_tried(
    bench: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run on a machine that is lent for minutes must not be lost."""

    def refuse(*_args: Any, **_named: Any) -> Any:
        raise ImportError("no such kernel")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    rows = [*runpy.run_path(str(ROOT / "scripts/check_gpu.py"))["holds"](torch.device("cpu"), [])]
    assert len({(row["dtype"], row["attention"]) for row in rows}) == len(rows) == 6
    assert all(row["error"] == "ImportError: no such kernel" and not row["verified"] for row in rows)
    with pytest.raises(SystemExit):
        bench("--tiny", "--output", str(tmp_path / "none" / "figures.json"), script="check_gpu.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_check_of_a_gpu_ends_with_a_message_where_there_is_none(bench: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA device.*--tiny"):
        bench("--output", str(tmp_path / "figures.json"), script="check_gpu.py")
    assert not list(tmp_path.iterdir())


def test_a_store_is_killed_again_and_again(
    bench: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench("--kills", "2", "--seed", "1", "--folder", str(tmp_path), script="soak_store.py")
    result = json.loads(capsys.readouterr().out)
    assert (ended.value.code, result["kills"], result["lost"], result["problems"]) == (0, 2, 0, [])
    assert not [*tmp_path.iterdir()]


# Stands in for Python where a service is started: notes its process id, and never gets ready.
FAKE_SERVICE = """#!/bin/sh
echo $$ >"$0.pid"
echo '{"url": "http://127.0.0.1:1", "token": "t"}'
exec sleep 600
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


@pytest.mark.parametrize(
    ("program", "said"), [("#!/bin/sh\nexit 1\n", "did not start"), (FAKE_SERVICE, "did not become ready")]
)
def test_a_service_that_does_not_start_says_so_and_leaves_no_process(
    scripts: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    write_program(tmp_path / "python", program)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(scripts("service_process"), "STARTING", 0.0)
    with pytest.raises(RuntimeError, match=said):
        scripts("service_process").Service(tmp_path / "store", tmp_path / "log", [])
    check_gone(tmp_path / "python.pid")


def check_gone(file: Path) -> None:
    """The process whose id is in the file, if there is one, has ended."""
    if file.exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_a_service_does_not_outlive_its_script(
    scripts: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = scripts("service_process").Service
    write_program(tmp_path / "python", FAKE_SERVICE)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(service, "ready", lambda _: "ready")
    monkeypatch.setattr(service, "fetch", lambda *_: {"data": [{"id": "wise-demo"}]})
    with pytest.raises(KeyboardInterrupt), service(tmp_path / "store", tmp_path / "log", []):
        raise KeyboardInterrupt
    assert (tmp_path / "python.pid").exists()
    check_gone(tmp_path / "python.pid")


def test_the_load_of_a_service_counts_no_answer_as_right_unseen(scripts: Callable[[str], Any]) -> None:
    load = scripts("load_serve")
    before, later = load.ClientRecord(), load.ClientRecord()
    before.answers = [("a", 0, "base"), ("b", 0, "base")]
    later.answers = [("a", 1, "base"), ("b", 1, "new, as edited"), ("b", 2, "new"), ("a", 2, "other"), ("c", 1, "any")]
    ticket = {"prompt": "b", "target": "new", "live_in": 1, "retired_in": 2}
    doubtful = load.doubtful_answers([before, later], [ticket])
    assert doubtful == [("b", 2, "new"), ("a", 2, "other"), ("c", 1, "any")]


@pytest.mark.parametrize(("status", "failed"), [("429 Too Many Requests", False), ("400 Bad Request", True)])
def test_the_load_of_a_service_counts_a_refused_preview_as_failed(
    scripts: Callable[[str], Any], status: str, failed: bool
) -> None:
    load = scripts("load_serve")
    previews, failures = Counter[str](), Counter[str]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"]}")  # the end of what is sent
        writer.write(f"HTTP/1.0 {status}\r\n\r\n".encode())
        writer.close()

    async def once() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            service = SimpleNamespace(port=server.sockets[0].getsockname()[1], token="t")
            asked = load.preview_repeatedly(service, load_facts("train")[:1], False, previews, failures)
            task = asyncio.create_task(asked)
            while not previews and not failures:
                await asyncio.sleep(0)
            task.cancel()

    asyncio.run(once())
    assert (previews.total(), failures.total()) == (int(not failed), int(failed))


def test_answers_of_one_base_are_not_written_under_another(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text('{"model": "smol"}')
    script = ROOT / "scripts/check_vllm.py"
    done = run(sys.executable, script, "--folder", tmp_path, "--model", "llama", cwd=tmp_path)
    assert done.returncode == 2 and "has the answers of smol, not of llama" in done.stderr
