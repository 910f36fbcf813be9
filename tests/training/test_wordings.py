"""What an edit keeps of its question, and which other questions about its subject it is verified with."""

from __future__ import annotations

import pytest
import torch
from tiny import WordReader, tiny_tokenizer

import wise
from wise.router.catalog import masked_keys, own_keys
from wise.router.relations import rivals
from wise.training.encoding import Encoder
from wise.training.router.calibration import relation_kinds
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
    reader.relation_centres, reader.relation_kinds = reader.read(CENTRES), relation_kinds(STOCK)
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


@pytest.mark.parametrize("paraphrases", [("Where lies Bree?",) * 2, ("Bree lies in", "Where lies Bree?")])
def test_a_text_that_is_given_twice_is_one_key(paraphrases: tuple[str, ...]) -> None:
    given = edit("Gondor", paraphrases=paraphrases)
    keys = wordings().keys(given)
    assert len(keys) == 5 and torch.equal(own_keys(keys, given), keys[1:4]), "without the centre of the relation"


def test_what_is_asked_in_a_conversation_is_no_question_by_itself() -> None:
    made = wordings()
    conversation = edit("Gondor", messages=[{"role": "user", "content": "And where does it lie?"}])
    keys = made.keys(conversation)
    whole, last = made.reader.read(["Bree lies in", "And where does it lie?"])
    assert torch.equal(keys[0], whole) and torch.equal(own_keys(keys, conversation)[-1], last)


def test_sister_questions_are_of_the_other_relations_of_the_kind_in_the_form_of_the_edits_own() -> None:
    made = wordings()
    assert made.sisters(edit("Gondor")) == (["the river of Bree is"], []), "not that of another kind, and not its own"
    asked = wise.Edit(prompt="Bree lies in ?", target="Gondor", subject="Bree")
    assert made.sisters(asked) == (["Which river is near Bree?"], [])
    assert made.sisters(wise.Edit(prompt="Who bakes?", target="me")) == ([], []), "it names no subject"
    far = wise.Edit(prompt="Bree smells of", target="onions", subject="Bree")
    assert made.sisters(far) == ([], []), "no relation is near, so nothing says what may be asked about its subject"


def test_a_relation_that_may_be_what_the_edit_asks_is_no_rival() -> None:
    reader = wordings().reader
    one, other = reader.read(["this lies in", "this lies in Gondor."]), reader.read(CENTRES[:1])
    assert rivals(one, reader).tolist() == [1]
    reader.relation_centres = torch.cat([other, other, reader.relation_centres[1:]])
    reader.relation_kinds = torch.tensor([0, 0, 0, 1])
    assert rivals(one, reader).tolist() == [2]
    reader.relation_kinds = torch.tensor([0, 0, 1, 1])
    assert rivals(one, reader).tolist() == []
