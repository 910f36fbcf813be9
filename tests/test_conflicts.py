"""Edits that contradict each other in unlike words: the last one stays, and the report says which gave way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import text, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.memory.key_space import KeySpace
from wise.memory.slot import ValueSlot
from wise.memory.state import MemoryState
from wise.training.conflicts import conflicts
from wise.training.report import FAILED, SUPERSEDED, VERIFIED

SHARED = Path(os.environ.get("WISE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SUBJECT_FLOOR, RELATION_FLOOR = 0.8, 0.6


def turned(cosine: float) -> list[float]:
    """A unit vector that lies so near to the first axis."""
    return [cosine, (1 - cosine**2) ** 0.5]


def memory(*edits: tuple[str, str, float, float], floors: dict[str, float] | None = None, **named: str) -> MemoryState:
    """Of edits by id, target, and the cosines of their subject and relation keys to the first axes.

    floors: relation floors of edits that have a higher one than the space. named: subjects.
    """
    subject_space, key_space = (
        KeySpace(mean=torch.zeros(2), projection=torch.eye(2), floors=(f,)) for f in (SUBJECT_FLOOR, RELATION_FLOOR)
    )
    made = [
        wise.Edit(id=i, prompt=f"{i} {named.get(i, '')}", target=target, subject=named.get(i))
        for i, target, _, _ in edits
    ]
    slots = [
        ValueSlot(
            id=n,
            edit_ids=(i,),
            scores=((floors or {}).get(i, 0.1),),
            values=torch.ones(1, 1),
            places=torch.zeros(1, dtype=torch.long),
            gated=torch.ones(1, dtype=torch.bool),
            features=1,
        )
        for n, (i, *_) in enumerate(edits)
    ]
    keys = {i: torch.tensor([turned(subject) + turned(relation)]) for i, _, subject, relation in edits}
    return MemoryState(
        edits=tuple(made), slots=tuple(slots), keys=keys, subject_space=subject_space, key_space=key_space
    )


def gave_way(state: MemoryState, written: Sequence[str] = ("a", "b", "c")) -> list[tuple[str, str]]:
    return [(each.gave_way, each.to) for each in conflicts(state, set(written))]


def test_the_earlier_gives_way_where_its_subject_reaches_the_floor_and_its_relation_comes_half_the_way_to_1() -> None:
    for subject, relation, expected in ((0.9, 0.81, True), (0.7, 0.81, False), (0.9, 0.79, False), (0.7, 0.5, False)):
        state = memory(("a", "x", 1, 1), ("b", "y", subject, relation))
        assert gave_way(state) == ([("a", "b")] if expected else []), (subject, relation)
    [found] = conflicts(memory(("a", "x", 1, 1), ("b", "y", 0.9, 0.85)), {"b"})
    assert (found.subject, found.relation) == pytest.approx((0.9, 0.85))


def test_what_float32_takes_for_more_or_less_than_it_is_goes_by_its_exact_cosine() -> None:
    """Relations that come to the floor within the last bits, on either side of it."""
    half = RELATION_FLOOR + 0.5 * (1 - RELATION_FLOOR)
    found = []
    for offset in (-3e-7, -1e-7, 0, 1e-7, 3e-7):
        state = memory(("a", "x", 1, 1), ("b", "y", 0.9, half + offset))
        exact = float((state.keys["a"][0].double() * state.keys["b"][0].double())[2:].sum())
        assert gave_way(state) == ([("a", "b")] if exact >= half else []), offset
        found.append(exact >= half)
    assert any(found) and not all(found)


def test_what_wants_the_same_or_names_another_subject_or_is_asked_more_stays() -> None:
    near = (("a", "x", 1, 1), ("b", "y", 0.9, 0.85))
    assert gave_way(memory(("a", "x", 1, 1), ("b", "x", 0.9, 0.85))) == []
    assert gave_way(memory(*near, a="Rome", b="Romeo")) == []
    assert gave_way(memory(*near, a="Rome", b="rome")) == gave_way(memory(*near, a="Rome")) == [("a", "b")]
    for own in ("a", "b"):
        assert gave_way(memory(*near, floors={own: 0.9})) == []
        assert gave_way(memory(*near, floors={own: 0.84})) == [("a", "b")]


def test_only_what_was_just_written_takes_a_place_and_only_of_what_came_before() -> None:
    state = memory(("a", "x", 1, 1), ("b", "y", 1, 1), ("c", "z", 1, 1))
    assert gave_way(state) == [("a", "c"), ("b", "c")]
    assert gave_way(state, ["b"]) == [("a", "b")]
    assert gave_way(state, ["a"]) == gave_way(state, []) == gave_way(state, ["d"]) == []


def test_what_has_given_way_takes_no_place() -> None:
    # b lies between a and c, which are too far from each other.
    far = memory(("a", "x", 1, 1), ("b", "y", 1, 0.85), ("c", "z", 1, 0.45))
    assert gave_way(far) == [("b", "c")]
    assert gave_way(far, ["b"]) == [("a", "b")]


def test_keys_without_a_subject_contradict_nothing() -> None:
    state = memory(("a", "x", 1, 1), ("b", "y", 1, 1))
    assert gave_way(replace(state, subject_space=None)) == [] and gave_way(MemoryState()) == []


# -- in a model -------------------------------------------------------------------------------

WORDINGS = ([5, 40, 41, 9], [90, 5, 40, 41, 9])


def wrapped(**floors: float) -> wise.WiseModel:
    settings: dict[str, Any] = {"mode": "hybrid", "terminator": "", "bos": False, "prefixes": 1, "layer": 1}
    base = tiny_model("llama", hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    return wise.wrap(base, tiny_tokenizer(), wise.WiseConfig(**settings, **floors))


def asked(words: int, target: int, id: str) -> wise.Edit:
    return wise.Edit(id=id, prompt=text(WORDINGS[words]), subject=text([40, 41]), target=text([target, target + 1]))


LOW = {"relation_floor": 0.01, "subject_floor": 0.2}


def test_the_last_writer_wins_and_the_report_says_so() -> None:
    model = wrapped(**LOW)
    assert model.edit(asked(0, 60, "old")).count(VERIFIED) == 1
    report = model.edit(asked(1, 70, "new"))
    assert [(c.gave_way, c.to) for c in report.conflicts] == [("old", "new")]
    assert (report.replaced, report.lost, report.count(VERIFIED)) == ((), (), 1)
    assert model.state.edit_ids == ("new",) and "old" not in model.state.keys
    assert report.to_dict()["conflicts"][0]["gave_way"] == "old"


def test_edits_that_agree_or_are_told_apart_stay_beside_each_other() -> None:
    model = wrapped(**LOW)
    report = model.edit([asked(0, 60, "old"), asked(1, 60, "new")])
    assert report.conflicts == () and model.state.edit_ids == ("old", "new")
    model = wrapped(relation_floor=0.999, subject_floor=0.999)
    report = model.edit([asked(0, 60, "old"), asked(1, 70, "new")])
    assert report.conflicts == () and model.state.edit_ids == ("old", "new")


def test_within_one_call_the_later_one_is_kept_and_the_earlier_called_superseded() -> None:
    model = wrapped(**LOW)
    report = model.edit([asked(0, 60, "old"), asked(1, 70, "new")])
    assert [o.status for o in report.outcomes] == [SUPERSEDED, VERIFIED] and report.failed == ()
    assert [(c.gave_way, c.to) for c in report.conflicts] == [("old", "new")]
    assert model.state.edit_ids == ("new",)


def failing_at_first(model: wise.WiseModel, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    """An edit of this id is fitted only by more than the least effort."""
    write = type(model.trainer.writer).write

    def written(self: Any, tasks: Any, progress: Any = None, effort: int = 0) -> Any:
        shut = {slow} if effort == 0 else set()
        found = write(self, tasks, progress, effort)
        return [(s, [replace(o, fitted=o.fitted and shut.isdisjoint(s.edit_ids)) for o in each]) for s, each in found]

    monkeypatch.setattr(type(model.trainer.writer), "write", written)


@pytest.mark.parametrize("slow", ["old", "new", "neither"])
def test_the_last_of_the_stream_wins_however_often_each_was_tried(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(**LOW)
    failing_at_first(model, monkeypatch, slow)
    report = model.edit([asked(0, 60, "old"), asked(1, 70, "new")])
    assert [(o.status, len(o.tried)) for o in report.outcomes] == [
        (SUPERSEDED, 1 + (slow == "old")),
        (VERIFIED, 1 + (slow == "new")),
    ]
    assert [(c.gave_way, c.to) for c in report.conflicts] == [("old", "new")] and report.lost == ()
    assert model.state.edit_ids == ("new",)


def test_what_was_tried_again_stands_where_it_stood_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(relation_floor=0.999, subject_floor=0.999)
    failing_at_first(model, monkeypatch, "old")
    report = model.edit([asked(0, 60, "old"), asked(1, 70, "new")])
    assert [(o.status, len(o.tried)) for o in report.outcomes] == [(VERIFIED, 2), (VERIFIED, 1)]
    assert model.state.edit_ids == ("old", "new") and [s.edit_ids for s in model.state.slots] == [("new",), ("old",)]


def test_one_that_fails_takes_no_ones_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(**LOW)
    model.edit(asked(0, 60, "old"))
    right = type(model.trainer)._right
    monkeypatch.setattr(type(model.trainer), "_right", lambda self, e, a: e.id != "new" and right(self, e, a))
    report = model.edit(asked(1, 70, "new"))
    assert [o.status for o in report.outcomes] == [FAILED]
    assert (report.conflicts, report.lost) == ((), ()) and model.state.edit_ids == ("old",)


def test_a_fact_that_is_edited_in_other_words_is_edited_anew() -> None:
    folder = SHARED / "models" / "factlm"
    if not folder.is_dir():
        pytest.skip("factlm is not among the shared models (WISE_SHARED or ../shared)")
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = wise.wrap(base, AutoTokenizer.from_pretrained(folder), wise.WiseConfig(mode="hybrid"))
    first, *others = wise.read_records(folder / "known_dev.jsonl", limit=6)
    assert model.edit([first.edit, *(other.edit for other in others)]).failed == ()
    prompt = next(p for p in first.paraphrases if (first.edit.subject or "") in p)
    newer = wise.Edit(id="newer", prompt=prompt, subject=first.edit.subject, target=str(first.answer))
    report = model.edit(newer)
    assert [(c.gave_way, c.to) for c in report.conflicts] == [(first.edit.id, "newer")]
    assert model.state.edit_ids == (*(other.edit.id for other in others), "newer")
    asked_both_ways = [answer.text for answer in model.ask([first.edit.prompt, prompt])]
    assert asked_both_ways == [first.answer, first.answer]
