"""However a text is cut into forward passes, each of its tokens is routed the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from chats import EDITS, TEMPLATE, TURNS
from followed import Answers, answer_router, answer_state
from hypothesis import given
from hypothesis import strategies as st
from tiny import EOS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

import wise
from wise.memory.sequences import SequenceReader, TokenRows
from wise.memory.side_memory import NO_SLOT
from wise.memory.slot import AnswerBank, make_bank
from wise.router.chat_template import conversation_ids
from wise.router.course import Course
from wise.router.hybrid import WINDOW

NESTED = (
    [[70, 71, EOS], [70, 60, 61, 62, 72, 50, 51, 52, 9, EOS]],
    [[72, EOS], [72, 50, 51, 52, 70, 60, 61, 62, 9, EOS]],
)
"""Answers in whose middle the other edit's question is asked, and its answer begun."""
PARTS = ([50, 51, 52], [60, 61, 62], [70, 60, 61, 62], [72, 50, 51, 52], [70], [72], [9], [EOS], [33])


class Reads(nn.Module):
    """What a sequence reader needs of a model."""

    def forward(self, input_ids: torch.Tensor) -> None: ...


class Routed:
    """A router in the place where it stands in a model."""

    def __init__(
        self,
        template: str | None,
        tokenizer: Any = None,
        edits: Sequence[wise.Edit] = EDITS,
        answers: Answers = NESTED,
    ) -> None:
        state = answer_state(edits, answers)
        self.sequences = SequenceReader(Reads())
        self.router = answer_router(state, template, tokenizer, self.sequences)
        bank = make_bank(state.slots, torch.float32)
        assert isinstance(bank, AnswerBank)
        self.bank = bank

    def __call__(self, ids: Sequence[int], cuts: Sequence[int]) -> dict[int, tuple[int, list[float]]]:
        """By position, the slot that is active and what is added, in forward passes that end at `cuts` and at the
        end."""
        row, found = np.array(ids, dtype=np.int64), {}
        for first, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            size = end - first
            with self.sequences.showing(TokenRows(ids=(row[:end],), places=(np.arange(size),), size=size)):
                route = self.router(torch.zeros(size, 1), self.bank)
            for place in np.flatnonzero(route.open & (route.slot >= 0)):
                assert route.delta is not None
                found[first + int(place)] = int(route.slot[place]), route.delta[place].tolist()
        return found


@pytest.fixture(scope="module", params=[TEMPLATE, None], ids=["chat", "plain"])
def routed(request: pytest.FixtureRequest) -> Routed:
    return Routed(request.param)


@given(data=st.data())
def test_a_text_is_routed_the_same_however_it_is_cut(routed: Routed, data: st.DataObject) -> None:
    """Also one that is a chat from its middle on."""
    template = routed.router.inputs.template
    turns = [] if template is None else [[*template.opening], [*template.header], [*template.header]]
    drawn = data.draw(st.lists(st.sampled_from([*PARTS, *turns]), min_size=1, max_size=12))
    ids = [i for part in drawn for i in part]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(ids) - 1)), max_size=4)) - {len(ids)})
    whole = routed(ids, ())
    assert routed(ids, cuts) == whole
    assert routed(ids, range(1, len(ids))) == whole
    assert sorted(whole) == [*routed.router.active(ids)]
    course, followed = Course(routed.router), dict[int, int]()
    for first, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        followed |= {p: d.slot for p, d, value in course.read(np.array(ids[:end]), first) if value != NO_SLOT}
    assert followed == {place: slot for place, (slot, _) in whole.items()}


def test_in_these_texts_answers_ask_for_edits_themselves() -> None:
    """Or nothing would be tested."""
    routed = Routed(None)
    (_, first), (_, second) = NESTED
    slots = {place: slot for place, (slot, _) in routed([50, 51, 52, *first[:-1]], ()).items() if place >= 2}
    assert slots == dict.fromkeys(range(2, 2 + len(first)), 0), "the whole answer, and nothing within it"
    within = [33, *first[1:4]]
    assert routed(within, ())[3][0] == 1 and len(second) > 4, "by itself it asks for the other edit"


@pytest.mark.parametrize("answers", [[[], [70, 9, EOS]], [[70, EOS], []]], ids=["completion", "chat"])
def test_an_edit_is_silent_in_a_form_in_which_it_has_no_answer(answers: list[list[int]]) -> None:
    routed = Routed(TEMPLATE, edits=EDITS[:1], answers=[answers])
    chat, plain = conversation_ids(routed.router.inputs.tokenizer, TURNS), [50, 51, 52]
    active = [bool(found[0]) for found in ([routed(ids, ()), routed(ids, range(1, len(ids)))] for ids in (chat, plain))]
    assert active == [bool(answer) for answer in answers]


def by_letters() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each of a few letters."""
    letters = sorted({*"vwxzWX .\"0123456789"})
    model = models.WordLevel({letter: i for i, letter in enumerate(["?", *letters])}, unk_token="?")
    cutting = Tokenizer(model)
    cutting.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    cutting.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=cutting, unk_token="?", clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def finished() -> tuple[Any, Routed]:
    """A tokenizer, and two edits that are asked for by finished sentences."""
    tokenizer = by_letters()
    edits = [
        wise.Edit(id="short", prompt="x w50.", target="z9", subject="w50"),
        wise.Edit(id="long", prompt="w50 zx v. x w50.", target="v", subject="w50"),
    ]
    answers = [[tokenizer(text)["input_ids"]] * 2 for text in (" z9", " v")]
    return tokenizer, Routed(None, tokenizer, edits, answers)


@given(parts=st.lists(st.sampled_from(["x w50.", "w50 zx v.", " ", " z9", " v", "x", ".", "zz w50", '"']), max_size=9))
def test_a_finished_sentence_is_heard_however_it_is_cut(finished: tuple[Any, Routed], parts: list[str]) -> None:
    tokenizer, routed = finished
    ids = tokenizer("x" + "".join(parts))["input_ids"]
    whole = routed(ids, ())
    assert routed(ids, range(1, len(ids))) == whole == routed(ids, [len(ids) // 2] if len(ids) > 1 else ())
    course, followed = Course(routed.router), set[int]()
    for end in range(1, len(ids) + 1):
        followed |= {place for place, _, value in course.read(np.array(ids[:end]), end - 1) if value != NO_SLOT}
    assert sorted(followed) == sorted(whole)


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("x w50.", 0),
        ("zz. X W50. ", 0),
        ("w50 zx v. x w50.", 1),  # that of the longest text
        ("w50 zx z. x w50.", 0),  # another sentence before it
        ("zz. w50 zx v. x w50.", 1),
        ("zz w50 zx v. x w50.", 0),  # the longest text begins within a sentence
        ("x w50", None),
        ("z x w50.", None),  # not in the edit's own words
        ("x zz w50.", None),
        ("w50 zx v.", None),
    ],
)
def test_a_finished_sentence_asks_in_the_very_words_of_an_edit(
    finished: tuple[Any, Routed], text: str, slot: int | None
) -> None:
    tokenizer, routed = finished
    ids = tokenizer(text)["input_ids"]
    for head in ("", "z. " * WINDOW):
        row = [*tokenizer(head)["input_ids"], *ids]
        assert routed(row, ()).get(len(row) - 1, (None,))[0] == slot


def test_of_a_finished_sentence_that_is_longer_than_what_is_read_the_end_is_compared() -> None:
    tokenizer = by_letters()
    text = "w50 zx " + "z" * (2 * WINDOW) + ". x w50."
    routed = Routed(None, tokenizer, [wise.Edit(id="long", prompt=text, target="v", subject="w50")], [[[1], [1]]])
    ids = tokenizer(text)["input_ids"]
    whole = routed(ids, ())
    assert len(ids) - 1 in whole and routed(ids, range(1, len(ids))) == whole
    assert not routed(tokenizer("x w50.")["input_ids"], ()), "the end alone"


def test_a_name_that_begins_at_the_edge_of_what_is_read_is_one_only_if_it_is_a_word() -> None:
    tokenizer = by_letters()
    routed = Routed(None, tokenizer)

    def active(head: str, length: int) -> list[int]:
        """length: of a text that asks for an edit, which stands behind the head and before a text that asks again."""
        rest = "w50 " + "z" * (length - 12) + " w51 w52"
        ids = tokenizer(f"{head}{rest} w60 w61 w62")["input_ids"]
        found = [sorted(routed(ids, cuts)) for cuts in ((), range(1, len(ids)))]
        assert found[0] == found[1]
        return [place for place in found[0] if place < len(head) + len(rest)]

    assert active(" ", WINDOW - 8), "so it would be answered"
    assert not active("x", WINDOW - 8), "another name"
    assert not active("x", WINDOW), "the same, of which only the end is read"
