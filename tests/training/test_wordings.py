"""What an edit keeps of its question, and which other questions it says that it answers too."""

from __future__ import annotations

import torch
from tiny import WordReader, tiny_tokenizer

import wise
from wise.router.catalog import masked_keys, own_keys
from wise.training.encoding import Encoder
from wise.training.router.examples import stated
from wise.training.wordings import Wordings

STOCK = {
    "subjects": {"place": ["Bree", "Moria"], "thing": ["bread"]},
    "place": {
        "realm": {"wordings": ["{} lies in", "Which realm is {} in?"], "answers": ["Gondor"]},
        "river": {"wordings": ["the river of {} is", "Which river is near {}?"], "answers": ["Anduin"]},
    },
    "thing": {"maker": {"wordings": ["{} lies in the hands of", "Who bakes {}?"]}},
}
CENTRES = ("this lies in Gondor.", "this lies by the Anduin.", "who bakes this?")


def wordings() -> Wordings:
    reader = WordReader()
    reader.relation_centres = reader.read(CENTRES)
    encoder = Encoder(tokenizer=tiny_tokenizer(), bos=(), terminator=(), stops=frozenset({1}), context=64)
    return Wordings(encoder, reader, STOCK)


def edit(target: str, **more: object) -> wise.Edit:
    return wise.Edit(prompt="Bree lies in", target=target, subject="Bree", **more)  # type: ignore[arg-type]


def test_the_answer_chooses_between_relations_that_the_question_fits_alike() -> None:
    made = wordings()
    assert set(made.texts(edit("Gondor"))) == {"Bree lies in", "Which realm is Bree in?"}
    assert set(made.texts(edit("by the Anduin"))) == {"the river of Bree is", "Which river is near Bree?"}
    assert made.texts(wise.Edit(prompt="Who bakes?", target="me")) == [], "it names no subject"


def test_an_edit_keeps_its_question_with_its_answer_and_the_centre_of_its_relation() -> None:
    made = wordings()
    whole, asked, statement, relation = made.keys(edit("Gondor"))
    read = made.reader.read(["Bree lies in", "this lies in", stated("this lies in", "Gondor"), CENTRES[0]])
    assert torch.equal(torch.stack([whole, asked, statement, relation]), read)
    keys = made.keys(edit("Gondor", paraphrases=("Where lies Bree?",)))
    assert len(keys) == 5 and torch.equal(masked_keys(keys, ["Bree"]), keys[1:])
    assert torch.equal(own_keys(keys, edit("Gondor", paraphrases=("Where lies Bree?",))), keys[1:4])
    assert len(made.keys(wise.Edit(prompt="Who bakes?", target="me"))) == 1


def test_other_questions_of_the_kind_that_come_near_are_told_until_they_are_listed_as_locality() -> None:
    made = wordings()
    keys = made.keys(edit("Gondor"))
    near = float((masked_keys(keys, ["Bree"]) @ made.reader.relation_centres[1]).max())
    assert made.also_answers(edit("Gondor"), keys, near - 0.01) == ("Which river is near Bree?",)
    assert made.also_answers(edit("Gondor"), keys, near + 0.01) == ()
    assert made.also_answers(wise.Edit(prompt="Who bakes?", target="me"), keys, 0.0) == ()
    apart = edit("Gondor", locality=("Bree lies by the Anduin.",))
    assert made.also_answers(apart, keys, made.threshold(apart, keys)) == ()
