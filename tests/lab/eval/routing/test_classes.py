"""The prompts that routing is measured on: what each class holds, and what may be in none of the negatives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tiny import tiny_tokenizer

from wise.edits import Edit, Record
from wise.errors import ConfigError
from wise.lab.eval.routing.classes import RoutingClass, RoutingSet, build_routing_set
from wise.lab.eval.routing.material import Draft, choose, evenly
from wise.lab.eval.routing.negatives import Names, same_name
from wise.lab.eval.routing.relations import Relations, template_of
from wise.lab.eval.routing.topics import normal, sentences, topics_of, words
from wise.probes import Probe, Query
from wise.router.chat_template import conversation_ids
from wise.training.encoding import Encoder

POSITIVES = ("edits", "paraphrases", "free_paraphrases", "prefixed", "chat", "multi_turn")
NEGATIVES = (
    "generic",
    "same_relation",
    "same_subject",
    "near_duplicate",
    "running_text",
    "long_context",
    "chat",
    "multi_turn",
)
PEOPLE = ["Mara Ilves", "Tomas Ilves", "Ada Korn", "Otto Brandt", "Lena Brandt", "Piet Hoorn", "Rosa Lind", "Max Lindt"]
OTHERS = ["Mara Vries", "Tove Ilves", "Ada Horn", "Odo Brand", "Lea Brandt", "Piet Doorn", "Rosa Linz", "Marc Lind"]


def encoder(context: int = 256, template: str | None = None) -> Encoder:
    """One word, one token."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Encoder(tokenizer=tokenizer, bos=(), terminator=(2,), stops=frozenset([2]), context=context)


def job(name: str, **changes: Any) -> Record:
    edit = Edit(prompt=f"{name} works as", target="baker", subject=name, id=f"job {name}")
    settings: dict[str, Any] = {
        "paraphrases": (f"The profession of {name} is",),
        "free_paraphrases": (f"To earn money, {name} is a",),
        "answer": "sailor",
    }
    return Record(edit=edit, **settings | changes)


def birth(name: str, **changes: Any) -> Record:
    edit = Edit(prompt=f"{name} was born in", target="Riga", subject=name, id=f"birth {name}")
    return Record(edit=edit, **{"paraphrases": (f"The birthplace of {name} is",)} | changes)


LONG = [f"n{i}." if i % 10 == 9 else f"n{i}" for i in range(50)]
RECORDS = [job(name) for name in PEOPLE]
POOL = [*(job(name) for name in OTHERS), *(birth(name) for name in OTHERS)]


def build(records: list[Record] = RECORDS, **options: Any) -> RoutingSet:
    settings: dict[str, Any] = {"pool": POOL, "encoder": encoder(), "live": [record.edit for record in records]}
    return build_routing_set(records, **settings | options)


def negative(found: RoutingSet, name: str) -> RoutingClass:
    return next(kind for kind in found.negatives if kind.name == name)


def positive(found: RoutingSet, name: str) -> RoutingClass:
    return next(kind for kind in found.positives if kind.name == name)


def texts(kind: RoutingClass) -> list[str]:
    return [prompt.text for prompt in kind.prompts]


def all_negatives(found: RoutingSet) -> list[str]:
    return [text for kind in found.negatives for text in texts(kind)]


# -- every class ------------------------------------------------------------------------------


def test_every_class_is_built_and_told() -> None:
    found = build()
    assert tuple(kind.name for kind in found.positives) == POSITIVES
    assert tuple(kind.name for kind in found.negatives) == NEGATIVES
    assert found.skipped == {}
    assert {kind.name for kind in found.negatives if kind.unit == "token"} == {"running_text", "long_context"}
    for kind in (*found.positives, *found.negatives):
        assert kind.about.endswith(".") and kind.unit in ("prompt", "token")
        assert len(set(texts(kind))) == len(kind.prompts) > 0


def test_positives_carry_the_edit_that_they_ask_for() -> None:
    ids = [record.edit.id for record in RECORDS]
    for kind in build().positives:
        assert [prompt.record for prompt in kind.prompts] == ids, kind.name
        for prompt in kind.prompts:
            subject = (prompt.record or "").removeprefix("job ")
            assert subject in prompt.text


def test_forms_of_the_positives() -> None:
    found = build(text=["It rained. The sun came out later."])
    assert texts(positive(found, "edits"))[0] == "Mara Ilves works as"
    assert texts(positive(found, "prefixed"))[0] == "The sun came out later. Mara Ilves works as"
    assert texts(positive(found, "chat"))[0] == "User: Mara Ilves works as\nAssistant:"
    lines = texts(positive(found, "multi_turn"))[0].split("\n")
    assert [line.split(" ")[0] for line in lines] == ["User:", "Assistant:", "User:", "Assistant:"]
    assert lines[2:] == ["User: Mara Ilves works as", "Assistant:"]


def test_forms_of_the_negatives() -> None:
    question = "What floats?"
    found = build(questions=[question])
    assert texts(negative(found, "generic")) == [question]
    turns = f"User: Mara Ilves works as\nAssistant: baker\nUser: {question}\nAssistant:"
    assert texts(negative(found, "multi_turn"))[0] == turns
    assert f"User: {question}\nAssistant:" in texts(negative(found, "chat"))
    assert set(texts(negative(found, "same_relation"))) == {f"{name} works as" for name in OTHERS}
    assert texts(negative(found, "same_subject")) == [f"{name} was born in" for name in PEOPLE]
    near = texts(negative(found, "near_duplicate"))
    assert "Piet Doorn works as" in near and "Lea Brandt works as" in near
    for prompt in negative(found, "long_context").prompts:
        assert (prompt.record or "").removeprefix("job ") in prompt.text
        assert prompt.text.endswith(question)
        assert 100 < len(prompt.text.split()) <= 192


def test_chat_is_half_generic_half_of_the_relation() -> None:
    chat = negative(build(per_class=10), "chat")
    assert Counter(prompt.record is None for prompt in chat.prompts) == {True: 5, False: 5}
    assert any("works as" in prompt.text for prompt in chat.prompts)


def test_the_chat_template_is_used_where_there_is_one() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    found = build(encoder=encoder(template=template), questions=["What floats?"])
    assert texts(positive(found, "chat"))[0] == "<bos>[user] Mara Ilves works as\n[assistant]"
    turns = "<bos>[user] Mara Ilves works as\n[assistant] baker\n[user] What floats?\n[assistant]"
    assert texts(negative(found, "multi_turn"))[0] == turns
    assert "the tokenizer's chat template" in positive(found, "chat").about
    read, turn = encoder(template=template), {"role": "user", "content": "Mara Ilves works as"}
    ids = conversation_ids(read.tokenizer, [turn])
    assert read.prompt(texts(positive(found, "chat"))[0]) == ids, "as the router reads turns"
    twice = replace(encoder(template=template.replace("}}{%", "}} {%", 1)), bos=(1,))
    assert texts(positive(build(encoder=twice), "chat"))[0] == " [user] Mara Ilves works as\n[assistant]"
    refused = build(encoder=encoder(template="{{ raise_exception('no assistant here') }}"))
    assert "no chat template that takes plain turns" in positive(refused, "chat").about
    assert texts(positive(refused, "chat"))[0] == "User: Mara Ilves works as\nAssistant:"


# -- leaks ------------------------------------------------------------------------------------


def test_no_negative_asks_for_an_edit() -> None:
    """Independently of the guard: by the words of each negative alone."""
    records = [*RECORDS, birth("Mara Ilves"), birth("Zoe Quint", answer="Oslo")]
    found = build(records, pool=[*POOL, job("Zoe Quint"), job("Ada Korn"), birth("Rosa Lind")])
    edited = {(words(r.edit.subject or ""), r.edit.prompt.split()[-2]) for r in records}
    for name in ("generic", "same_relation", "same_subject", "near_duplicate", "running_text", "long_context"):
        for text in texts(negative(found, name)):
            spoken = f" {' '.join(words(text))} "
            for subject, verb in edited:
                signs = {"works": ("work", "profession", "money"), "born": ("born", "birth")}[verb]
                named = f" {' '.join(subject)} " in spoken
                if name == "long_context":
                    named = any(f"{' '.join(subject)} {sign}" in spoken for sign in ("works", "was born"))
                assert not named or not any(sign in spoken for sign in signs), text


@pytest.mark.parametrize(
    "leak",
    [
        "Otto Brandt works as",
        "otto  BRANDT works as",
        "The profession of Otto Brandt is",
        "Öttö Brandt works as",
        "Otto Brandt works as.",
    ],
)
def test_a_neighbour_that_asks_for_another_edit_is_dropped(leak: str) -> None:
    records = [job("Mara Ilves", neighbours=(leak, "Ann Beck works as")), job("Otto Brandt")]
    assert texts(negative(build(records), "same_relation"))[0] == "Ann Beck works as"
    assert leak not in all_negatives(build(records))
    alone = [records[0]]
    read = leak[0] == "T" or leak.endswith("works as")
    assert (leak in all_negatives(build(alone))) == read, "the control: what is worded like the relation"
    live = [records[0].edit, records[1].edit]
    assert leak not in all_negatives(build(alone, live=live)), "edited, but not measured"


def test_questions_and_texts_that_name_an_edited_subject_are_dropped() -> None:
    questions = ["what did mara ilves do?", "What floats?"]
    passages = ["A talk by Mara Ilves was given. It was long.", "A talk was given to the club. It was long."]
    found = build(questions=questions, text=passages)
    assert texts(negative(found, "generic")) == questions[1:]
    assert texts(negative(found, "running_text")) == passages[1:]
    assert not any("Mara" in text for text in texts(positive(found, "prefixed"))[1:])
    control = build([job("Otto Brandt")], questions=questions, text=passages)
    assert set(texts(negative(control, "generic"))) == set(questions)
    assert set(texts(negative(control, "running_text"))) == set(passages)


def test_a_text_that_asks_for_an_edit_without_a_subject_is_dropped() -> None:
    record = Record(edit=Edit(prompt="The best bakery of the town is", target="Korn's"))
    passages = ["They say the best bakery of the town is closed.", "They say the best bakery is closed."]
    found = build([record], text=passages, pool=[])
    assert texts(negative(found, "running_text")) == passages[1:]
    assert {f"negatives.{name}" for name in ("same_relation", "same_subject", "near_duplicate", "long_context")} <= set(
        found.skipped
    )


def test_a_subject_edited_twice_is_asked_for_neither() -> None:
    both = [job("Mara Ilves"), birth("Mara Ilves")]
    died = Record(edit=Edit(prompt="Ann Beck died in", target="Bonn", subject="Ann Beck"))
    found = build(both, pool=[*POOL, died])
    assert set(texts(negative(found, "same_subject"))) == {"Mara Ilves died in"}
    one = build(both[:1], pool=[*POOL, died])
    assert set(texts(negative(one, "same_subject"))) == {"Mara Ilves was born in"}, "the control"
    live = build(both[:1], live=[record.edit for record in both], pool=[*POOL, died])
    assert set(texts(negative(live, "same_subject"))) == {"Mara Ilves died in"}, "edited, but not measured"


def test_a_relation_that_the_data_asks_of_like_subjects_is_preferred() -> None:
    town = Record(edit=Edit(prompt="The river through Abdorf is the", target="Elb", subject="Abdorf"))
    found = build(pool=[*POOL, town])
    assert set(texts(negative(found, "same_subject"))) == {f"{name} was born in" for name in PEOPLE}
    strangers = build(pool=[town])
    assert "The river through Ada Korn is the" in texts(negative(strangers, "same_subject")), "the control"


def test_what_follows_from_an_edit_is_no_negative() -> None:
    query = Query(prompt="Mara Ilves was born in", answers=("Riga",))
    follows = [job("Mara Ilves", probes=(Probe(kind="portability.reasoning", queries=(query,)),))]
    assert "negatives.same_subject" in build(follows).skipped
    stays = [job("Mara Ilves", probes=(Probe(kind="locality.gold", queries=(query,)),))]
    assert texts(negative(build(stays), "same_subject")) == ["Mara Ilves was born in"]


def test_openings_of_free_text_are_no_negatives() -> None:
    record = job("Mara Ilves", generation_prompts=("Mara Ilves was born in",))
    assert "Mara Ilves was born in" not in all_negatives(build([record]))
    assert "Mara Ilves was born in" in all_negatives(build([job("Mara Ilves")])), "the control"


def test_questions_of_the_data_about_the_subject_come_before_built_ones() -> None:
    record = job("Mara Ilves", neighbours=("The gender of Mara Ilves is", "The profession of  Mara Ilves is"))
    found = build([record])
    assert texts(negative(found, "same_subject")) == ["The gender of Mara Ilves is"]
    assert "The gender of Mara Ilves is" not in texts(negative(found, "same_relation"))


def test_neighbours_of_another_relation_are_not_called_of_the_same() -> None:
    record = job("Mara Ilves", neighbours=("nq question: who sings the song of the sea",))
    assert not any("nq" in text for text in all_negatives(build([record])))


def test_the_target_is_no_other_subject() -> None:
    def twin(one: str, other: str) -> Record:
        return Record(edit=Edit(prompt=f"The twin city of {one} is", target=other, subject=one, id=one))

    found = build([twin("Aburg", "Bestadt")], pool=[twin("Bestadt", "Cedorf"), twin("Cedorf", "Aburg")])
    assert texts(negative(found, "same_relation")) == ["The twin city of Cedorf is"]
    control = build([twin("Aburg", "Dewik")], pool=[twin("Bestadt", "Cedorf"), twin("Cedorf", "Dewik")])
    assert len(texts(negative(control, "same_relation"))) == 2


def test_a_paraphrase_that_was_or_may_have_been_fitted_on_is_no_positive() -> None:
    other = Edit(prompt="Somebody rests", target="now", paraphrases=("The profession of Mara Ilves is",))
    wordings = ("The profession of Mara Ilves is", "Mara Ilves is employed as")
    records = [job("Mara Ilves", paraphrases=wordings)]
    live = [records[0].edit, other]
    assert texts(positive(build(records, live=live), "paraphrases")) == ["Mara Ilves is employed as"]
    assert len(texts(positive(build(records), "paraphrases"))) == 2, "the control"


def test_a_wording_of_two_edits_asks_for_neither_alone() -> None:
    shared = ("Mara Ilves is",)
    records = [job("Mara Ilves", paraphrases=shared), birth("Mara Ilves", paraphrases=shared)]
    found = build(records)
    assert "positives.paraphrases" in found.skipped
    assert "Mara Ilves is" not in all_negatives(found)


def test_an_edit_whose_prompt_was_edited_again_is_not_asked() -> None:
    later = Record(edit=replace(RECORDS[0].edit, target="painter", id="later"))
    found = build([*RECORDS, later])
    assert [prompt.record for prompt in positive(found, "edits").prompts][-1] == "later"
    assert RECORDS[0].edit.id not in {prompt.record for kind in found.positives for prompt in kind.prompts}
    elsewhere = build(RECORDS, live=[*(record.edit for record in RECORDS), later.edit])
    assert len(positive(elsewhere, "edits").prompts) == len(RECORDS) - 1


# -- numbers ----------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_set() -> None:
    assert build(seed=3) == build(seed=3)
    one, other = build(seed=3), build(seed=4)
    for name in ("running_text", "long_context", "multi_turn"):
        assert texts(negative(one, name)) != texts(negative(other, name)), name
    assert texts(positive(one, "edits")) == texts(positive(other, "edits"))


def test_classes_are_capped_evenly_over_the_records() -> None:
    records = [job(f"Nora{i} Beck{i}", neighbours=(f"Al{i} works as", f"Bo{i} works as")) for i in range(40)]
    found = build(records, per_class=10)
    for kind in (*found.positives, *found.negatives):
        assert len(kind.prompts) <= 10 or kind.unit == "token"
    assert len(negative(found, "running_text").prompts) == 40, "of these the tokens are counted"
    for kind in (positive(found, "edits"), negative(found, "same_relation"), negative(found, "same_subject")):
        places = [int((prompt.record or "").split("Beck")[1]) for prompt in kind.prompts]
        assert len(set(places)) == 10 and places == sorted(places)
        assert all(any(10 * q <= place < 10 * q + 10 for place in places) for q in range(4)), places
    every = negative(build(records, per_class=60), "same_relation")
    counts = Counter(prompt.record for prompt in every.prompts)
    assert len(counts) == 40 and set(counts.values()) == {1, 2}, "one of each before two of any"


@pytest.mark.parametrize("limit", [1, 50, 130, 1000])
def test_tokens_are_capped(limit: int) -> None:
    found = build(max_tokens=limit)
    for kind in found.negatives:
        if kind.unit == "token":
            assert 0 < sum(len(text.split()) for text in texts(kind)) <= limit
    assert sum(len(text.split()) for text in texts(negative(found, "running_text"))) == limit


@pytest.mark.parametrize("context", [4, 8, 24])
def test_nothing_is_longer_than_the_context(context: int) -> None:
    found = build(encoder=encoder(context), text=[" ".join(LONG)])
    for kind in (*found.positives, *found.negatives):
        assert all(len(text.split()) <= context for text in texts(kind)), kind.name
    assert sum(len(text.split()) for text in texts(negative(found, "running_text"))) == 50, "cut and not left out"
    assert len(positive(found, "edits").prompts) == len(PEOPLE)
    assert ("negatives.long_context" in found.skipped) == (context < 24)


def test_what_cannot_be_built_is_said() -> None:
    bare = [Record(edit=record.edit) for record in RECORDS]
    missing = {
        "positives.paraphrases": "the records have no paraphrases that fitting has not seen",
        "positives.free_paraphrases": "the records have no free paraphrases that fitting has not seen",
        "positives.prefixed": "there is no sentence of running text that names no edited subject, or none fits the "
        "context",
        "negatives.generic": "no generic question is left that names no edited subject",
        "negatives.same_relation": "no record has a neighbour of its own relation, and no record that was not edited "
        "shares one",
        "negatives.same_subject": "no record has a subject, or no other relation is surely apart from the edited one",
        "negatives.running_text": "no running text is left that names no edited subject",
        "negatives.long_context": "no record has a subject, no running text or no question is left, or nothing fits "
        "the context",
        "negatives.near_duplicate": "no record has a subject, or no other name is near one",
        "negatives.chat": "no generic question or neighbour fits the context in this form",
        "negatives.multi_turn": "no generic question is left that names no edited subject, or none fits the context "
        "behind another turn",
    }
    with pytest.raises(ConfigError, match="no negatives could be built") as refused:
        build(bare, pool=[], text=[], questions=[])
    assert all(why in str(refused.value) for name, why in missing.items() if name.startswith("negatives."))
    built = ("generic", "chat", "multi_turn")
    found = build(bare, pool=[], text=[], questions=["What floats?"])
    assert found.skipped == {name: why for name, why in missing.items() if name.removeprefix("negatives.") not in built}


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="no positives could be built of 0 records"):
        build([])
    lone = [Record(edit=Edit(prompt="Something is", target="odd"))]
    with pytest.raises(ConfigError, match="no negatives could be built of 1 records"):
        build(lone, pool=[], text=[], questions=[])


# -- relations and names ----------------------------------------------------------------------


def test_templates() -> None:
    assert template_of("Unrelated text. The job of Ada Korn is", "Ada Korn") == "The job of {} is"
    assert template_of("What does Ada Korn play? They play", "Ada Korn") == "What does {} play? They play"
    assert template_of("The job of J. R. Korn is", "J. R. Korn") == "The job of {} is"
    assert template_of("Nobody", "Ada") is None and template_of("Nobody", None) is None


def test_relations_that_read_the_same_are_one() -> None:
    def record(prompt: str, *paraphrases: str, relation: str | None = None) -> Record:
        edit = Edit(prompt=prompt.format("Xa"), target="t", subject="Xa")
        return Record(edit=edit, paraphrases=tuple(p.format("Xa") for p in paraphrases), relation=relation)

    father = record("Who was the dad of {}?", "Who was {}'s father?")
    parent = record("Who was {}'s father?")
    place = record("{} lies in", relation="P1")
    same_name = record("{} can be found in", relation="P1")
    other = record("{} was painted by", relation="P2")
    found = Relations([father, parent, place, same_name, other])
    assert found.of(father.edit) == found.of(parent.edit)
    assert found.of(place.edit) == found.of(same_name.edit)
    assert len({found.of(record.edit) for record in (father, place, other)}) == 3
    apart = Relations([father, place, other])
    assert apart.of(parent.edit) == apart.of(father.edit), "by the paraphrase alone"
    assert apart.of(same_name.edit) is None


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("{} was born in", "{} works as", True),
        ("The mother tongue of {} is", "The language used by {} is", False),
        ("Who was the dad of {}?", "What is the name of the mother of {}?", False),
        ("{} is located in", "The country of {} is", False),
        ("{} was born in", "{} died in", True),
        ("{}, in", "{} works as", False),  # asks nothing by itself
    ],
)
def test_questions_are_apart_only_where_they_share_no_matter(one: str, other: str, apart: bool) -> None:
    found = Relations([])
    assert found.asked_by(one).apart(found.asked_by(other)) is apart
    assert found.asked_by(other).apart(found.asked_by(one)) is apart
    assert not found.asked_by(one).apart(found.asked_by(one))
    assert topics_of("{}, in") == frozenset()


def test_nearest_names_by_a_plain_reckoning() -> None:
    names = [*PEOPLE, *OTHERS, "Mara", "Ilves, Mara"]

    def jaccard(one: str, other: str) -> float:
        first, second = ({f" {normal(n)} "[i : i + 3] for i in range(len(n))} for n in (one, other))
        return len(first & second) / len(first | second)

    for name in PEOPLE:
        found = list(Names(names).nearest(name))
        assert found, name
        best = max(jaccard(name, other) for other in names if not same_name(name, other))
        assert jaccard(name, found[0]) == best
        assert name not in found
    assert not {"Mara", "Ilves, Mara"} & set(Names(names).nearest("Mara Ilves"))


def test_prompts_are_taken_one_from_each_source_first() -> None:
    draft = Draft(name="x", about="", why_empty="", sources=[("a", ["1", "2", "3"]), ("b", ["1", "4"]), ("c", [])])
    assert choose(draft, cap=9, accept=lambda text: text != "3") == [("1", 0), ("2", 0), ("4", 1)]
    assert choose(draft, cap=2, accept=lambda text: True) == [("1", 0), ("4", 1)]


@pytest.mark.parametrize(("count", "cap"), [(40, 10), (500, 400), (7, 3), (1000, 13)])
def test_every_beginning_lies_evenly(count: int, cap: int) -> None:
    order = evenly(range(count))
    assert sorted(order) == list(range(count))
    chosen = sorted(order[:cap])
    gaps = [b - a for a, b in zip([-1, *chosen], [*chosen, count], strict=True)]
    assert max(gaps) <= 3 * count / cap


def test_mentions_say_nothing() -> None:
    found = build()
    for prompt in negative(found, "long_context").prompts:
        subject = (prompt.record or "").removeprefix("job ")
        (sentence,) = (part for part in sentences(prompt.text) if subject in part)
        assert not topics_of(sentence.replace(subject, "")) & {"works", "profession", "job", "career"}


def test_an_edit_that_is_not_live_has_no_part_in_it() -> None:
    live = [record.edit for record in RECORDS[1:]]
    found = build(live=live)
    named = {prompt.record for kind in (*found.positives, *found.negatives) for prompt in kind.prompts}
    assert RECORDS[0].edit.id not in named and RECORDS[1].edit.id in named
    with pytest.raises(ConfigError, match="no positives could be built"):
        build(live=[])


def test_pieces_of_one_text_stay_together() -> None:
    found = negative(build(encoder=encoder(8), text=[" ".join(LONG), "a short one"]), "running_text")
    clusters = [prompt.cluster for prompt in found.prompts]
    assert None not in clusters and len(set(clusters)) == 2 < len(clusters)


def test_what_fitting_may_have_seen_comes_last_among_the_same_subject() -> None:
    """Fitting keeps silent on an edit's own prompt with other subjects put in."""
    other = Edit(prompt="The birthplace of Ada Horn is", target="Riga", subject="Ada Horn")
    pool = [*POOL, Record(edit=other, paraphrases=("Ada Horn was born in",))]
    for seed in range(8):
        asked = negative(build([job("Mara Ilves"), birth("Otto Brandt")], pool=pool, seed=seed), "same_subject")
        assert "The birthplace of Mara Ilves is" in texts(asked)
        assert "Mara Ilves was born in" not in texts(asked)
