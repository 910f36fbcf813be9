"""A router over two edits that were put together by hand, for tests that run no model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from chats import EDITS, TEMPLATE
from tiny import EOS, WordReader, text, tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from wise.edits import Edit
from wise.memory.sequences import SequenceReader
from wise.memory.slot import AnswerSlot
from wise.memory.state import MemoryState
from wise.router.chat_template import ChatTemplate
from wise.router.hybrid import HybridRouter, RouterInputs
from wise.router.subjects import PLACEHOLDER

Answers = Sequence[list[list[int]]]
SAID: Answers = ([[70, 71, EOS], [70, 71, 9, EOS]], [[72, EOS], [72, 9, EOS]])
"""Of each edit the ids of its answer in a chat, and in plain text."""
WIDTH = 8
"""d"""


def answer_state(edits: Sequence[Edit] = EDITS, answers: Answers = SAID) -> MemoryState:
    """The edits, at most two, each with random values."""
    generator, reader = torch.Generator().manual_seed(0), WordReader()
    slots, keys = [], {}
    for i, (edit, said) in enumerate(zip(edits, answers, strict=False)):
        ids = [token for form in said for token in form]
        slots.append(
            AnswerSlot(
                id=i,
                edit_ids=(edit.id,),
                scores=(reader.threshold,),
                values=torch.randn(len(ids), WIDTH, generator=generator),
                ids=torch.tensor(ids),
                counts=torch.tensor([len(form) for form in said]),
                features=WIDTH,
            )
        )
        asked = f"{PLACEHOLDER} {edit.prompt.split(' ', 1)[1]}"
        keys[edit.id] = reader.read([edit.prompt, asked, f"{asked} {text(said[0][:-1])}"]).half()
    return MemoryState(edits=tuple(edits), slots=tuple(slots), keys=keys, key_space=reader.key_space)


def answer_router(
    state: MemoryState,
    template: str | None = TEMPLATE,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sequences: SequenceReader | None = None,
) -> HybridRouter:
    """template: of the tokenizer's chats; tokenizer: left out, one of few words. sequences: of a model, if it is one of
    transformers."""
    tokenizer = copy(tokenizer) if tokenizer is not None else tiny_tokenizer()
    tokenizer.chat_template = template
    learned = ChatTemplate.learn(tokenizer)
    inputs = RouterInputs(sequences=sequences, tokenizer=tokenizer, template=learned, reader=WordReader())
    return HybridRouter(state, inputs)
