"""An edit of a base with a chat template holds in chats and in plain texts; its report says so, wording by wording."""

from __future__ import annotations

from threading import Thread

import pytest
from test_turns import TEMPLATE
from tiny import WordReader, tiny_model, tiny_tokenizer

import wise
from wise.memory.slot import CHAT, COMPLETION
from wise.router.turns import render
from wise.training.generation import greedy


def chat_model() -> wise.WiseModel:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config = wise.WiseConfig(layer=1, terminator="w9")
    return wise.wrap(tiny_model("llama"), tokenizer, config, reader=WordReader())


EDITS = [
    wise.Edit(prompt="w50 w51 w52", target="w70 w71", subject="w50"),
    wise.Edit(prompt="w60 w61 w62", target="w72", subject="w60", paraphrases=("w61 w60 w62",)),
]


def answer(model: wise.WiseModel, question: str, *, system: str = "") -> list[int]:
    messages = [{"role": "system", "content": system}] if system else []
    prompt = render(model.tokenizer, [*messages, {"role": "user", "content": question}])
    (said,) = greedy(model.model, [prompt], stops=model.encoder.stops, max_new_tokens=6)
    return said


def test_an_edit_holds_in_every_form_that_it_promises() -> None:
    model = chat_model()
    report = model.edit(EDITS)
    assert [outcome.status for outcome in report.outcomes] == ["verified", "verified"], report
    first, second = (set(outcome.holds) for outcome in report.outcomes)
    assert {"chat: prompt", "chat: later turn", "chat: system message", "completion: prompt"} <= first
    assert {"chat: paraphrases[0]", "completion: paraphrases[0]"} <= second
    assert answer(model, "w50 w51 w52")[:2] == [70, 71] == answer(model, "w50 w51 w52", system="w33")[:2]
    assert model.ask("w50 w51 w52")[0].text.startswith("w70 w71")
    slot = model.state.slots[0]
    assert [len(ids) for _, ids in slot.answers] == slot.counts.tolist() and {CHAT, COMPLETION} == {0, 1}


def test_what_does_not_name_the_subject_is_the_base_to_the_bit() -> None:
    model = chat_model()
    questions = ["w51 w52", "w40 w51 w52", "w33"]
    before = [answer(model, question) for question in questions]
    model.edit(EDITS)
    assert [answer(model, question) for question in questions] == before
    assert answer(model, "w50 w51 w52") != before[0]


def test_another_question_about_the_subject_is_left_alone() -> None:
    model = chat_model()
    before = answer(model, "w50 w80 w81 w82 w83")
    model.edit(EDITS)
    assert answer(model, "w50 w80 w81 w82 w83") == before


def test_an_edit_that_would_answer_its_own_locality_is_not_verified() -> None:
    model = chat_model()
    report = model.edit(wise.Edit(prompt="w50 w51 w52", target="w70", subject="w50", locality=("w51 w50 w52",)))
    assert report.outcomes[0].status == "failed" and report.outcomes[0].holds["locality[0]"] is False


def test_messages_are_the_conversation_that_is_edited() -> None:
    model = chat_model()
    messages = [{"role": "system", "content": "w33"}, {"role": "user", "content": "w50 w51 w52"}]
    report = model.edit(wise.Edit(messages=messages, target="w70", subject="w50"))
    assert report.outcomes[0].status == "verified", report.outcomes[0]
    assert answer(model, "w50 w51 w52", system="w33")[0] == 70


def test_threads_say_what_one_says_alone_while_another_edits() -> None:
    model = chat_model()
    model.edit(EDITS)
    questions = ["w50 w51 w52", "w60 w61 w62", "w33 w34", "w50 w80 w81 w82 w83"]
    alone = [answer(model, question) for question in questions]
    heard: dict[int, list[list[int]]] = {i: [] for i in range(len(questions))}

    def ask(i: int) -> None:
        heard[i] += [answer(model, questions[i]) for _ in range(4)]

    threads = [Thread(target=ask, args=(i,)) for i in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {i: [said] * 4 for i, said in enumerate(alone)}


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "robot", "content": "x"}], "x"])
def test_bad_messages_are_refused(messages: object) -> None:
    with pytest.raises(wise.EditError):
        wise.Edit(messages=messages, target="w70")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "ending"),
    [
        ([[7, 8, 2], [9, 10, 2], [5], [6], [6], [6]], (2,)),  # two answers that have nothing but their end in common
        ([[7, 11, 2], [9, 11, 2], [5], [6], [6], [6]], (11, 2)),
        ([[7, 11, 2], [7, 11, 2], [5], [6], [6], [6]], (2,)),  # one answer, twice
    ],
)
def test_how_chat_answers_end_is_what_different_answers_share(
    answers: list[list[int]], ending: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wise.training.encoding.greedy", lambda *_, **__: answers)
    model = chat_model()
    assert model.encoder.chat_terminator == ending
    assert model.encoder.chat_target("w70")[1:] == list(ending[-1:]), "a code gets no full stop"
