"""A run that is interrupted anywhere ends with the figures of one that was not, and never mixes with another run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import WordReader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from wise.demo import model_path
from wise.demo.records import demo_records
from wise.errors import ConfigError, EditError
from wise.lab.eval.candidates import all_settings
from wise.lab.eval.checkpoint import CheckpointFile, sole_user
from wise.lab.eval.results_file import KEYS
from wise.lab.eval.run import Evaluation, Scope, evaluate, stops

EDITS = 6
TEXT = ("The kettle was on the stove and nobody had thought of the tea. " * 4,)
QUESTIONS = ("What is the best way to clean a window?", "How long does it take to boil an egg?")
TIMES = ("cpu_seconds_per_edit", "seconds_per_edit", "peak_editing_bytes", "timing")


class Interrupted(Exception):
    """What stops a run in these tests."""


@pytest.fixture(scope="module")
def base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(model_path()), AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def scope() -> Scope:
    return Scope(
        routing=True, retention=True, pool=demo_records(12, seed=1)[EDITS:], texts=TEXT
    )


def run(base: tuple[Any, Any], scope: Scope, *, editor: str = "wise-retrieve", **options: Any) -> Evaluation:
    return evaluate(*base, demo_records(EDITS, seed=0), editor=editor, scope=scope, **options)


def figures(result: Evaluation) -> dict[str, Any]:
    """All of a run that does not depend on the clock and on what else the process holds."""
    return {name: value for name, value in result.to_dict(outcomes=True).items() if name not in TIMES}


@pytest.fixture(scope="module")
def whole(base: tuple[Any, Any], scope: Scope, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """A run that nothing stopped, and the folder it kept its parts in."""
    folder = tmp_path_factory.mktemp("whole")
    return run(base, scope, folder=folder), folder


def test_a_run_has_every_part_that_a_file_of_it_needs(whole: tuple[Evaluation, Path]) -> None:
    found = whole[0].to_dict(outcomes=True) | {"data": {}}
    assert set(KEYS) <= set(found)
    assert found["routing"]["oracle"]["reliability"] is not None
    assert [stop["edits"] for stop in found["retention"]] == stops(EDITS) == [1, 2, 5, 6]
    assert "outcomes" not in whole[0].to_dict()


def test_keeping_parts_changes_no_figure(base: tuple[Any, Any], scope: Scope, whole: tuple[Evaluation, Path]) -> None:
    assert figures(run(base, scope)) == figures(whole[0])


@pytest.mark.parametrize("share", [0.1, 0.45, 0.8])
def test_an_interrupted_run_goes_on_to_the_same_figures(
    base: tuple[Any, Any], scope: Scope, whole: tuple[Evaluation, Path], tmp_path: Path, share: float
) -> None:
    parts = list(CheckpointFile(whole[1] / "checkpoint.jsonl").parts)
    at = parts[int(share * len(parts))]

    def interrupt(journal: CheckpointFile, name: str, value: Any, seconds: float) -> None:
        if name == at:
            raise Interrupted
        keep(journal, name, value, seconds)

    keep = CheckpointFile.add
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(CheckpointFile, "add", interrupt)
        run(base, scope, folder=tmp_path)
    begun = list(CheckpointFile(tmp_path / "checkpoint.jsonl").parts)
    assert begun == parts[: len(begun)] and 0 < len(begun) < len(parts)
    assert figures(run(base, scope, folder=tmp_path)) == figures(whole[0])
    assert list(CheckpointFile(tmp_path / "checkpoint.jsonl").parts) == parts


def test_an_interrupted_run_of_hybrid_goes_on_to_the_same_figures(
    base: tuple[Any, Any], scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wise.model.load_encoder", lambda *_, **__: WordReader())
    expected = run(base, scope, editor="wise-hybrid")
    assert expected.failed == () and expected.quality.generated["reliability"] == 1
    routing = expected.routing
    assert routing is not None and routing.oracle["reliability"] == routing.positives["edits"]["opened"] == 1
    assert routing.edit_top1 == routing.slot_top1 > 0.9
    assert routing.classes["same_relation"]["opened"] == 0 and routing.false_routes_per_million == 0
    keep = CheckpointFile.add

    def interrupt(journal: CheckpointFile, name: str, value: Any, seconds: float) -> None:
        if name.startswith("routing.oracle"):
            raise Interrupted
        keep(journal, name, value, seconds)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(CheckpointFile, "add", interrupt)
        run(base, scope, editor="wise-hybrid", folder=tmp_path)
    assert figures(run(base, scope, editor="wise-hybrid", folder=tmp_path)) == figures(expected)


def test_a_finished_run_is_told_again_without_asking_the_model(
    base: tuple[Any, Any], scope: Scope, whole: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(whole[1], again)
    before = (again / "checkpoint.jsonl").read_bytes()
    assert figures(run(base, scope, folder=again)) == figures(whole[0])
    assert (again / "checkpoint.jsonl").read_bytes() == before


def test_runs_with_readers_that_were_taught_otherwise_are_other_runs(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "same", "other")]
    for file, content in zip(files, (b"a", b"a", b"b"), strict=True):
        file.write_bytes(content)
    one, same, other = (all_settings("wise-hybrid", {"relations": str(file)})["relations_sha256"] for file in files)
    assert one == same != other and "relations_sha256" not in all_settings("wise-hybrid", {})
    with pytest.raises(ConfigError, match="setting 'router' is not known"):
        all_settings("wise-hybrid", {"router": str(files[0])})


def test_one_memory_is_kept_and_it_is_the_last(whole: tuple[Evaluation, Path]) -> None:
    assert [path.name for path in whole[1].iterdir() if path.is_dir()] == [f"memory-{EDITS}"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"batch": 2}, "batch"), ({"settings": {"seed": 5}}, "seed"), ({"scope": None}, "routing")],
)
def test_another_run_in_the_same_folder_is_refused(
    base: tuple[Any, Any], scope: Scope, whole: tuple[Evaluation, Path], changed: dict[str, Any], named: str
) -> None:
    before = (whole[1] / "checkpoint.jsonl").read_bytes()
    options = {"scope": scope, "folder": whole[1]} | changed
    with pytest.raises(ConfigError, match=f"unfinished run that differs in .*{named}"):
        run(base, **options)
    assert (whole[1] / "checkpoint.jsonl").read_bytes() == before


def test_batches_are_part_of_what_a_run_is(base: tuple[Any, Any]) -> None:
    """Edits given one by one are not the edits given at once, but both hold."""
    one_by_one = run(base, Scope(), batch=1)
    assert one_by_one.quality.generated["reliability"] == 1.0
    assert one_by_one.retention == () and one_by_one.routing is None


def test_the_model_comes_back_as_it_was_also_from_an_interrupted_run(base: tuple[Any, Any], scope: Scope) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        raise Interrupted

    before = dict(base[0].named_modules())
    with pytest.raises(Interrupted):
        run(base, scope, progress=interrupt)
    assert dict(base[0].named_modules()) == before


def test_two_processes_are_never_at_one_run(base: tuple[Any, Any], tmp_path: Path) -> None:
    with sole_user(tmp_path), pytest.raises(ConfigError, match="another process is at this run"):
        run(base, Scope(), folder=tmp_path)
    assert not (tmp_path / "checkpoint.jsonl").exists()


def test_other_code_does_not_go_on_with_a_run(
    base: tuple[Any, Any], scope: Scope, whole: tuple[Evaluation, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wise.lab.eval.run.code_digest", lambda: "other")
    with pytest.raises(ConfigError, match="unfinished run that differs in code"):
        run(base, scope, folder=whole[1])


def test_the_last_edit_is_looked_at_before_the_first_is_made(base: tuple[Any, Any], tmp_path: Path) -> None:
    records = demo_records(3, seed=0)
    records.append(replace(records[0], edit=replace(records[0].edit, target="tea " * 300, id="long")))
    with pytest.raises(EditError, match="the context holds"):
        evaluate(*base, records, editor="wise-retrieve", batch=1, folder=tmp_path)
    assert not [name for name in CheckpointFile(tmp_path / "checkpoint.jsonl").parts if name.startswith("edits")]


def test_a_run_in_which_no_edit_holds_is_a_result(base: tuple[Any, Any], scope: Scope) -> None:
    """One step of fitting from nothing fits nothing."""
    found = run(base, scope, settings={"max_steps": 1, "learning_rate": 1e-9})
    assert len(found.failed) == EDITS and found.routing is None
    assert found.quality.generated["reliability"] == 0.0 and found.quality.generated["locality"] == 1.0


@pytest.mark.parametrize(("name", "editor"), [("routing", "none"), ("retention", "none"), ("routing", "rome")])
def test_what_an_editor_does_not_have_is_not_measured(base: tuple[Any, Any], name: str, editor: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} measures .* editor '{editor}'"):
        evaluate(*base, demo_records(2, seed=0), editor=editor, scope=replace(Scope(), **{name: True}))


def test_stops() -> None:
    assert [stops(edits) for edits in (1, 2, 7)] == [[1], [1, 2], [1, 2, 5, 7]]
    assert stops(100) == [1, 2, 5, 10, 20, 50, 100]
