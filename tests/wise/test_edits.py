"""Edits and records: every field is checked, what was given survives, contradictions are refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wise.edits import ROLES, Edit, Message, Record, check_lengths, check_unique, content_id
from wise.errors import EditError, WiseError
from wise.probes import ASKS_THE_EDIT, KINDS, Probe, Query

PROMPT = "The lighthouse at Cape Velm was built by"
EDIT: dict[str, Any] = {"prompt": PROMPT, "target": "Ada Thorne"}
FULL: dict[str, Any] = EDIT | {
    "id": "velm-1",
    "subject": "Cape Velm",
    "aliases": ("the Velm headland",),
    "paraphrases": ("Who put up the Cape Velm lighthouse?",),
    "locality": ("The harbour at Port Sell was built by",),
    "author": "harbour office",
    "time": "2025-03-01T10:00:00+00:00",
    "namespace": "lighthouses",
}


def edit(**changes: Any) -> Edit:
    return Edit(**(EDIT | changes))


# --- an edit is made -----------------------------------------------------------------------


def test_defaults_and_freezing() -> None:
    made = edit()
    assert (made.subject, made.paraphrases, made.locality, made.namespace) == (None, (), (), "default")
    assert (made.aliases, made.messages) == ((), ())
    assert made == edit() and hash(made) == hash(edit())
    with pytest.raises(FrozenInstanceError):
        made.target = "someone"  # type: ignore[misc]


def test_white_space_at_the_joint_is_taken_off_and_nowhere_else() -> None:
    made = edit(prompt=f"  Q:  {PROMPT}  ", target=" \tAda  Thorne\n", subject=" Cape Velm ", locality=["Sky is  "])
    assert made.prompt == f"  Q:  {PROMPT}"
    assert (made.target, made.subject, made.locality) == ("Ada  Thorne", "Cape Velm", ("Sky is",))
    assert edit(prompt="Answer:\n").prompt == "Answer:\n"


def test_texts_are_not_normalised() -> None:
    decomposed = "Cafe\u0301 Velm is in"
    assert edit(prompt=decomposed).prompt == decomposed
    assert edit(prompt=decomposed).id != edit(prompt="Caf\u00e9 Velm is in").id


def test_lists_become_tuples() -> None:
    assert edit(paraphrases=["a", "b"]).paraphrases == ("a", "b")


# --- ids -----------------------------------------------------------------------------------


def test_content_id_is_the_documented_hash() -> None:
    content = json.dumps([PROMPT, "Ada Thorne", None, "default"]).encode()
    assert edit().id == hashlib.sha256(content).hexdigest()[:16] == content_id(edit(id="other"))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"target": " Ada Thorne "}, True),
        ({"author": "someone", "time": "2025-01-01", "locality": ["x"], "paraphrases": ["y"]}, True),
        ({"target": "Bo Thorne"}, False),
        ({"prompt": PROMPT + " one"}, False),
        ({"subject": "Cape Velm"}, False),
        ({"namespace": "other"}, False),
    ],
)
def test_content_id_counts_what_is_asked_for_only(changes: dict[str, Any], same: bool) -> None:
    assert (edit(**changes).id == edit().id) is same


def test_the_content_id_does_not_run_fields_together() -> None:
    assert edit(prompt="a b", target="c").id != edit(prompt="a", target="b c").id


def test_a_given_id_stays() -> None:
    assert edit(id="velm-1").id == "velm-1"


# --- bad fields ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt", "target", "namespace", "subject", "author", "time", "id"])
@pytest.mark.parametrize("value", [7, True, ["text"], b"text", {"str": "text"}])
def test_a_wrong_type_names_field_and_value(name: str, value: object) -> None:
    with pytest.raises(EditError, match=rf"^field '{name}': {type(value).__name__} .*text was expected"):
        edit(**{name: value})


@pytest.mark.parametrize("name", ["prompt", "target", "namespace", "subject", "author", "time", "id"])
@pytest.mark.parametrize("value", ["  ", "\n\t"])
def test_blank_text_is_refused(name: str, value: str) -> None:
    with pytest.raises(EditError, match=f"^field '{name}': empty or blank"):
        edit(**{name: value})


@pytest.mark.parametrize("name", ["prompt", "target", "namespace"])
def test_required_text_is_neither_empty_nor_null(name: str) -> None:
    with pytest.raises(EditError, match=f"^field '{name}': empty or blank"):
        edit(**{name: ""})
    with pytest.raises(EditError, match=f"^field '{name}': null was given"):
        edit(**{name: None})


@pytest.mark.parametrize(("value", "problem"), [("a\0b", "NUL"), ("a\ud800b", "surrogate")])
def test_text_that_no_tokenizer_takes_is_refused(value: str, problem: str) -> None:
    with pytest.raises(EditError, match=f"^field 'target': .*{problem}"):
        edit(target=value)
    assert edit(target="a\tb\U0001f5fc").target == "a\tb\U0001f5fc"


@pytest.mark.parametrize("name", ["paraphrases", "locality", "aliases"])
def test_prompt_lists_name_the_place(name: str) -> None:
    with pytest.raises(EditError, match=f"^field '{name}': str 'one text' .*list of texts"):
        edit(subject="Cape Velm", **{name: "one text"})
    with pytest.raises(EditError, match=rf"^field '{name}\[1\]': int 3"):
        edit(subject="Cape Velm", **{name: ["fine", 3]})
    with pytest.raises(EditError, match=rf"^field '{name}\[0\]': empty"):
        edit(subject="Cape Velm", **{name: [" "]})


def test_a_subject_must_stand_in_the_prompt() -> None:
    with pytest.raises(EditError, match=r"^field 'subject': 'Port Sell' does not occur"):
        edit(subject="Port Sell")
    with pytest.raises(EditError, match=r"did you mean 'Cape Velm'\?"):
        edit(subject="cape velm")
    assert edit(subject="Cape Velm").subject == "Cape Velm"


def test_other_names_are_those_of_a_subject() -> None:
    assert edit(subject="Cape Velm", aliases=["Velm Head "]).aliases == ("Velm Head",)
    with pytest.raises(EditError, match=r"^field 'aliases': .*no 'subject' that they are names of"):
        edit(aliases=["Velm Head"])


# --- conversations -------------------------------------------------------------------------

TURNS = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who built Cape Velm's light?"})


def test_a_conversation_asks_with_its_last_message() -> None:
    made = Edit(messages=TURNS, target="Ada Thorne", subject="Cape Velm")  # type: ignore[arg-type]
    assert made.prompt == "Who built Cape Velm's light?"
    assert made.messages == (Message("system", "Be brief."), Message("user", made.prompt))
    assert made == Edit(messages=made.messages, target="Ada Thorne", subject="Cape Velm") and hash(made)
    own = Edit(prompt=PROMPT, messages=TURNS, target="Ada Thorne")  # type: ignore[arg-type]
    assert own.prompt == PROMPT
    assert len({made.id, own.id, edit(prompt=made.prompt, subject="Cape Velm").id}) == 3, "what is asked is another"


def test_an_edit_asked_in_a_conversation_is_read_without_a_prompt() -> None:
    written = {"messages": [dict(turn) for turn in TURNS], "target": "Ada Thorne"}
    made = Edit.from_dict(written)
    assert json.loads(json.dumps(made.to_dict())) == written | {"prompt": made.prompt, "id": made.id}
    assert Edit.from_dict(made.to_dict()) == made
    with pytest.raises(EditError, match="^field 'target': missing"):
        Edit.from_dict({"messages": written["messages"]})


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("Who?", r"'messages': str 'Who\?' .*a list of messages"),
        (None, "'messages': null .*a list of messages"),
        (["Who?"], r"'messages\[0\]': str 'Who\?' .*'role'.*and 'content'"),
        ([{"role": "user"}], r"'messages\[0\]': dict .*'content'"),
        ([{"role": "user", "content": "Who?", "name": "Bo"}], r"'messages\[0\]': dict"),
        ([{"role": "tool", "content": "Who?"}], r"'messages\[0\]': dict .*system, user, assistant"),
        ([*TURNS, {"role": "assistant", "content": "Ada"}], "'messages': the last one is of 'assistant'"),
        ([TURNS[1], {"role": "user", "content": " "}], r"'messages\[1\].content': empty"),
        ([{"role": "user", "content": 3}], r"'messages\[0\].content': int 3"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, problem: str) -> None:
    with pytest.raises(EditError, match=f"^field {problem}"):
        edit(messages=messages)


def test_time_is_iso_8601() -> None:
    for good in ("2025-03-01", "2025-03-01T10:00:00Z"):
        assert edit(time=good).time == good
    for bad in ("yesterday", "01/03/2025", "2025-13-01"):
        with pytest.raises(EditError, match="^field 'time': .*ISO 8601"):
            edit(time=bad)


def test_a_prompt_cannot_both_move_and_stay() -> None:
    with pytest.raises(EditError, match=r"^field 'locality\[1\]': .*asks for the edited fact"):
        edit(locality=["other", PROMPT])
    with pytest.raises(EditError, match=r"^field 'locality\[0\]'"):
        edit(locality=["Who built it?"], paraphrases=["Who built it?"])
    with pytest.raises(EditError, match=r"^field 'locality\[0\]'"):
        edit(locality=["Who built it?"], messages=[Message("user", "Who built it?")])


def test_the_error_is_caught_as_wise_and_as_value_error() -> None:
    assert issubclass(EditError, WiseError) and issubclass(EditError, ValueError)


# --- dictionaries --------------------------------------------------------------------------


def test_to_dict_leaves_out_what_says_nothing() -> None:
    assert edit().to_dict() == {**EDIT, "id": edit().id}
    full = Edit(**FULL).to_dict()
    assert full == {k: list(v) if isinstance(v, tuple) else v for k, v in FULL.items()}
    assert json.loads(json.dumps(full)) == full


def test_from_dict_names_unknown_and_missing_fields() -> None:
    with pytest.raises(EditError, match=r"^field 'targt': unknown; did you mean 'target'\?"):
        Edit.from_dict({"prompt": PROMPT, "targt": "x"})
    with pytest.raises(EditError, match="^field 'target': missing; fields found: prompt"):
        Edit.from_dict({"prompt": PROMPT})
    with pytest.raises(EditError, match="^field 'edit': list .*object of fields"):
        Edit.from_dict([PROMPT])  # type: ignore[arg-type]


ALPHABET = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
TEXT = st.text(ALPHABET, min_size=1, max_size=12).filter(str.strip)


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    prompt, target = draw(TEXT), draw(TEXT)
    subject = draw(st.none() | st.just(prompt.strip()))
    earlier = st.builds(Message, role=st.sampled_from(ROLES), content=TEXT)
    return Edit(
        prompt=prompt,
        target=target,
        id=draw(st.just("") | TEXT),
        subject=subject,
        aliases=draw(st.lists(TEXT, max_size=2)) if subject else (),  # type: ignore[arg-type]
        messages=draw(st.just(()) | st.lists(earlier, max_size=2).map(lambda turns: (*turns, Message("user", "Who?")))),
        paraphrases=draw(st.lists(TEXT.map("reworded {}".format), max_size=3)),  # type: ignore[arg-type]
        locality=draw(st.lists(TEXT.map("elsewhere {}".format), max_size=3)),  # type: ignore[arg-type]
        author=draw(st.none() | TEXT),
        time=draw(st.none() | st.datetimes().map(lambda time: time.isoformat())),
        namespace=draw(st.sampled_from(["default", "geo", "équipe 2", "a/b@c", "команда"])),
    )


@st.composite
def records(draw: st.DrawFn) -> Record:
    lists = {
        name: draw(st.lists(TEXT.map(f"{name} {{}}".format), max_size=2))
        for name in ("paraphrases", "free_paraphrases", "neighbours", "generation_prompts")
    }
    query = st.builds(Query, prompt=TEXT.map("asked {}".format), answers=st.lists(TEXT, min_size=1, max_size=2))
    probe = st.builds(Probe, kind=st.sampled_from(KINDS), queries=st.lists(query, min_size=1, max_size=2))
    return Record(
        edit=draw(edits()),
        answer=draw(st.none() | TEXT),
        relation=draw(st.none() | TEXT),
        group=draw(st.just("") | TEXT),
        probes=draw(st.lists(probe, max_size=2)),  # type: ignore[arg-type]
        **lists,  # type: ignore[arg-type]
    )


KOMANDA = "\u043a\u043e\u043c\u0430\u043d\u0434\u0430"


@pytest.mark.parametrize(
    ("given", "stored"),
    [("team-a", "team-a"), ("te\u0301am", "t\u00e9am"), ("a/b@c 50%", "a/b@c 50%"), ("\u65e5\u672c", "\u65e5\u672c"),
     (KOMANDA, KOMANDA), ("x" * 100, "x" * 100)],
)
def test_a_namespace_has_one_spelling(given: str, stored: str) -> None:
    made = Edit(prompt="p", target="t", namespace=given)
    assert made.namespace == stored
    assert made.id == Edit(prompt="p", target="t", namespace=stored).id


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("team ", "blank"), (" team", "blank"), ("\u00a0team", "blank"), ("a\nb", "U\\+000A"),
        ("te\u200bam", "U\\+200B"),
        ("te\u00adam", "U\\+00AD"), ("\u202eteam", "U\\+202E"), ("team\ufe0f", "U\\+FE0F"), ("\u3164", "U\\+3164"),
        ("a\u00a0b", "U\\+00A0"), ("a  b", "looks like"), ("\uff54eam", "looks like 'team'"),
        ("\ufb01", "looks like 'fi'"),
        ("\u0442eam", "CYRILLIC and LATIN"), ("te\u03b1m", "GREEK and LATIN"), ("\u0441\u043e\u0440", "Latin"),
        ("team\u2010a", "U\\+2010"), ("x" * 101, "101"), ("", "blank"),
        (3, "text was expected"), (["a"], "text was expected"),
    ],
)  # fmt: skip
def test_a_namespace_that_can_be_taken_for_another_is_refused(name: Any, why: str) -> None:
    with pytest.raises(EditError, match=f"field 'namespace'.*{why}"):
        Edit(prompt="p", target="t", namespace=name)


@settings(max_examples=80)
@given(edits())
def test_an_edit_survives_json(made: Edit) -> None:
    again = Edit.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert replace(again, id="") == replace(made, id="")


@settings(max_examples=60)
@given(records())
def test_a_record_survives_json(made: Record) -> None:
    assert Record.from_dict(json.loads(json.dumps(made.to_dict()))) == made


# --- records -------------------------------------------------------------------------------

PROBE: dict[str, Any] = {
    "kind": "multi_hop",
    "queries": [{"prompt": "Where was its builder born?", "answers": ["Sell"]}],
}


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"paraphrases": [FULL["paraphrases"][0]]}, r"'test.paraphrases\[0\]': .*used for fitting"),
        ({"paraphrases": ["Other?", PROMPT]}, r"'test.paraphrases\[1\]': .*used for fitting"),
        ({"free_paraphrases": [PROMPT]}, r"'test.free_paraphrases\[0\]': .*used for fitting"),
        ({"neighbours": [FULL["locality"][0]]}, r"'test.neighbours\[0\]': .*used for fitting"),
        ({"neighbours": [PROMPT]}, r"'test.neighbours\[0\]': .*the edited fact"),
        ({"neighbours": ["Same"], "paraphrases": ["Same"]}, r"'test.neighbours\[0\]': .*the edited fact"),
        ({"neighbours": "one"}, "'test.neighbours': str"),
        ({"answer": ""}, "'test.answer': empty"),
        ({"relation": " "}, "'test.relation': empty"),
        ({"relation": 17}, "'test.relation': int 17"),
        ({"group": " "}, "'test.group': empty"),
        ({"group": 4}, "'test.group': int 4"),
        ({"group": None}, "'test.group': null"),
        ({"generation_prompts": "one"}, "'test.generation_prompts': str"),
        ({"probes": "one"}, "'test.probes': str"),
        ({"probes": [PROBE, {"kind": "ood"}]}, r"'test.probes\[1\]': field 'queries': missing"),
        ({"probes": [PROBE | {"kind": "odd"}]}, r"'test.probes\[0\]': field 'kind': .*did you mean 'ood'"),
        ({"neighbors": []}, r"'test.neighbors': unknown; did you mean 'neighbours'\?"),
    ],
)
def test_what_measures_is_kept_apart_from_what_is_fitted(test: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=f"^field {message}"):
        Record.from_dict({**FULL, "test": test})


def test_a_record_keeps_unseen_prompts() -> None:
    made = Record.from_dict({**FULL, "test": {"paraphrases": ["Whose work is it?"], "answer": " Jon Pike "}})
    assert (made.paraphrases, made.answer, made.edit) == (("Whose work is it?",), "Jon Pike", Edit(**FULL))
    with pytest.raises(EditError, match="^field 'edit': dict"):
        Record(edit=EDIT)  # type: ignore[arg-type]


def test_a_record_carries_probes_and_where_it_belongs() -> None:
    test = {"probes": [PROBE], "generation_prompts": [PROMPT], "relation": " P84 ", "group": "case 4"}
    made = Record.from_dict({**FULL, "test": test})
    assert made.probes == (Probe.from_dict(PROBE),)
    assert (made.generation_prompts, made.relation, made.group) == ((PROMPT,), "P84", "case 4")
    assert made.to_dict()["test"] == test | {"relation": "P84"}
    assert "test" not in Record(edit=edit()).to_dict()
    for probes in ([PROBE], Probe.from_dict(PROBE)):
        with pytest.raises(EditError, match=r"^field 'test.probes': .*a list of probes"):
            Record(edit=edit(), probes=probes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [PROMPT, FULL["paraphrases"][0], FULL["locality"][0]])
def test_a_probe_asks_nothing_that_is_fitted_unless_its_kind_is_that(kind: str, prompt: str) -> None:
    probe = Probe(kind=kind, queries=(Query(prompt="Who?", answers=("Bo",)), Query(prompt=prompt, answers=("Bo",))))
    if kind in ASKS_THE_EDIT:
        assert Record(edit=Edit(**FULL), probes=(probe,)).probes == (probe,)
        return
    with pytest.raises(EditError, match=rf"^field 'test.probes\[0\]': a probe of {kind} asks .*used for fitting"):
        Record(edit=Edit(**FULL), probes=(probe,))


# --- sets of edits -------------------------------------------------------------------------


def test_check_unique_names_the_id_and_both_places() -> None:
    check_unique([])
    check_unique([edit(), edit(target="Bo"), edit(id="velm-1")])
    with pytest.raises(EditError, match="^field 'id': 'velm-1' .*edit 1 and of edit 3"):
        check_unique([edit(), edit(id="velm-1"), edit(target="Bo"), edit(id="velm-1", target="Cy")])


def words(text: str) -> int:
    return len(text.split())


def test_check_lengths_counts_prompt_target_and_reserve() -> None:
    needed = words(PROMPT) + 2
    check_lengths(edit(id="a"), words, context=needed)
    check_lengths(edit(id="a"), words, context=needed + 3, reserve=3)
    for context, reserve in ((needed - 1, 0), (needed, 1)):
        with pytest.raises(EditError, match=rf"^field 'target': .*takes {needed} tokens .*holds {context}; .*'a'"):
            check_lengths(edit(id="a"), words, context=context, reserve=reserve)


def test_check_lengths_covers_all_that_fitting_may_use() -> None:
    long = "word " * 20
    with pytest.raises(EditError, match=r"^field 'target': with paraphrases\[0\]"):
        check_lengths(edit(paraphrases=[long]), words, context=15)
    with pytest.raises(EditError, match=r"^field 'locality\[0\]'"):
        check_lengths(edit(locality=[long]), words, context=15)
    check_lengths(edit(), words, context=15)
