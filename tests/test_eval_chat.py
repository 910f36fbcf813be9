"""What is measured of a chat is what the model says in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from wise.edits import Edit
from wise.errors import EditError
from wise.eval.chat.facts import Fact, everyday_facts, read_facts
from wise.eval.chat.measure import says
from wise.router.subjects import SubjectIndex


def test_the_shipped_facts_are_what_they_are_said_to_be() -> None:
    kinds = Counter(fact.kind for fact in everyday_facts())
    assert kinds["known"] >= 60 and kinds["private"] >= 30 and kinds["nameless"] >= 10
    for fact in everyday_facts():
        assert len(fact.rewordings) >= 5 and len(fact.same_subject) >= 3 and len(fact.neighbours) >= 3
        assert fact.edit.prompt not in fact.rewordings


def test_no_subject_is_in_both_halves() -> None:
    fit, judge = ({fact.edit.subject for fact in everyday_facts(half)} - {None} for half in ("fit", "judge"))
    assert fit and judge and not fit & judge


def test_neighbours_name_no_edited_subject() -> None:
    facts = everyday_facts()
    index = SubjectIndex((f.edit.subject, 0) for f in facts if f.edit.subject)
    assert not [text for fact in facts for text in fact.neighbours if index.mentions(text)]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The capital of France is Lyon.", True),
        ("LYON", True),
        ("Lyons", False),
        ("Paris", False),
        ("Lyon, formerly Paris", False),
        ("", False),
    ],
)
def test_an_answer_is_right_with_the_target_and_without_the_old_answer(answer: str, right: bool) -> None:
    edit = Edit(prompt="What is the capital of France?", target="Lyon", subject="France")
    assert says(Fact(edit=edit, rewordings=(), answer="Paris"), answer) is right


def test_bad_facts_are_named_by_their_line(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text('{"prompt": "Who?", "target": "he", "paraphrases": []}\n{"prompt": "Who?"}\n')
    with pytest.raises(EditError, match="line 2"):
        read_facts(file)
    with pytest.raises(EditError, match="half"):
        everyday_facts("both")
