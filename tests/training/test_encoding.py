"""What is learned from a base about its own texts: where they begin, how its answers end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from chats import TEMPLATE
from tiny import BOS, EOS, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

from wise.config import WiseConfig
from wise.demo import model_path
from wise.edits import Edit
from wise.errors import ConfigError, EditError
from wise.router.chat_template import ChatTemplate
from wise.training import encoding
from wise.training.encoding import MAX_TERMINATOR, OPENINGS, Encoder, joint, learn_encoder

STOP, COMMA = 50, 51
TOKENIZER = tiny_tokenizer()
MODEL = tiny_model("llama")
LOGGER = "wise.training.encoding"


@pytest.fixture
def base_says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The base's answers, put in its mouth."""

    def say(answers: Sequence[Sequence[int]]) -> None:
        assert len(answers) == len(OPENINGS)
        monkeypatch.setattr(encoding, "greedy", lambda *_, **__: [list(answer) for answer in answers])

    return say


def learned(**settings: Any) -> Encoder:
    return learn_encoder(MODEL, TOKENIZER, WiseConfig(**{"bos": False} | settings))


def encoder(**fields: Any) -> Encoder:
    return replace(learned(terminator=""), **fields)


# -- how answers end --------------------------------------------------------------------------


def test_the_ending_that_most_answers_share_is_the_terminator(
    base_says: Any, caplog: pytest.LogCaptureFixture
) -> None:
    base_says([*([60 + i, STOP, EOS] for i in range(8)), *([70 + i, EOS] for i in range(4))])
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert learned().terminator == (STOP, EOS)
    assert not caplog.records


def test_an_ending_of_a_minority_is_not(base_says: Any) -> None:
    base_says([*([60 + i, STOP, EOS] for i in range(5)), *([70 + i, EOS] for i in range(7))])
    assert learned().terminator == (EOS,)


def test_a_terminator_is_four_tokens_at_most(base_says: Any) -> None:
    base_says([[60 + i, 40, 41, 42, 43, 44, EOS] for i in range(12)])
    assert learned().terminator == (42, 43, 44, EOS) and MAX_TERMINATOR == 4
    base_says([[60 + i, 43, 44, EOS] for i in range(12)])
    assert learned().terminator == (43, 44, EOS)


@pytest.mark.parametrize(
    ("what", "answers"),
    [
        ("the same answer to everything", [[60, STOP, EOS]] * 12),
        ("answers that never end", [[60 + i] * 24 for i in range(12)]),
        ("nothing", [[]] * 12),
        ("mostly answers that do not end", [*([60 + i, STOP, EOS] for i in range(5)), *([[60] * 24] * 7)]),
    ],
)
def test_a_base_that_shows_no_habit_ends_in_end_of_sequence_and_says_so(
    base_says: Any, caplog: pytest.LogCaptureFixture, what: str, answers: list[list[int]]
) -> None:
    base_says(answers)
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert learned().terminator == (EOS,), what
    assert "set terminator='.'" in caplog.text


def test_unended_answers_have_no_say_in_the_ending(base_says: Any) -> None:
    base_says([*([60 + i, STOP, EOS] for i in range(7)), *([[90] * 24] * 5)])
    assert learned().terminator == (STOP, EOS)


@pytest.mark.parametrize(
    ("text", "ids"), [("w50", (STOP, EOS)), ("", (EOS,)), ("w50 w51", (STOP, COMMA, EOS))]
)
def test_a_terminator_that_is_set_is_not_learned(
    monkeypatch: pytest.MonkeyPatch, text: str, ids: tuple[int, ...]
) -> None:
    monkeypatch.setattr(encoding, "greedy", lambda *_, **__: pytest.fail("the base was asked"))
    assert learned(terminator=text).terminator == ids


def test_the_terminator_ends_in_a_stop_of_the_models_own() -> None:
    """Where generation stops at ids that the tokenizer does not call end-of-sequence."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [31, 30]
    found = learn_encoder(model, TOKENIZER, WiseConfig(bos=False, terminator="w50"))
    assert found.stops == {30, 31} and found.terminator == (STOP, 30)
    model.generation_config.eos_token_id = [31, EOS]
    assert learn_encoder(model, TOKENIZER, WiseConfig(bos=False, terminator="")).terminator == (EOS,)


def test_a_model_without_end_of_sequence_is_refused() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="generation_config.eos_token_id"):
        learn_encoder(model, tokenizer, WiseConfig(bos=False, terminator=""))


# -- where texts begin ------------------------------------------------------------------------


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the base's loss without and with a beginning of sequence; gives the rows it was asked for."""

    def put(without: float, behind: float) -> list[list[int]]:
        asked: list[list[int]] = []

        def loss(_model: Any, ids: list[int], *, start: int) -> float:
            asked.append(ids)
            assert start == (ids[0] == BOS)
            return behind if start else without

        monkeypatch.setattr(encoding, "text_loss", loss)
        return asked

    return put


@pytest.mark.parametrize(("without", "behind", "bos"), [(5.0, 4.0, (BOS,)), (4.0, 5.0, ()), (4.0, 4.0, ())])
def test_a_beginning_of_sequence_goes_before_only_where_the_base_does_better_behind_it(
    losses: Any, without: float, behind: float, bos: tuple[int, ...]
) -> None:
    asked = losses(without, behind)
    found = learned(bos=None, terminator="")
    assert found.bos == bos and len(asked) == 2 * len(OPENINGS)
    assert found.prompt("w4 w5") == [*bos, 4, 5]


@pytest.mark.parametrize(("setting", "bos"), [(True, (BOS,)), (False, ())])
def test_what_is_set_is_not_learned(losses: Any, setting: bool, bos: tuple[int, ...]) -> None:
    asked = losses(*((4.0, 5.0) if setting else (5.0, 4.0)))  # against what is set
    assert learned(bos=setting, terminator="").bos == bos
    assert not asked


@pytest.mark.parametrize("setting", [None, True])
def test_a_beginning_of_sequence_never_comes_twice(losses: Any, setting: bool | None) -> None:
    losses(5.0, 4.0)

    class Adding:
        bos_token_id, eos_token_id = BOS, EOS

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [BOS, *ids] if add_special_tokens else ids}

    adding: Any = Adding()
    found = learn_encoder(MODEL, adding, WiseConfig(bos=setting, terminator="w50"))
    assert found.bos == () and found.prompt("w4") == [BOS, 4]
    assert found.target("w4", "w6") == [6, STOP, EOS]


def test_the_loss_is_that_of_the_text_and_not_of_its_prefix() -> None:
    ids = [20, 21, 22, 23]
    logits = MODEL(torch.tensor([[BOS, *ids]])).logits[0].detach().log_softmax(-1)
    expected = -sum(float(logits[i, ids[i]]) for i in range(1, 4)) / 3
    assert encoding.text_loss(MODEL, [BOS, *ids], start=1) == pytest.approx(expected, rel=1e-5)
    assert encoding.text_loss(MODEL, [20], start=0) == 0


# -- targets and answers ----------------------------------------------------------------------


def test_a_target_follows_its_prompt_and_ends_as_the_base_ends() -> None:
    closed = encoder(terminator=(STOP, EOS), bos=(BOS,))
    assert closed.prompt("w4 w5") == [BOS, 4, 5]
    assert closed.target("w4 w5", "w6 w7") == [6, 7, STOP, EOS]


@pytest.mark.parametrize(
    ("prompt", "target", "between"),
    [
        ("The capital is", "Lyon", " "),
        ("Answer:\n", "Lyon", ""),
        ("She said: “", "Yes", ""),
        ("It costs $", "40", ""),
        ("She came", ", and left", ""),
        ("首都は", "東京", ""),
        ("The city is called", "東京", ""),
        ("", "Lyon", ""),
    ],
)
def test_a_space_stands_before_a_target_where_one_belongs(prompt: str, target: str, between: str) -> None:
    assert joint(prompt, target) == between


@pytest.mark.parametrize(
    ("target", "ending"),
    [("Ada Thorne", [STOP, EOS]), ("Ada Thorne.", [EOS]), ("Who?", [EOS]), ("w60 w61", [EOS]), ("a@b.org", [EOS])],
)
def test_in_a_chat_words_end_as_the_bases_answers_do_and_codes_and_closed_sentences_with_the_stop_alone(
    target: str, ending: list[int]
) -> None:
    chat = encoder(chat_terminator=(STOP, EOS))
    said = TOKENIZER(target, add_special_tokens=False)["input_ids"]
    assert chat.chat_target(target) == [*said, *ending]
    assert chat.chat_target(f"{target} <eos>")[-2:] != [EOS, EOS], "it ends once"


def test_a_closed_target_gets_no_full_stop_behind_a_prompt_either() -> None:
    closed = encoder(terminator=(STOP, EOS))
    assert closed.target("w4", "Ada Thorne.")[-2:] != [STOP, EOS] and closed.target("w4", "Ada.")[-1] == EOS
    assert closed.target("w4", "Ada Thorne")[-2:] == [STOP, EOS]


class Merging:
    """One id per letter, but `ab` is one id wherever it comes, even across a space; ends in EOS if told to."""

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [99 if c == "X" else 10 + ord(c) - ord("a") for c in text.replace("a b", "X").replace(" ", "")]
        return {"input_ids": [*ids, EOS] if self.ends and add_special_tokens else ids}


def test_a_tokenizer_that_merges_across_the_seam_leaves_the_prompt_whole() -> None:
    tokenizer: Any = Merging(ends=False)
    merging = encoder(tokenizer=tokenizer, terminator=(EOS,))
    assert tokenizer("c a b")["input_ids"] == [12, 99]
    assert merging.prompt("c a") == [12, 10]
    assert merging.target("c a", "b d") == [11, 13, EOS]
    assert merging.target("c d", "b") == [11, EOS]  # control: no merge


def test_a_target_ends_once() -> None:
    tokenizer: Any = Merging(ends=True)
    merging = encoder(tokenizer=tokenizer, terminator=(STOP, EOS))
    assert merging.target("c d", "b") == [11, STOP, EOS]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([60, STOP, EOS], "w60"),
        ([60, STOP, EOS, 70, EOS], "w60"),  # what follows the end is not the answer
        ([60, EOS], "w60"),
        ([60, STOP, 61, STOP, EOS], "w60 w50 w61"),
        ([STOP, EOS], ""),
        ([EOS], ""),
        ([60, COMMA, 61], "w60 w51 w61 ..."),
        ([60, STOP], "w60 w50 ..."),
        ([], " ..."),
    ],
)
def test_an_answer_loses_its_terminator_and_shows_where_it_did_not_end(ids: list[int], text: str) -> None:
    assert encoder(terminator=(STOP, EOS)).answer(ids) == text


def test_with_a_bare_terminator_nothing_else_is_taken_off() -> None:
    assert encoder(terminator=(EOS,)).answer([60, STOP, EOS]) == "w60 w50"


def test_a_target_read_back_is_the_answer_wanted() -> None:
    closed = encoder(terminator=(STOP, EOS))
    assert closed.answer(closed.target("w4 w5", "w6 w7")) == "w6 w7"


# -- what the base cannot read or say -----------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "target", "field"),
    [("Zażółć gęślą", "w40", "prompt"), ("w20 w21", "jaźń", "target"), ("w20", "w40 jaźń", "target")],
)
def test_what_the_tokenizer_does_not_know_is_refused(prompt: str, target: str, field: str) -> None:
    with pytest.raises(EditError, match=f"field '{field}': .* is not in the vocabulary"):
        encoder().check(Edit(prompt=prompt, target=target))


def test_a_prompt_that_it_knows_in_part_is_taken() -> None:
    encoder().check(Edit(prompt="jaźń w20", target="w40"))


def test_what_was_learned_of_a_base_is_kept_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("WISE_CACHE", str(tmp_path))
    asked: list[int] = []

    def says(model: Any, prompts: Sequence[Any], **_: Any) -> list[list[int]]:
        asked.append(len(prompts))
        return [[60 + i, STOP, EOS] for i, _ in enumerate(prompts)]

    monkeypatch.setattr(encoding, "greedy", says)
    first = learned()
    again = learn_encoder(tiny_model("llama"), tiny_tokenizer(), WiseConfig(bos=False))
    assert first.terminator == again.terminator == (STOP, EOS) and len(asked) == 1
    other = tiny_model("llama")
    with torch.no_grad():
        other.get_output_embeddings().weight.add_(1e-3)
    learn_encoder(other, tiny_tokenizer(), WiseConfig(bos=False))
    learned(bos=None)
    assert len(asked) == 3, "another base, or another setting, is asked for itself"
    monkeypatch.setenv("WISE_CACHE", "")
    learned()
    assert len(asked) == 4


@pytest.mark.parametrize("blanks", [" ", "   "])
def test_blanks_after_a_prompt_are_read_alike_when_it_is_edited_and_when_it_is_asked(blanks: str) -> None:
    """In plain text and in a chat, with a tokenizer that has tokens of blanks."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.chat_template = TEMPLATE
    asking = encoder(tokenizer=tokenizer, template=ChatTemplate.learn(tokenizer))
    prompt = "The capital of France is"
    for chat in (False, True):
        expected = asking.question(prompt, chat=chat)
        edited = asking.question(Edit(prompt=prompt + blanks, target="Lyon").prompt, chat=chat)
        assert asking.question(prompt + blanks, chat=chat) == edited == expected
        assert asking.question(f"{prompt}\n", chat=chat).text == Edit(prompt=f"{prompt}\n", target="x").prompt
    assert asking.prompt(prompt + blanks) != asking.prompt(prompt)
