"""An edit of a base with a chat template holds in chats and in plain texts; its report says so, wording by wording."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, get_ident
from typing import Any

import pytest
import torch
from chats import EDITS, TEMPLATE, TURNS, chat_model
from followed import answer_router, answer_state
from tiny import EOS, PAD

import wise
from wise.edits import Message
from wise.memory.modules import hooked
from wise.memory.slot import CHAT, COMPLETION
from wise.router.chat_template import conversation_ids
from wise.router.hybrid import HybridRouter
from wise.training.generation import greedy

REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}{% endfor %}" + TEMPLATE
)


def answer(model: wise.WiseModel, question: str, *, system: str = "") -> list[int]:
    messages = [{"role": "system", "content": system}] if system else []
    prompt = conversation_ids(model.tokenizer, [*messages, {"role": "user", "content": question}])
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
    assert [model.ask("w50 w51 w52", chat=chat)[0].text for chat in (None, True, False)] == ["w70 w71"] * 3
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


CONVERSATION = [
    {"role": "user", "content": "w50 w51"},
    {"role": "assistant", "content": "w34"},
    {"role": "user", "content": "w7 w8"},
]
WHOLE = wise.Edit(messages=CONVERSATION, prompt="w50 w7 w8", subject="w50", target="w70")


def test_a_question_that_refers_back_is_edited_in_its_conversation_alone() -> None:
    model = chat_model()
    with pytest.raises(wise.EditError, match="'messages': the last one, 'w7 w8', refers to what was said before"):
        model.edit(wise.Edit(messages=CONVERSATION, target="w70"))
    chats = [CONVERSATION, [{"role": "user", "content": "w60"}, *CONVERSATION[1:]], CONVERSATION[2:]]
    before = [answer.text for answer in model.ask(chats)]
    assert model.edit(WHOLE).outcomes[0].status == "verified"
    assert [answer.text for answer in model.ask(chats)] == ["w70", *before[1:]] != before


def test_an_edit_that_loses_its_conversation_to_another_one_is_not_kept() -> None:
    model = chat_model()
    assert model.edit(WHOLE).outcomes[0].status == "verified"
    longer = wise.Edit(prompt="w50 w51 w80 w81 w82", subject="w50 w51", target="w71")
    assert model.edit(longer).dropped == (WHOLE.id,) and model.state.edit_ids == (longer.id,)


@pytest.mark.parametrize(
    ("turns", "active"),
    [
        (["w50", "w7 w8"], True),
        (["w50", "w80", "w7 w8"], False),
        (["w80", "w50", "w7 w8"], True),
        (["w50", "w9", "w7 w8"], True),
        (["w80", "w7 w8"], False),
        (["hello", "w7 w8"], True),  # the assistant alone names one
    ],
)
def test_a_question_that_refers_back_is_about_the_last_subject_of_the_user(turns: list[str], active: bool) -> None:
    router = answer_router(answer_state([wise.Edit(prompt="w50 w7 w8", subject="w50", target="w70 w71")]))
    *earlier, last = [{"role": "user", "content": text} for text in turns]
    said = {"role": "assistant", "content": "w50"}
    ids = conversation_ids(router.inputs.tokenizer, [*(turn for user in earlier for turn in (user, said)), last])
    assert router.decided(ids).open is active


def test_threads_say_what_one_says_alone_while_another_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask while the base is measured, and while edits are verified of which one fails."""
    model = chat_model()
    model.edit(EDITS)
    new = [
        wise.Edit(prompt="w85 w86 w87", target="w73", subject="w85"),
        wise.Edit(prompt="w90 w91 w92", target="w74", subject="w90", locality=("w91 w90 w92",)),
    ]
    questions = ["w50 w51 w52", "w60 w61 w62", "w33 w34", "w50 w80 w81 w82 w83", *(edit.prompt for edit in new)]
    heard: list[list[list[int]]] = []

    def listen(done: int = 1) -> None:
        if done:  # the steps before are many
            with ThreadPoolExecutor(len(questions)) as threads:
                heard.append(list(threads.map(lambda question: answer(model, question), questions)))

    before = [answer(model, question) for question in questions]
    build = wise.model.build_trainer
    monkeypatch.setattr("wise.model.build_trainer", lambda *a, **k: (listen(), build(*a, **k))[1])
    model.use_workers(None)  # the trainer is built again
    report = model.edit(new, progress=listen)
    assert [outcome.status for outcome in report.outcomes] == ["verified", "failed"]
    assert len(heard) > 3 and all(each == before for each in heard)
    listen()
    after = [answer(model, question) for question in questions]
    assert heard[-1] == after and after[4][0] == 73 and after[:4] + after[5:] == before[:4] + before[5:]


def test_what_two_threads_edit_at_once_is_live_alike() -> None:
    model = chat_model()
    questions = [edit.prompt for edit in EDITS]
    before = [answer(model, question) for question in questions]
    heard = []
    with ThreadPoolExecutor(2) as threads:
        edits = [threads.submit(model.edit, edit) for edit in EDITS]
        while not all(edit.done() for edit in edits):
            heard.append([answer(model, question) for question in questions])
    assert [edit.result().outcomes[0].status for edit in edits] == ["verified", "verified"]
    assert {edit.id for edit in model.edits} == {edit.id for edit in EDITS}
    after = [answer(model, question) for question in questions]
    assert heard and all(said in pair for each in heard for said, *pair in zip(each, before, after, strict=True))


def test_an_ask_and_what_another_thread_generates_meanwhile_leave_each_other_alone() -> None:
    model, own = chat_model(), get_ident()
    model.edit(EDITS)
    settings = model.model.generation_config
    settings.max_new_tokens = 3
    ids = torch.tensor([model.encoder.question("w33 w34").ids])
    mask = torch.ones_like(ids)

    def use() -> Any:
        out, routes = model.generate(ids, attention_mask=mask, pad_token_id=PAD, return_routes=True)
        return out.tolist(), routes, model.ask("w60 w61 w62")

    alone, used = model.ask("w50 w51 w52"), use()
    heard = []

    def meanwhile(*_: object) -> None:
        if get_ident() == own:
            with ThreadPoolExecutor(1) as thread:
                heard.append(thread.submit(use).result())

    with hooked([(model.model.base_model.norm, meanwhile)]):
        assert model.ask("w50 w51 w52") == alone
    assert len(heard) > 1 and all(each == used for each in heard)
    assert model.model.generation_config is settings


def test_a_model_in_training_is_in_evaluation_mode_until_the_last_of_several_threads_has_asked() -> None:
    model = chat_model()
    model.train()
    asks, asked = Event(), Event()

    def ask() -> None:
        with model.evaluating():
            asks.set()
            asked.wait()
            assert not any(module.training for module in model.model.modules())

    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(KeyError), model.evaluating():  # entered first and left first
            other = thread.submit(ask)
            asks.wait()
            raise KeyError
        asked.set()
        other.result()
    assert all(module.training for module in model.model.modules())


def test_a_template_that_takes_no_system_message_is_edited_without_one() -> None:
    model = chat_model(REFUSING)
    report = model.edit(EDITS)
    assert [outcome.status for outcome in report.outcomes] == ["verified", "verified"]
    assert "chat: later turn" in report.outcomes[0].holds and "chat: system message" not in report.outcomes[0].holds
    conversation = wise.Edit(messages=[{"role": "system", "content": "w33"}, *TURNS[-1:]], target="w71", id="new")
    for refuse in (lambda: model.edit(conversation), lambda: model.validate([conversation])):
        with pytest.raises(wise.EditError, match="'messages': the chat template .* refuses messages of system, user"):
            refuse()
    assert model.edits == tuple(EDITS)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": [{**TURNS[0], "content": "w33 " * 120}, *TURNS[1:]], "subject": "w50"}, "'messages': with the"),
        ({"prompt": "w33 " * 123}, "'target': with the prompt it takes"),
        ({"prompt": "w50", "paraphrases": ("w33 " * 123,)}, r"'target': with paraphrases\[0\] it takes"),
    ],
)
def test_an_edit_that_the_context_does_not_hold_in_a_chat_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(wise.EditError, match=said):
        chat_model().edit(wise.Edit(target="w70", **fields))


def test_a_listed_paraphrase_whose_answer_begins_otherwise_has_a_verdict() -> None:
    edit = wise.Edit(prompt="w60 w61 w62", target="w72", subject="w60", paraphrases=("w61 w60 =",))
    (outcome,) = chat_model(None).edit(edit).outcomes
    assert outcome.holds["completion: prompt"] and not outcome.holds["completion: paraphrases[0]"]
    assert outcome.status == "failed"


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


# -- asking ---------------------------------------------------------------------------------------

PLAIN = ("<bos>", "w50", "w51", "w52")


def read(answer: wise.Answer) -> tuple[str, ...]:
    """The tokens of its prompt."""
    return answer.tokens[: answer.prompt_tokens]


def rendered(model: wise.WiseModel, messages: list[dict[str, str]]) -> tuple[str, ...]:
    return tuple(model.tokenizer.convert_ids_to_tokens(conversation_ids(model.tokenizer, messages)))


def test_a_text_is_asked_as_a_turn_of_a_chat_unless_plain_text_is_asked_for() -> None:
    model = chat_model()
    turn = rendered(model, TURNS[-1:])
    asked = {chat: model.ask("w50 w51 w52", chat=chat)[0] for chat in (None, True, False)}
    assert read(asked[None]) == read(asked[True]) == turn and read(asked[False]) == PLAIN != turn
    assert {answer.prompt for answer in asked.values()} == {"w50 w51 w52"}
    without = chat_model(None)
    assert read(without.ask("w50 w51 w52")[0]) == read(without.ask("w50 w51 w52", chat=False)[0]) == PLAIN


def test_a_conversation_is_asked_as_it_is() -> None:
    model = chat_model()
    whole = rendered(model, TURNS)
    messages = tuple(Message(**message) for message in TURNS)
    for prompts in (TURNS, [TURNS], messages, [messages]):
        (answer,) = model.ask(prompts)  # type: ignore[arg-type]
        assert (read(answer), answer.prompt) == (whole, "w50 w51 w52")
    text, conversation = model.ask(["w50 w51 w52", TURNS])  # type: ignore[list-item]
    assert read(text) == rendered(model, TURNS[-1:]) != read(conversation) == whole


@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_modes_whose_edits_promise_no_chat_ask_plain_text_unless_a_chat_is_asked_for(mode: str) -> None:
    model = chat_model(mode=mode)
    assert read(model.ask("w50 w51 w52")[0]) == PLAIN
    assert read(model.ask("w50 w51 w52", chat=True)[0]) == rendered(model, TURNS[-1:])
    assert read(model.ask(TURNS)[0]) == rendered(model, TURNS)
    edit = wise.Edit(messages=TURNS, target="w70")
    assert model.encoder.own_prompt(edit) == "w50 w51 w52", "as it is verified"
    assert chat_model().encoder.own_prompt(edit) == edit.messages


def test_an_answer_is_shown_without_what_ends_it_in_its_form() -> None:
    encoder = replace(chat_model().encoder, terminator=(9, EOS), chat_terminator=(11, EOS))
    in_chat, plain = [70, 11, EOS], [70, 9, EOS]
    assert encoder.answer(in_chat, chat=True) == encoder.answer(plain) == "w70"
    assert (encoder.answer(in_chat), encoder.answer(plain, chat=True)) == ("w70 w11", "w70 w9")


def test_so_is_the_answer_that_an_edit_was_verified_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wise.training.encoding._WORDS", re.compile(".*"))  # so that its answer gets the full stop
    model = chat_model()
    model.encoder = replace(model.encoder, chat_terminator=(11, EOS))
    (outcome,) = model.edit(EDITS[0]).outcomes
    (answer,) = model.ask("w50 w51 w52")
    assert (outcome.status, outcome.answer, answer.text) == ("verified", "w70 w71", "w70 w71")
    assert answer.tokens[answer.prompt_tokens :] == ("w70", "w71", "w11", "<eos>")


@pytest.mark.parametrize("asked", [{"prompts": "w50 w51 w52", "chat": True}, {"prompts": TURNS}])
def test_a_base_without_a_template_asks_no_chat(asked: dict[str, Any]) -> None:
    with pytest.raises(wise.ConfigError, match="no chat template .* ask plain texts"):
        chat_model(None).ask(**asked)
    assert chat_model().ask(**asked)


@pytest.mark.parametrize(
    ("prompt", "error", "said"),
    [
        (TURNS[:2], wise.EditError, "the user's question"),
        ([], wise.EditError, "empty conversation"),
        ([*TURNS, "w4"], wise.EditError, r"messages\[3\]"),
        ([{"role": "user"}], wise.EditError, r"messages\[0\]"),
        (5, wise.EditError, "int 5 was given"),
    ],
)
def test_a_conversation_that_is_none_is_refused(prompt: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        chat_model().ask([prompt])


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    model = chat_model()
    (answer,) = model.ask("w33 " * 126, chat=False)
    assert len(answer.tokens) == model.encoder.context == 128
    with pytest.raises(wise.ConfigError, match="takes 128 tokens, .* holds 128"):
        model.ask(["w33", "w33 " * 127], chat=False)


def test_a_conversation_is_no_plain_text_and_its_template_may_refuse_it() -> None:
    with pytest.raises(wise.ConfigError, match="chat=False"):
        chat_model().ask(TURNS, chat=False)
    model = chat_model(REFUSING)
    assert model.ask(TURNS)
    with pytest.raises(wise.ConfigError, match="refuses messages of system, user .none"):
        model.ask([{"role": "system", "content": "w33"}, *TURNS[-1:]])


@pytest.mark.parametrize(
    ("template", "threshold", "active"), [(TEMPLATE, 0.5, True), (TEMPLATE, 0.98, False), (None, 0.98, True)]
)
def test_a_sentence_is_held_to_ask_less_often_where_there_are_chats(
    template: str | None, threshold: float, active: bool
) -> None:
    model = chat_model(template)
    model.edit(EDITS)
    assert model.inputs is not None
    model.inputs.reader.sentence_threshold = threshold
    router = HybridRouter(model.state, model.inputs)
    assert bool(router.active(model.encoder.prompt("w53 w50 w51 w52"))) is active


def test_what_names_an_edited_subject_does_not_ask_about_another_one() -> None:
    model = chat_model()
    other = wise.Edit(prompt="w80 w90 w91 w92 w93", target="w73", subject="w80")
    nameless = wise.Edit(prompt="w5 w6 w7", target="w74")
    model.edit([EDITS[0], other, nameless])
    assert model.inputs is not None
    model.inputs.reader.unnamed_threshold = 0.5
    router = HybridRouter(model.state, model.inputs)
    found = [router.decide(text) for text in ("w81 w51 w52", "w80 w51 w52", "w80 w5 w6 w7")]
    assert [(each.open, each.slot) for each in found if each.slot != 1 or each.open] == [(True, 0), (True, 2)]


def test_what_names_another_subject_in_place_of_the_edits_own_does_not_ask_for_it() -> None:
    model = chat_model()
    model.edit(wise.Edit(prompt="w5 w6 w7 w8 w80", target="w73", subject="w80"))
    assert model.inputs is not None
    model.inputs.reader.unnamed_threshold = 0.5
    router = HybridRouter(model.state, model.inputs)
    asked = ("w5 w6 w7 w8 w80", "w5 w6 w7 w8 w9", "w5 w6 w7 w8 Paris")
    assert [router.decide(text).open for text in asked] == [True, True, False]
