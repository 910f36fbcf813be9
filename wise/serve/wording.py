"""Tokens to text while they come: no broken character is sent, and nothing that a stop sequence may yet swallow."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

CONTEXT = 4
"""Tokens before the new ones that are decoded with them, since many tokenizers write a token by what it follows."""
BROKEN = "\ufffd"


class Wording:
    """The text of one row. `add` gives what can be sent, `end` what is left."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT:])
        self._context, self._told = 0, len(self._ids)
        self._stops = stops
        self._pending = ""
        self.stopped = False
        """A stop sequence came: nothing follows."""

    def add(self, token: int) -> str:
        """Text that is settled now that `token` came."""
        self._ids.append(token)
        before = self._decoded(self._ids[self._context : self._told])
        now = self._decoded(self._ids[self._context :])
        if now.endswith(BROKEN):  # the bytes of a character are still to come
            return ""
        self._context, self._told = max(0, self._told - 1), len(self._ids)
        return self._settled(now[len(before) :])

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        before = self._decoded(self._ids[self._context : self._told])
        rest = "" if self.stopped else self._settled(self._decoded(self._ids[self._context :])[len(before) :])
        rest += "" if self.stopped else self._pending
        self._told, self._pending = len(self._ids), ""
        return rest

    def _settled(self, new: str) -> str:
        text = self._pending + new
        ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._pending = True, ""
            return text[: min(ends)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._pending = text[len(text) - held :]
        return text[: len(text) - held]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
