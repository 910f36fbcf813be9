"""The picture of a run: what was measured is in it, and nothing else is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wise.errors import ConfigError
from wise.lab.eval.picture import draw_run


def a_run(*, classes: int, stops: int) -> dict[str, Any]:
    measured = {"auroc": 0.875, "opened": 0.25, "roc": [[0, 0], [0.1, 0.6], [1, 1]], "histogram": [3, 1]}
    positives = {"paraphrases": {"histogram": [1, 3]}}
    routing = {"classes": {f"class{i}": measured for i in range(classes)}, "positives": positives}
    routing |= {"scored_against": "paraphrases", "bins": [0, 1, 2]}
    retention = [{"edits": n + 1, "reliability": 1.0, "oldest": None if n == 0 else 0.5, "teacher_forced": 1.0}
                 for n in range(stops)]  # fmt: skip
    return {"editor": "wise-hybrid", "edits": 3, "routing": routing if classes else None, "retention": retention}


@pytest.mark.parametrize(("classes", "stops"), [(1, 0), (5, 3), (0, 3)])
def test_what_was_measured_is_drawn(tmp_path: Path, classes: int, stops: int) -> None:
    draw_run(a_run(classes=classes, stops=stops), tmp_path / "run.svg")
    text = (tmp_path / "run.svg").read_text()
    assert [f"class{i} (AUROC 0.875)" in text for i in range(6)] == [i < classes for i in range(6)]
    assert ("oldest tenth" in text) == (stops > 1)


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing of this run can be drawn"):
        draw_run(a_run(classes=0, stops=1), tmp_path / "run.png")
    with pytest.raises(ConfigError, match="--picture"):
        draw_run(a_run(classes=1, stops=0), tmp_path / "none" / "run.png")
    assert not list(tmp_path.iterdir())
