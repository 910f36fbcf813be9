"""Tokens with which plain text may come to ask: those that can end a name, a question or a prompt.

For an engine that gets one token of each of many sequences at a time. Most of them end no name, so a look-up of
their ids saves decoding and searching the text. The ids say too much and never too little: where one may end a name,
the text is searched as ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from wise.router.sentences import CLOSING, FINAL_MARKS, QUESTION_MARKS
from wise.router.subjects import words


class Endings:
    """The tokens of a vocabulary by the word, or the part of a word, that is said with them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = [[i] for i in range(len(tokenizer))]
        self._size = len(rows)
        self._always: list[int] = []
        """Those that end a question, and those whose text depends on what stands beside them."""
        self._closing: list[int] = []
        """Those that may end a finished sentence."""
        self._whole: dict[str, list[int]] = defaultdict(list)
        self._parts: dict[str, list[int]] = defaultdict(list)
        """By a word that may go on one of the tokens before."""
        joins = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))  # spaces are taken out afterwards
        for token, text in enumerate(tokenizer.batch_decode(rows, skip_special_tokens=True)):
            if not text.isascii() or not set(text).isdisjoint(QUESTION_MARKS):
                self._always.append(token)
                continue
            if not set(text).isdisjoint(FINAL_MARKS + CLOSING):
                self._closing.append(token)
            for word in words(text):
                apart = not joins and text[: word.start][-1:].isspace()
                (self._whole if apart else self._parts)[word.text].append(token)

    def of(self, ends: Iterable[str], *, closing: bool = False) -> np.ndarray:
        """`[vocabulary + 1]` bool: the tokens with which one of these words may end. The last stands for all ids that
        the tokenizer does not know.

        ends: in lower case, as `wise.router.subjects.words` has them. closing: also those that may end a sentence.
        """
        is_end = np.zeros(self._size + 1, dtype=bool)
        is_end[[*self._always, *(self._closing if closing else ()), -1]] = True
        for word in set(ends):
            is_end[self._whole.get(word, [])] = True
            for start in range(len(word)):
                is_end[self._parts.get(word[start:], [])] = True
        return is_end


@lru_cache(maxsize=8)
def endings(tokenizer: PreTrainedTokenizerBase) -> Endings:
    """Made once for a tokenizer."""
    return Endings(tokenizer)
