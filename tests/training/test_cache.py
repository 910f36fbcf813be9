"""What was learned of a base is kept on disk, and nothing fails where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from wise.training.cache import cache_folder, cached

ABOUT = {"base": "abc", "terminator": None}


def nothing() -> None:
    raise AssertionError("it was measured before")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WISE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_what_is_kept_is_recalled_about_the_same_thing_alone(folder: Path) -> None:
    assert cached("ending", ABOUT, lambda: {"ids": [1, 2]}) == {"ids": [1, 2]}
    assert cached("ending", dict(reversed(ABOUT.items())), nothing) == {"ids": [1, 2]}
    assert cached("ending", ABOUT | {"terminator": "."}, lambda: 3) == 3 == cached("other", ABOUT, lambda: 3)
    assert {file.suffix for file in folder.iterdir()} == {".json"}, "no half-written file is left"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"about": {"base": "other"}, "found": 1}', b"\xff"])
def test_a_damaged_file_is_as_none(folder: Path, content: bytes) -> None:
    cached("ending", ABOUT, lambda: 1)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert cached("ending", ABOUT, lambda: 2) == 2 == cached("ending", ABOUT, nothing)


def test_where_nothing_can_be_written_nothing_fails(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file stands where the folder should")
    assert cached("ending", ABOUT, lambda: 1) == 1 and "could not be kept" in caplog.text
    assert cached("ending", ABOUT, lambda: 2) == 2


def test_an_empty_name_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WISE_CACHE", "")
    assert cache_folder() is None and cached("ending", ABOUT, lambda: 1) == 1
    assert cached("ending", ABOUT, lambda: 2) == 2
    monkeypatch.delenv("WISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "wise"


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("WISE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None and cached("ending", ABOUT, lambda: 1) == 1
