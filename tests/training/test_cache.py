"""What was learned of a base is kept on disk, and nothing fails where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from wise.training.cache import cache_folder, read_cached, write_cached

ABOUT = {"base": "abc", "terminator": None}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WISE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_what_is_kept_is_recalled_about_the_same_thing_alone(folder: Path) -> None:
    assert read_cached("ending", ABOUT) is None
    write_cached("ending", ABOUT, {"ids": [1, 2]})
    assert read_cached("ending", dict(reversed(ABOUT.items()))) == {"ids": [1, 2]}
    assert read_cached("ending", ABOUT | {"terminator": "."}) is None and read_cached("other", ABOUT) is None
    assert [file.suffix for file in folder.iterdir()] == [".json"], "no half-written file is left"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"about": {"base": "other"}, "found": 1}', b"\xff"])
def test_a_damaged_file_is_as_none(folder: Path, content: bytes) -> None:
    write_cached("ending", ABOUT, 1)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert read_cached("ending", ABOUT) is None
    write_cached("ending", ABOUT, 2)
    assert read_cached("ending", ABOUT) == 2


def test_where_nothing_can_be_written_nothing_fails(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file stands where the folder should")
    write_cached("ending", ABOUT, 1)
    assert read_cached("ending", ABOUT) is None and "could not be kept" in caplog.text


def test_an_empty_name_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WISE_CACHE", "")
    write_cached("ending", ABOUT, 1)
    assert cache_folder() is None and read_cached("ending", ABOUT) is None
    monkeypatch.delenv("WISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "wise"


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("WISE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    write_cached("ending", ABOUT, 1)
    assert cache_folder() is None and read_cached("ending", ABOUT) is None
