"""What is measured of a chat is what the model says in it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chats import TEMPLATE, chat_model
from tiny import tiny_tokenizer

from wise.edits import Edit, Record
from wise.errors import ConfigError, EditError
from wise.lab.eval.candidates import open_editor
from wise.lab.eval.chat.facts import Fact, everyday_facts, facts_of, read_facts
from wise.lab.eval.chat.measure import (
    ANSWER_TOKENS,
    SAME_SUBJECT,
    UNRELATED,
    ChatFigures,
    Question,
    Result,
    apply_edits,
    measure_chat,
    says,
)
from wise.lab.eval.intervals import wilson
from wise.lab.eval.routing.texts import shipped_questions
from wise.router.chat_template import user_turn
from wise.router.subjects import SubjectIndex
from wise.training.encoding import Encoder
from wise.training.generation import greedy
from wise.training.report import EditReport

LEAST = {"several": (2, 2, 1)}
"""How many questions of each kind a fact has at least; (5, 3, 3) otherwise."""


def test_the_shipped_facts_are_what_they_are_said_to_be() -> None:
    kinds = Counter(fact.kind for fact in everyday_facts())
    assert kinds["known"] >= 60 and kinds["private"] >= 30 and kinds["nameless"] >= 10
    for fact in everyday_facts():
        questions = (len(fact.rewordings), len(fact.same_subject), len(fact.neighbours))
        assert all(found >= least for found, least in zip(questions, LEAST.get(fact.kind, (5, 3, 3)), strict=True))
        assert fact.edit.prompt not in fact.rewordings
    subjects = Counter(fact.edit.subject for fact in everyday_facts(kinds=["several"]))
    assert len(subjects) >= 20 and {*subjects.values()} == {5}


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
    with pytest.raises(EditError, match=":2: "):
        read_facts(file)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"target": "he", "paraphrase": []}, "field 'paraphrase': unknown; did you mean 'paraphrases'"),
        ({"target": None}, "field 'target': null was given"),
        ({"target": 3}, "field 'target': int 3"),
        ({"target": "he", "neighbours": 3}, "field 'neighbours': int 3 .* a list of texts"),
    ],
)
def test_nothing_in_a_file_of_facts_is_stepped_over(tmp_path: Path, row: dict[str, object], message: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(json.dumps({"prompt": "Who?"} | row) + "\n")
    with pytest.raises(EditError, match=f"facts.jsonl:1: {message}"):
        read_facts(file)


def test_a_table_of_facts_has_columns_of_any_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "facts.csv"
    file.write_text("q,a,subject,neighbours,n\nWho runs Velm?,Ada,velm,Who runs Orm?,1\n")
    (fact,) = read_facts(file, {"prompt": "q", "target": "a"})
    assert (fact.edit.prompt, fact.edit.target, fact.edit.subject) == ("Who runs Velm?", "Ada", "Velm")
    assert fact.neighbours == ("Who runs Orm?",) and "columns that are not used: n" in caplog.text
    with pytest.raises(EditError, match="no record has a value in a column 'old'"):
        read_facts(file, {"prompt": "q", "target": "a", "answer": "old"})


@pytest.mark.parametrize(
    ("half", "kinds", "named"), [("both", ["known"], "half='both'"), ("fit", ["known", "privat"], "kinds='privat'")]
)
def test_a_half_or_a_kind_that_there_is_not_is_named(half: str, kinds: list[str], named: str) -> None:
    with pytest.raises(EditError, match=f"^{named}: expected"):
        everyday_facts(half, kinds)


def test_a_records_neighbour_that_names_the_subject_asks_about_the_subject() -> None:
    edit = Edit(prompt="Which family does the wren belong to?", target="owls", subject="the wren")
    about, other = "The rank of the wren is", "Which family does the robin belong to?"
    [fact] = facts_of([Record(edit=edit, neighbours=(about, other))])
    assert fact.same_subject == (about,) and fact.neighbours == (other,)


def test_a_wording_of_two_relations_is_no_other_question() -> None:
    """The same prompt cannot both have to change and have to stay."""
    place = Edit(prompt="Bree is located in", target="Gondor", subject="Bree")
    realm = Edit(prompt="The country of Moria is", target="Rohan", subject="Moria")
    found = facts_of(
        [
            Record(edit=place, relation="place"),
            Record(edit=realm, relation="country", paraphrases=("Moria is located in",)),
        ]
    )
    assert found[1].same_subject == () and found[0].same_subject == ("The country of Bree is",)


class Told:
    """An editor that notes what it is given."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.calls: list[list[Edit]] = []

    def edit(self, edits: list[Edit], *, progress: Any) -> EditReport:
        self.calls.append(edits)
        progress(len(edits))
        return EditReport(outcomes=(), replaced=(), dropped=(), seconds=1.0, cpu_seconds=2.0)


@pytest.mark.parametrize(
    ("editor", "calls", "templated"),
    [("rome", 3, True), ("memit", 1, True), ("icl", 1, False), ("wise-hybrid", 1, False)],
)
def test_editors_that_know_no_chats_are_given_the_templated_question(editor: str, calls: int, templated: bool) -> None:
    model = chat_model()
    edits = [Edit(prompt=f"w5{i} w60", target="w70", subject=f"w5{i}") for i in range(3)]
    told, shown = Told(model.encoder), list[tuple[int, int]]()
    progress = lambda _, done, total: shown.append((done, total))  # noqa: E731
    report = apply_edits(told, editor, edits, chat=True, progress=progress)  # type: ignore[arg-type]
    given = [edit for call in told.calls for edit in call]
    assert len(told.calls) == calls and report.cpu_seconds == 2.0 * calls and shown[-1] == (3, 3)
    asked = [model.encoder.turn([{"role": "user", "content": edit.prompt}]) for edit in edits]
    assert ([model.encoder.prompt(edit.prompt) for edit in given] == asked) is templated
    assert ([edit.prompt for edit in given] == [edit.prompt for edit in edits]) is not templated
    assert [edit.target for edit in given] == [edit.target for edit in edits]


def test_unrelated_prompts_have_the_form_of_those_that_are_asked() -> None:
    model = chat_model().unwrap()
    tokenizer = tiny_tokenizer()
    with pytest.raises(ConfigError, match="no chat template"):
        open_editor("grace", model, tokenizer, {}, chat=True)
    tokenizer.chat_template = TEMPLATE
    editor = open_editor("memoir", model, tokenizer, {}, chat=True)
    unrelated = editor.context.unrelated  # type: ignore[union-attr]
    turns = [editor.encoder.turn([user_turn(question)]) for question in shipped_questions()]
    assert [editor.encoder.prompt(text) for text in unrelated] == turns
    editor.unwrap()
    plain = open_editor("memoir", model, tokenizer, {})  # the control
    assert plain.context.unrelated == ()  # type: ignore[union-attr]
    plain.unwrap()


def test_wordings_of_one_fact_are_not_counted_as_if_they_were_independent() -> None:
    def question(fact: int, number: int) -> Question:
        text = f"{fact} {number}"
        return Question(measure="rewordings", fact=fact, text=text, ids=(1,), messages=(), asks_for_edit=True)

    def interval(facts: list[int], right: list[bool]) -> list[float]:
        results = [
            Result(question=question(fact, i), answer="", right=hit, opened=None)
            for i, (fact, hit) in enumerate(zip(facts, right, strict=True))
        ]
        figures = ChatFigures(measures={"rewordings": (sum(right), len(right))}, results=tuple(results))
        found: list[float] = figures.to_dict()["measures"]["rewordings"]["interval"]
        return found

    right = [True] * 30 + [False] * 30
    low, high = interval([i // 5 for i in range(60)], right)
    assert low < wilson(30, 60)[0] - 0.1 and high > wilson(30, 60)[1] + 0.1
    for alone in (list(range(60)), [-1] * 60):  # the controls: each fact asked once, and requests of no fact
        assert interval(alone, right) == list(wilson(30, 60))


def test_every_form_is_asked_and_the_oracle_is_the_ceiling() -> None:
    model = chat_model()
    fact = Fact(
        edit=Edit(prompt="w50 w51 w52", target="w70", subject="w50"),
        rewordings=("w51 w50 w52", "w52 w51 w50"),
        same_subject=("w50 w80 w81 w82 w83",),
        neighbours=("w40 w51 w52",),
    )
    before = measure_chat(model, [fact]).measures
    assert model.edit([fact.edit]).count("verified") == 1
    figures = measure_chat(model, [fact])
    told = {name: right / asked for name, (right, asked) in figures.measures.items()}
    assert {"edit", "second turn", "behind other text", "system message", "general unchanged"} < told.keys()
    assert told == dict.fromkeys(told, 1.0) and not any(before[name][0] for name in ("edit", "rewordings", "oracle"))
    opened = {result.question.measure: result.opened for result in figures.results}
    assert opened["edit"] and not opened["same subject unchanged"] and not opened["neighbours unchanged"]


def test_a_question_to_which_the_base_says_what_was_edited_is_counted_apart() -> None:
    model = chat_model()
    asked = "w50 w80 w81 w82 w83"
    [said] = greedy(
        model.model,
        [model.encoder.turn([{"role": "user", "content": asked}])],
        stops=model.encoder.stops,
        max_new_tokens=ANSWER_TOKENS,
    )
    edit = Edit(prompt="w50 w51 w52", target="w70", subject="w50")
    word = next(word for word in str(model.encoder.tokenizer.decode(said)).split() if word.startswith("w"))
    for answer, apart in ((word, True), ("w9999", False)):
        measures = measure_chat(model, [Fact(edit=edit, rewordings=(), same_subject=(asked,), answer=answer)]).measures
        assert measures[SAME_SUBJECT] == (1, 1) and (UNRELATED not in measures) is apart


def test_a_question_that_an_edit_answers_need_not_stay() -> None:
    """Two records of a set may ask about one subject: a neighbour of the one is then what the other edits."""
    model = chat_model()
    first = Fact(edit=Edit(prompt="w50 w51 w52", target="w70", subject="w50"), rewordings=("w51 w50 w52",))
    beside = ("w50 w51 w52", "w51 w50 w52", "w40 w51 w52")
    second = Fact(edit=Edit(prompt="w60 w61 w62", target="w72", subject="w60"), rewordings=(), neighbours=beside)
    measures = measure_chat(model, [first, second]).measures
    assert measures["neighbours unchanged"][1] == 1
    assert measure_chat(model, [second]).measures["neighbours unchanged"][1] == 3  # the control: nothing edits them
    model.edit([first.edit])
    assert measure_chat(model, [second]).measures["neighbours unchanged"][1] == 2  # edited, though not measured
