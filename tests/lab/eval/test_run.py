"""One run: all parts of its file, the same figures each time, the model as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import WordReader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from wise.demo import model_path
from wise.demo.records import demo_records
from wise.errors import ConfigError, EditError
from wise.lab.editors.fine_tuning import FineTuningM
from wise.lab.eval.results_file import KEYS
from wise.lab.eval.run import Evaluation, Scope, evaluate, stops

EDITS = 6
TEXT = ("The kettle was on the stove and nobody had thought of the tea. " * 4,)
QUESTIONS = ("What is the best way to clean a window?", "How long does it take to boil an egg?")
TIMES = ("cpu_seconds_per_edit", "seconds_per_edit", "timing")


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
def whole(base: tuple[Any, Any], scope: Scope) -> Evaluation:
    return run(base, scope)


@pytest.mark.slow
def test_a_run_has_every_part_that_a_file_of_it_needs(whole: Evaluation) -> None:
    found = whole.to_dict(outcomes=True) | {"data": {}}
    assert set(KEYS) <= set(found)
    assert found["routing"]["oracle"]["reliability"] is not None
    assert [stop["edits"] for stop in found["retention"]] == stops(EDITS) == [1, 2, 5, 6]
    assert "outcomes" not in whole.to_dict()


@pytest.mark.slow
def test_a_run_made_again_has_the_same_figures(base: tuple[Any, Any], scope: Scope, whole: Evaluation) -> None:
    assert figures(run(base, scope)) == figures(whole)


@pytest.mark.slow
def test_a_run_of_hybrid(base: tuple[Any, Any], scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wise.model.load_encoder", lambda *_, **__: WordReader())
    found = run(base, scope, editor="wise-hybrid")
    assert found.failed == () and found.quality.generated["reliability"] == 1
    routing = found.routing
    assert routing is not None and routing.oracle["reliability"] == routing.positives["edits"]["opened"] == 1
    assert routing.edit_top1 == routing.slot_top1 > 0.9
    assert routing.classes["same_relation"]["opened"] == 0 and routing.false_routes_per_million == 0


@pytest.mark.slow
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


def test_the_last_edit_is_looked_at_before_the_first_is_made(base: tuple[Any, Any]) -> None:
    made: list[str] = []
    records = demo_records(3, seed=0)
    records.append(replace(records[0], edit=replace(records[0].edit, target="tea " * 300, id="long")))
    with pytest.raises(EditError, match="the context holds"):
        evaluate(*base, records, editor="wise-retrieve", batch=1, progress=lambda name, *_: made.append(name))
    assert "edits" not in made


def test_a_run_in_which_no_edit_holds_is_a_result(base: tuple[Any, Any], scope: Scope) -> None:
    """One step of fitting from nothing fits nothing."""
    found = run(base, scope, settings={"max_steps": 1, "learning_rate": 1e-9})
    assert len(found.failed) == EDITS and found.routing is None
    assert found.quality.generated["reliability"] == 0.0 and found.quality.generated["locality"] == 1.0


@pytest.mark.parametrize(("name", "editor"), [("routing", "none"), ("retention", "none"), ("routing", "rome")])
def test_what_an_editor_does_not_have_is_not_measured(base: tuple[Any, Any], name: str, editor: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} measures .* editor '{editor}'"):
        evaluate(*base, demo_records(2, seed=0), editor=editor, scope=replace(Scope(), **{name: True}))


def test_each_second_of_a_run_is_counted_once(base: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What an editor computes once per base was counted as measuring too."""
    clock, left = iter(range(10_000)), [1000]
    prepare = FineTuningM.prepare

    def slow(self: FineTuningM) -> None:
        while left[0]:
            left[0] -= bool(next(clock))
        prepare(self)

    monkeypatch.setattr(FineTuningM, "prepare", slow)
    monkeypatch.setattr("wise.lab.eval.run.time.perf_counter", lambda: float(next(clock)))
    found = evaluate(*base, demo_records(1, seed=0), editor="ft-m", settings={"steps": 1})
    assert found.preparing_seconds > 1000 > found.measuring_seconds > 0


def test_stops() -> None:
    assert [stops(edits) for edits in (1, 2, 7)] == [[1], [1, 2], [1, 2, 5, 7]]
    assert stops(100) == [1, 2, 5, 10, 20, 50, 100]
