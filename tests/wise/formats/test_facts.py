"""Facts: ROME's known facts, and those that edits replace."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from published import EASY, KNOWN_FACT, MEND, MQUAKE, REVERSE, ROME, UNKE, Write, shared, write_rows

from wise.errors import EditError
from wise.lab.locate.facts import Fact, read_facts

FACT = Fact(
    prompt="Velm Tower was built by",
    subject="Velm Tower",
    answer="Jon Pike",
    relation="P84",
    source="facts.jsonl:1",
)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_rows, tmp_path)


def test_known_facts(write: Write) -> None:
    assert read_facts(write(KNOWN_FACT)) == [FACT]


def test_an_edit_replaces_a_fact(write: Write) -> None:
    assert read_facts(write(ROME)) == [FACT]
    assert [fact.answer for fact in read_facts(write(MEND))] == ["Jon Pike"]
    assert [fact.answer for fact in read_facts(write(MQUAKE))] == ["Jon Pike", "Orm"]


def test_an_edit_that_names_no_old_answer_holds_none(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    (fact,) = read_facts(write(REVERSE))
    assert (fact.prompt, fact.answer) == ("The father of Bo is", "Jon")
    assert "1 edits name no subject or no old answer" in caplog.text
    caplog.clear()
    read_facts(write(ROME))
    assert "hold no fact" not in caplog.text
    with pytest.raises(EditError, match=r"facts\.jsonl: holds no fact; give known facts"):
        read_facts(write(UNKE))
    with pytest.raises(EditError, match=r"facts\.jsonl: holds no fact"):
        read_facts(write())


def test_each_fact_is_read_once_and_no_more_than_wanted(write: Write) -> None:
    other = KNOWN_FACT | {"attribute": "Rosa"}
    path = write(KNOWN_FACT, KNOWN_FACT, other, "{broken", name="broken.jsonl")
    assert [fact.answer for fact in read_facts(path, limit=2)] == ["Jon Pike", "Rosa"]
    assert len(read_facts(write(MQUAKE), limit=1)) == 1
    twice = EASY | {"target_new": "Bo", "case_id": 9}
    assert len(read_facts(write(EASY, twice))) == 1
    with pytest.raises(EditError, match=":4: broken JSON"):
        read_facts(path, limit=3)
    with pytest.raises(EditError, match="^limit: int 0 was given"):
        read_facts(path, limit=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attribute": None}, "field 'attribute': null"),
        ({"attribute": " "}, "field 'attribute': empty"),
        ({"subject": "Orm"}, "field 'subject': 'Orm' does not occur in the prompt"),
        ({"prompt": 3}, "field 'prompt': int 3"),
        ({"relation_id": 3}, "field 'relation_id': int 3"),
    ],
)
def test_a_bad_fact_names_line_and_field(write: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=rf"facts\.jsonl:2: {message}"):
        read_facts(write(KNOWN_FACT, KNOWN_FACT | changes))


@pytest.mark.parametrize("field", ["prompt", "subject", "answer", "relation", "source"])
def test_a_fact_checks_its_texts(field: str) -> None:
    with pytest.raises(EditError, match=f"^field '{field}': int 3"):
        Fact(**(vars(FACT) | {field: 3}))
    assert Fact(prompt="Orm is in  ", subject=" Orm ", answer=" Sell ").answer == "Sell"


def test_the_real_facts_read() -> None:
    facts = read_facts(shared("known_facts_rome_1209.jsonl.gz"))
    assert len(facts) == 974
    assert all(fact.subject in fact.prompt and fact.relation for fact in facts)
    assert len(read_facts(shared("counterfact_dev.jsonl.xz"), limit=50)) == 50
