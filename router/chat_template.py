"""Chat templates: a conversation as ids, and where the turns of a chat stand in ids.

`ChatTemplate` depends on the ids up to a token alone, so it does not matter how a sequence is cut into forward passes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from wise.memory.sequences import Ids

NEVER = sys.maxsize
"""A position that no text reaches."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The ids that a tokenizer's chat template puts around a user's text."""

    header: tuple[int, ...]
    """Before the text."""
    opening: tuple[int, ...]
    """After the text, up to where the answer begins."""
    system: tuple[int, ...] = ()
    """Before a system message that begins a chat; empty where a chat begins as plain text does."""

    @classmethod
    def learn(cls, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
        """None if the tokenizer has no template, or one that shows no fixed ids around a turn."""
        if not getattr(tokenizer, "chat_template", None):
            return None
        probes = _probes(tokenizer)
        try:
            before = [user_turn(probes[0]), {"role": "assistant", "content": probes[1]}]
            first = [conversation_ids(tokenizer, [user_turn(text)]) for text in probes]
            later = [conversation_ids(tokenizer, [*before, user_turn(text)]) for text in probes]
        except Exception:  # a template raises what it likes where it does not take such turns
            return None
        opening = commonprefix([row[::-1] for row in (*first, *later)])[::-1]
        ahead = [list(commonprefix(rows))[::-1] for rows in (first, later)]
        header = commonprefix(ahead)[::-1]
        if not header or not opening:
            return None
        return cls(header=tuple(header), opening=tuple(opening), system=_system_header(tokenizer, probes))

    def start(self, ids: Ids) -> int:
        """The position from which on these are a chat: that of the last token of its first header, opening or system
        part; NEVER if they hold none. A chat that is cut before its first opening is one too."""
        ends = [_ends(ids, part, 0)[:1] for part in (self.header, self.opening, self.system) if part]
        return min((end for places in ends for end in places), default=NEVER)

    def openings(self, ids: Ids, start: int) -> list[int]:
        """The last tokens of the openings that end at `start` or later, ascending."""
        return _ends(ids, self.opening, start)

    def question(self, ids: Ids, end: int) -> tuple[int, int]:
        """The user's text before the opening that ends at `end`: the first token, and the one after the last."""
        stop = end + 1 - len(self.opening)
        headers = _ends(ids[:stop], self.header, 0)
        return (headers[-1] + 1 if headers else 0), stop


def _system_header(tokenizer: PreTrainedTokenizerBase, probes: Sequence[str]) -> tuple[int, ...]:
    """The ids before a system message, or today's date in front of it; none where a chat begins as plain text does."""
    rows = []
    for text, today in zip(probes, ("31 December 1999", "Saturday, 2000-01-01", "2/1/2000"), strict=False):
        # A template cannot be given functions. Jinja takes out the line that holds the macro.
        dated = f"{{% macro strftime_now(format) %}}{today}{{% endmacro %}}\n{tokenizer.get_chat_template()}"
        try:
            messages = [{"role": "system", "content": text}, user_turn(text)]
            rows.append(conversation_ids(tokenizer, messages, template=dated))
        except Exception:  # a template raises what it likes where it does not take such turns
            return ()
    ahead, plain = (commonprefix(each) for each in (rows, [tokenizer(text)["input_ids"] for text in probes]))
    return () if ahead == plain[: len(ahead)] else tuple(ahead)


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    template: str | None = None,
) -> list[int]:
    """Ids of a conversation up to where the next answer begins.

    tools: JSON schemas of functions. template: None is the tokenizer's own.
    """
    return [int(i) for i in _templated(tokenizer, messages, tools, tokenize=True, chat_template=template)]


def conversation_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The text of which `conversation_ids` gives the ids."""
    return str(_templated(tokenizer, messages, tools, tokenize=False))


def _templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    **how: Any,
) -> Any:
    given: dict[str, Any] = {"tools": [dict(tool) for tool in tools] or None, "return_dict": False}
    chat = [dict(message) for message in messages]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, **given, **how)


def user_turn(text: str) -> dict[str, str]:
    """A text as a user's message."""
    return {"role": "user", "content": text}


def _probes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that neither begin nor end alike for this tokenizer."""
    plain = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    texts = ["Alpha", "Is it so?", "Seven 7", *(str(tokenizer.decode([i])) for i in plain[len(plain) // 2 :][:64])]
    probes: list[list[int]] = []
    candidates = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        is_usable = ids and tokenizer.unk_token_id not in ids and text.strip()
        if is_usable and all(ids[0] != other[0] and ids[-1] != other[-1] for other in probes):
            probes.append(ids)
            candidates.append(text)
    return candidates[:3]


def _ends(ids: Ids, pattern: Sequence[int], start: int) -> list[int]:
    """The last tokens of a pattern wherever it ends at `start` or later, ascending."""
    low = max(start, len(pattern) - 1)
    places = np.flatnonzero(ids[low:] == pattern[-1]) + low
    for back, token in enumerate(reversed(pattern)):
        places = places[ids[places - back] == token]
    return [int(end) for end in places]
