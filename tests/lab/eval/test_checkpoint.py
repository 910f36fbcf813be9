"""Measurements in parts: what is finished is not done again, and what a crash left half written does not count."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from wise.errors import ConfigError
from wise.lab.eval.checkpoint import Checkpoint, CheckpointFile

FIGURES = [0.1 + 0.2, 1e-300, math.pi, -0.0, 3, "ten", None, [1.5, {"a": 0.1}]]


def squares(calls: list[int], fail_at: int | None = None):
    def compute(chunk: list[int]) -> list[float]:
        if fail_at in chunk:
            raise KeyboardInterrupt
        calls.extend(chunk)
        return [item / 3 for item in chunk]

    return compute


def test_without_a_journal_everything_is_worked_out_each_time() -> None:
    calls: list[int] = []
    checkpoint = Checkpoint()
    assert checkpoint.map("thirds", range(5), squares(calls), batch=2) == [i / 3 for i in range(5)]
    checkpoint.map("thirds", range(5), squares(calls), batch=2)
    assert calls == [*range(5), *range(5)]


def test_an_interrupted_measurement_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(CheckpointFile(tmp_path / "j")).map("thirds", range(10), squares(calls, fail_at=7), batch=3)
    assert calls == [0, 1, 2, 3, 4, 5]
    found = Checkpoint(CheckpointFile(tmp_path / "j")).map("thirds", range(10), squares(calls), batch=3)
    assert calls == list(range(10))  # nothing twice
    assert found == Checkpoint().map("thirds", range(10), squares([]), batch=3)


def test_values_come_back_as_they_went_in(tmp_path: Path) -> None:
    Checkpoint(CheckpointFile(tmp_path / "j")).part("figures", lambda: FIGURES)
    again = Checkpoint(CheckpointFile(tmp_path / "j")).part("figures", lambda: pytest.fail("it was finished"))
    assert again == FIGURES
    assert math.copysign(1, again[3]) == -1


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "j"
    checkpoint = Checkpoint(CheckpointFile(path))
    checkpoint.part("a", lambda: 1)
    whole = path.read_bytes()
    for torn in (b'{"part": "b", "sec', b'{"part": "b", "seconds": 1.0, "value": 2}'):  # the second lacks its newline
        path.write_bytes(whole + torn)
        journal = CheckpointFile(path)
        assert journal.parts == {"a": 1}
        assert path.read_bytes() == whole
    assert Checkpoint(CheckpointFile(path)).part("b", lambda: 3) == 3
    assert [json.loads(line)["part"] for line in path.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("content", ["no json\n", "[1]\n", '{"part": "a"}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "j"
    path.write_text(content)
    with pytest.raises(ConfigError, match="not the checkpoint file of a run"):
        CheckpointFile(path)
    assert path.read_text() == content


def test_nan_is_never_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Checkpoint(CheckpointFile(tmp_path / "j")).part("a", lambda: float("nan"))
    assert CheckpointFile(tmp_path / "j").parts == {}


def test_the_same_measurement_taken_twice_has_its_parts_apart(tmp_path: Path) -> None:
    checkpoint = Checkpoint(CheckpointFile(tmp_path / "j"))
    assert checkpoint.within("10").part("a", lambda: 1) == 1
    assert checkpoint.within("20").part("a", lambda: 2) == 2
    assert checkpoint.finished("20/") == ["a"]
    assert sorted(checkpoint.finished("")) == ["10/a", "20/a"]


def test_progress_is_told_for_what_was_finished_before_too(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    for _ in range(2):
        seen.clear()
        checkpoint = Checkpoint(CheckpointFile(tmp_path / "j"), lambda *shown: seen.append(shown))
        checkpoint.map("thirds", range(5), squares([]), batch=2)
        assert seen == [("thirds", 2, 5), ("thirds", 4, 5), ("thirds", 5, 5)]


def test_the_journal_adds_up_the_time_of_all_processes(tmp_path: Path) -> None:
    path = tmp_path / "j"
    CheckpointFile(path).add("a", 1, 2.5)
    again = CheckpointFile(path)
    assert again.seconds == 2.5
    again.add("b", 1, 1.0)
    assert CheckpointFile(path).seconds == 3.5
