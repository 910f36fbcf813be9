"""Edits that contradict each other in unlike words: the last one stays, and the report says which gave way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from repository import shared
from tiny import WordReader, text, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.memory.key_space import KeySpace, RelationSpace
from wise.memory.slot import AnswerSlot
from wise.memory.state import MemoryState
from wise.training.conflicts import conflicts, swaps_a_word
from wise.training.report import FAILED, SUPERSEDED, VERIFIED
from wise.training.verification import Verdict

THRESHOLD, UNNAMED = 0.6, 0.8
Asked = tuple[str, str, float]


def turned(cosine: float) -> list[float]:
    """A unit vector that lies so near to the first axis."""
    return [cosine, (1 - cosine**2) ** 0.5]


def memory(
    *edits: Asked,
    thresholds: dict[str, float] | None = None,
    further: dict[str, float] | None = None,
    aliases: dict[str, str] | None = None,
    **subjects: str | None,
) -> MemoryState:
    """Of edits by id, target, and the cosine to the first axis of what each asks.

    thresholds: those of edits that have another than the reader's. further: a second wording of an edit, by its cosine.
    subjects: "rome" where none is named.
    """
    named = {i: subjects.get(i, "rome") for i, _, _ in edits}
    made = [
        wise.Edit(
            id=i,
            prompt=f"{i} of {named[i] or 'nothing'}",
            target=target,
            subject=named[i],
            aliases=(aliases[i],) if aliases and i in aliases else (),
        )
        for i, target, _ in edits
    ]
    slots = [
        AnswerSlot(
            id=n,
            edit_ids=(i,),
            scores=((thresholds or {}).get(i, THRESHOLD),),
            values=torch.ones(1, 1),
            ids=torch.tensor([5]),
            counts=torch.tensor([0, 1]),
            features=1,
        )
        for n, (i, *_) in enumerate(edits)
    ]
    keys = {}
    for i, _, cosine in edits:
        asked = [turned(cosine), *([turned(further[i])] if further and i in further else [])]
        # The whole question, by which an edit is found where no subject is named, comes first.
        keys[i] = torch.tensor([[0.0, 1.0], *asked] if named[i] else asked)
    space = RelationSpace(reader="made up", size=2, threshold=THRESHOLD, unnamed_threshold=UNNAMED)
    return MemoryState(edits=tuple(made), slots=tuple(slots), keys=keys, key_space=space)


def superseded(state: MemoryState, written: Sequence[str] = ("a", "b", "c")) -> list[tuple[str, str]]:
    return [(each.superseded, each.by) for each in conflicts(state, set(written))]


def test_the_earlier_gives_way_where_each_is_what_the_others_question_asks_for() -> None:
    for cosine, expected in ((0.9, True), (0.71, True), (0.69, False), (0.0, False)):
        state = memory(("a", "x", 1), ("b", "y", cosine))
        assert superseded(state) == ([("a", "b")] if expected else []), cosine
    [found] = conflicts(memory(("a", "x", 1), ("b", "y", 0.85)), {"b"})
    assert found.score == pytest.approx(0.85)


def test_of_several_wordings_the_nearest_counts_and_each_must_be_asked_by_the_others_own() -> None:
    far = (("a", "x", 1), ("b", "y", 0.3))
    assert superseded(memory(*far)) == []
    # The later edit knows a wording like the question of the earlier one, which knows none like the later's question.
    assert superseded(memory(*far, further={"b": 0.95})) == []
    assert superseded(memory(*far, further={"a": 0.3, "b": 1})) == [("a", "b")]


def test_what_wants_the_same_or_is_of_another_subject_or_is_asked_more_stays() -> None:
    near = (("a", "x", 1), ("b", "y", 0.85))
    assert superseded(memory(("a", "x", 1), ("b", "x", 0.85))) == []
    assert superseded(memory(*near, a="rome", b="paris")) == superseded(memory(*near, b=None)) == []
    assert superseded(memory(*near, a="rome", b="the rome")) == [("a", "b")]
    assert superseded(memory(*near, a="rome", b="roma", aliases={"b": "rome"})) == [("a", "b")]
    for own in ("a", "b"):
        assert superseded(memory(*near, thresholds={own: 0.76})) == []
        assert superseded(memory(*near, thresholds={own: 0.74})) == [("a", "b")]


def test_edits_without_a_subject_must_come_nearer() -> None:
    assert superseded(memory(("a", "x", 1), ("b", "y", 0.85), a=None, b=None)) == [("a", "b")]
    assert superseded(memory(("a", "x", 1), ("b", "y", 0.75), a=None, b=None)) == []
    assert superseded(memory(("a", "x", 1), ("b", "y", 0.75))) == [("a", "b")]


def test_edits_of_two_relations_that_are_told_apart_stay_although_their_questions_are_alike() -> None:
    def of(first: float, second: float) -> MemoryState:
        """The answers, and the relations they are nearest to, lie as far to the side of one question and the other."""
        state, side = memory(("a", "x", 1), ("b", "y", 1)), [(1 - n**2) ** 0.5 for n in (first, second)]
        of_a, of_b = torch.tensor([first, side[0]]), torch.tensor([second, -side[1]])
        keys = {i: torch.cat([state.keys[i], of_it[None], of_it[None]]) for i, of_it in (("a", of_a), ("b", of_b))}
        return replace(state, keys=keys)

    assert superseded(of(0.8, 0.8)) == []
    assert superseded(of(1, 1)) == superseded(of(0.99, 0.99)) == [("a", "b")]
    assert superseded(memory(("a", "x", 1), ("b", "y", 1))) == [("a", "b")]  # whose reader knows no relations


@pytest.mark.parametrize(
    ("other", "swapped"),
    [
        ("What is the fax number of this?", True),
        ("What is the VAT number of this?", True),
        ("What is the mobile phone number of this?", False),  # a word more
        ("What is the phone numbers of this?", False),
        ("Which is the phone number of this?", False),
        ("What was the phone number for this?", False),
        ("How can I call this?", False),
    ],
)
def test_a_question_in_which_a_word_is_swapped_asks_for_something_else(other: str, swapped: bool) -> None:
    asked = "What is the phone number of this?"
    assert swaps_a_word(asked, other) is swaps_a_word(other, asked) is swapped
    state = memory(("a", "x", 1), ("b", "y", 0.9))
    first, second = (
        replace(edit, prompt=text.replace("this", "rome"), id=edit.id)
        for edit, text in zip(state.edits, (asked, other), strict=True)
    )
    assert superseded(replace(state, edits=(first, second))) == ([] if swapped else [("a", "b")])
    listed = replace(second, paraphrases=(first.prompt,))  # which says that it is one question
    assert superseded(replace(state, edits=(first, listed))) == [("a", "b")]


def test_only_what_was_just_written_takes_a_place_and_only_of_what_came_before() -> None:
    state = memory(("a", "x", 1), ("b", "y", 1), ("c", "z", 1))
    assert superseded(state) == [("a", "c"), ("b", "c")]
    assert superseded(state, ["b"]) == [("a", "b")]
    assert superseded(state, ["a"]) == superseded(state, []) == superseded(state, ["d"]) == []


def test_what_has_given_way_takes_no_place() -> None:
    # b lies between a and c, which are too far from each other.
    far = memory(("a", "x", 1), ("b", "y", 0.8), ("c", "z", 0.3))
    assert superseded(far) == [("b", "c")]
    assert superseded(far, ["b"]) == [("a", "b")]


def test_keys_of_activations_contradict_nothing() -> None:
    state = memory(("a", "x", 1), ("b", "y", 1))
    space = KeySpace(mean=torch.zeros(2), projection=torch.eye(2))
    assert superseded(replace(state, key_space=space)) == [] and superseded(MemoryState()) == []


# -- in a model -------------------------------------------------------------------------------

WORDINGS = ([5, 40, 41, 9], [90, 5, 40, 41, 9], [80, 81, 40, 41, 82])
"""Two that ask the same in unlike words, and one that asks for something else."""


def wrapped() -> wise.WiseModel:
    base = tiny_model("llama", hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    config = wise.WiseConfig(mode="hybrid", terminator="", bos=False, layer=1)
    return wise.wrap(base, tiny_tokenizer(), config, reader=WordReader())


def asked(words: int, target: int, id: str) -> wise.Edit:
    return wise.Edit(id=id, prompt=text(WORDINGS[words]), subject=text([40, 41]), target=text([target, target + 1]))


def test_the_last_writer_wins_and_the_report_says_so() -> None:
    model = wrapped()
    assert model.edit(asked(0, 60, "old")).count(VERIFIED) == 1
    report = model.edit(asked(1, 70, "new"))
    assert [(c.superseded, c.by) for c in report.conflicts] == [("old", "new")]
    assert (report.replaced, report.dropped, report.count(VERIFIED)) == ((), (), 1)
    assert model.state.edit_ids == ("new",) and "old" not in model.state.keys
    assert report.to_dict()["conflicts"][0]["superseded"] == "old"


def test_edits_that_agree_or_are_told_apart_stay_beside_each_other() -> None:
    model = wrapped()
    report = model.edit([asked(0, 60, "old"), asked(1, 60, "new")])
    assert report.conflicts == () and model.state.edit_ids == ("old", "new")
    model = wrapped()
    report = model.edit([asked(0, 60, "old"), asked(2, 70, "new")])
    assert report.conflicts == () and model.state.edit_ids == ("old", "new")


def test_within_one_call_the_later_one_is_kept_and_the_earlier_called_superseded() -> None:
    model = wrapped()
    report = model.edit([asked(0, 60, "old"), asked(1, 70, "new")])
    assert [o.status for o in report.outcomes] == [SUPERSEDED, VERIFIED] and report.failed == ()
    assert [(c.superseded, c.by) for c in report.conflicts] == [("old", "new")]
    assert model.state.edit_ids == ("new",)


def failing_at_first(model: wise.WiseModel, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    """An edit of this id is fitted only by more than the least effort."""
    write = type(model.trainer.writer).write

    def written(self: Any, tasks: Any, progress: Any = None, effort: int = 0, *given: Any) -> Any:
        shut = {slow} if effort == 0 else set()
        found = write(self, tasks, progress, effort, *given)
        return [(s, [replace(o, fitted=o.fitted and shut.isdisjoint(s.edit_ids)) for o in each]) for s, each in found]

    monkeypatch.setattr(type(model.trainer.writer), "write", written)


@pytest.mark.parametrize("slow", ["old", "new", "neither"])
def test_the_last_of_the_stream_wins_however_often_each_was_tried(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped()
    failing_at_first(model, monkeypatch, slow)
    report = model.edit([asked(0, 60, "old"), asked(1, 70, "new")])
    assert [(o.status, len(o.tried)) for o in report.outcomes] == [
        (SUPERSEDED, 1 + (slow == "old")),
        (VERIFIED, 1 + (slow == "new")),
    ]
    assert [(c.superseded, c.by) for c in report.conflicts] == [("old", "new")] and report.dropped == ()
    assert model.state.edit_ids == ("new",)


def test_what_was_tried_again_stands_where_it_stood_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped()
    failing_at_first(model, monkeypatch, "old")
    report = model.edit([asked(0, 60, "old"), asked(2, 70, "new")])
    assert [(o.status, len(o.tried)) for o in report.outcomes] == [(VERIFIED, 2), (VERIFIED, 1)]
    assert model.state.edit_ids == ("old", "new") and [s.edit_ids for s in model.state.slots] == [("new",), ("old",)]


def test_one_that_fails_takes_no_ones_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped()
    model.edit(asked(0, 60, "old"))
    ask = type(model.trainer.verifier).ask
    live: list[bool] = []

    def asked_in_vain(self: Any, state: MemoryState, edits: Any, *given: Any, **more: Any) -> dict[str, Verdict]:
        live.extend(edit.id in state.edit_ids for edit in edits)
        wrong = {"prompt": {"completion: prompt": False}}
        found = ask(self, state, edits, *given, **more)
        return {i: replace(v, holds=wrong) if i == "new" else v for i, v in found.items()}

    monkeypatch.setattr(type(model.trainer.verifier), "ask", asked_in_vain)
    report = model.edit(asked(1, 70, "new"))
    assert [o.status for o in report.outcomes] == [FAILED]
    assert (report.conflicts, report.dropped) == ((), ()) and model.state.edit_ids == ("old",)
    assert live and all(live), "what is reported of it is what was said with it"


def test_a_fact_that_is_edited_in_other_words_is_edited_anew() -> None:
    folder = shared("models/factlm")
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = wise.wrap(base, AutoTokenizer.from_pretrained(folder), wise.WiseConfig(mode="hybrid"))
    first, *others = wise.read_records(folder / "known_dev.jsonl", limit=6)
    assert model.edit([first.edit, *(other.edit for other in others)]).failed == ()
    prompt = next(p for p in first.paraphrases if (first.edit.subject or "") in p)
    newer = wise.Edit(id="newer", prompt=prompt, subject=first.edit.subject, target=str(first.answer))
    report = model.edit(newer)
    assert [(c.superseded, c.by) for c in report.conflicts] == [(first.edit.id, "newer")]
    assert model.state.edit_ids == (*(other.edit.id for other in others), "newer")
    asked_both_ways = [answer.text for answer in model.ask([first.edit.prompt, prompt])]
    assert asked_both_ways == [first.answer, first.answer]
