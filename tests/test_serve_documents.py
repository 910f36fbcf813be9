"""What the documents of the service say is so."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wise.serving.settings import Settings, load

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def test_the_settings_are_all_there_and_as_they_are() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (.*) \|$", TEXT, flags=re.MULTILINE))
    assert told == {name: field.description for name, field in Settings.model_fields.items()}
    defaults = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", TEXT, flags=re.MULTILINE))
    assert defaults and all(str(Settings.model_fields[name].default) == value for name, value in defaults.items())


def test_the_routes_are_those_of_the_schema() -> None:
    from wise.serving import routes_admin, routes_completions, routes_edits, routes_versions

    parts = (routes_admin, routes_completions, routes_edits, routes_versions)
    known = {re.sub(r"{\w+}", "*", route.path) for part in parts for route in part.router.routes}  # type: ignore[attr-defined]
    table = TEXT.partition("## Routes")[2].partition("Each answer")[0]
    named = set(re.findall(r"/[\w/]+", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    told = {re.sub(r"(?<=/)(ID|N)(?=/|$)", "*", path) for path in named}
    assert known - {"/v1/models/*"} == told - {"/openapi"}


def test_the_example_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(ROOT / "deploy" / "wise.toml", {})
    assert (found.threads, found.store) == (4, "/var/lib/wise/store")


def test_the_unit_is_sound(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze here")
    text = (ROOT / "deploy" / "wise.service").read_text().replace("/opt/wise/.venv/bin/wise", "/bin/true")
    (tmp_path / "wise.service").write_text(text)
    done = subprocess.run([program, "verify", str(tmp_path / "wise.service")], capture_output=True, text=True)
    assert "wise.service" not in done.stderr, done.stderr
