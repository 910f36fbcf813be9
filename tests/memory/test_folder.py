"""A folder is replaced as a whole, at whatever instant the process dies, and nobody else's is touched."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, get_ident
from typing import Any

import pytest

from wise.errors import ArtifactError
from wise.memory.artifact import load_memory
from wise.memory.folder import made_once, replaced_folder

OLD = {"a.json": b"old a", "b.bin": b"old b"}
WRITTEN = {"a.json": b"new a", "b.bin": b"new b"}


def write(folder: Path, files: dict[str, bytes] = WRITTEN) -> None:
    with replaced_folder(folder, ours=OLD) as new:
        for name, data in files.items():
            (new / name).write_bytes(data)


def held(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "memory", OLD)
    return tmp_path / "memory"


def test_is_made_with_its_parents_or_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "memory"
    write(folder, OLD)
    assert held(folder) == OLD
    write(folder, {"a.json": b"only"})
    assert held(folder) == {"a.json": b"only"}
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_folder_and_a_link_to_one_of_ours_are_filled(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert held(tmp_path / "empty") == WRITTEN
    (tmp_path / "link").symlink_to(folder)
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and held(folder) == WRITTEN


def test_may_be_read_by_whoever_may_read_a_new_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_not_ours_is_refused_and_not_touched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "thesis.txt").write_bytes(b"years of work")
    with pytest.raises(ArtifactError, match=r"holds other files \(thesis.txt\).* folder of its own"):
        write(folder)
    assert held(folder) == OLD | {"thesis.txt": b"years of work"}
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="is a file; give the name of a folder"):
        write(tmp_path / "file")
    (tmp_path / "here" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "inner")
    with pytest.raises(ArtifactError, match="is where this process works"):
        write(Path("."))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "here", "memory"]
    assert (tmp_path / "file").read_bytes() == b"x"


class Killed(BaseException):
    """The process ends here: nothing after this runs, no clean-up either."""


STEPS = ((Path, "mkdir"), (Path, "write_bytes"), (os, "fsync"), (os, "rename"), (shutil, "rmtree"))


def dying(patch: pytest.MonkeyPatch, step: int, error: Callable[[], BaseException], once: bool) -> list[int]:
    """From the call numbered `step` on (`once`: at it alone), calls that touch the disk raise instead."""
    count = [0]

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == step or (count[0] > step and not once):
                raise error()
            return original(*args, **kwargs)

        return call

    for owner, name in STEPS:
        patch.setattr(owner, name, wrapper(getattr(owner, name)))
    return count


def calls(folder: Path) -> int:
    """How many calls touch the disk when `folder` is replaced."""
    with pytest.MonkeyPatch.context() as patch:
        count = dying(patch, -1, Killed, once=True)
        write(folder, OLD)
    return count[0]


def test_killed_at_any_instant_one_whole_copy_is_where_the_docstring_says(folder: Path) -> None:
    seen = set()
    for step in range(1, calls(folder) + 1):
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, step, Killed, once=False)
            with pytest.raises(Killed):
                write(folder)
        if folder.exists():
            assert held(folder) in (OLD, WRITTEN)
            seen.add("new" if held(folder) == WRITTEN else "old")
        else:
            [aside] = folder.parent.glob(".memory.*.wise-old")
            assert held(aside) == OLD
            with pytest.raises(
                ArtifactError, match=rf"memory is missing: a save was cut off; rename {aside}"
            ):
                load_memory(folder)
            seen.add("aside")
        write(folder, OLD)  # the next one goes through, and tidies up
        assert held(folder) == OLD and not list(folder.parent.glob("*.wise-old"))
    assert seen == {"old", "aside", "new"}


def test_an_error_at_any_step_before_the_new_one_stands_leaves_everything_as_it_was(folder: Path) -> None:
    total = calls(folder)
    for step in range(1, total - 1):  # the last two, after the renames: syncing the parent, removing the old
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, step, lambda: OSError(28, "No space left on device"), once=True)
            with pytest.raises(OSError, match="No space left"):
                write(folder)
        assert held(folder) == OLD and list(folder.parent.iterdir()) == [folder], step


def test_an_error_of_the_writer_leaves_everything_as_it_was(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replaced_folder(folder, ours=OLD) as new:
        (new / "a.json").write_bytes(b"half")
        raise KeyboardInterrupt
    assert held(folder) == OLD and list(folder.parent.iterdir()) == [folder]


def test_a_folder_of_the_user_is_never_taken_for_one_that_was_set_aside(folder: Path) -> None:
    names = (".memory.wise-old", ".memory.mine.wise-old", ".memory2.0a1b2c3d.wise-old")
    own = [folder.with_name(name) for name in names]
    left = folder.with_name(".memory.0a1b2c3d.wise-old")  # by a write that was cut off
    for path in (*own, left):
        path.mkdir()
        (path / "a.json").write_bytes(b"mine")
    write(folder)
    assert held(folder) == WRITTEN and all(held(path) == {"a.json": b"mine"} for path in own)
    assert not left.exists()


def test_of_two_that_replace_one_folder_at_once_both_go_through_and_the_last_stays_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, waits, others = get_ident(), Event(), list[Future[None]]()
    rename, lock = os.rename, fcntl.flock

    def second() -> None:
        try:
            write(folder, {"a.json": b"second"})
        finally:
            waits.set()

    def renaming(*given: Any) -> None:
        rename(*given)
        if get_ident() == first and not others:  # the folder is not there now
            others.append(threads.submit(second))
            waits.wait()

    def locking(*given: Any) -> None:
        if get_ident() != first:
            waits.set()
        lock(*given)

    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(fcntl, "flock", locking)
    with ThreadPoolExecutor(1) as threads:
        write(folder)
    others[0].result()
    assert held(folder) == {"a.json": b"second"} and list(folder.parent.iterdir()) == [folder]


def test_where_a_file_system_locks_no_folder_it_is_replaced_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(folder)
    assert held(folder) == WRITTEN and list(folder.parent.iterdir()) == [folder]


def test_of_two_that_make_one_folder_at_once_the_first_stays_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "made"
    with made_once(folder) as first, made_once(folder) as second:
        (first / "a.json").write_bytes(b"first")
        (second / "a.json").write_bytes(b"second")
    assert held(folder) == {"a.json": b"second"}, "the inner block ended first"
    with pytest.raises(OSError, match="full"), made_once(tmp_path / "none"):
        raise OSError("full")
    assert [*folder.parent.iterdir()] == [folder] and [*tmp_path.iterdir()] == [folder.parent]
