"""Prompts as turns of a conversation, in the form in which the base was taught to read them."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from wise.training.encoding import Encoder

TEMPLATE_FORM = "the tokenizer's chat template, up to where the answer begins"
PLAIN_FORM = 'lines "User: ..." and "Assistant: ...", since the tokenizer has no chat template that takes plain turns'


class Conversation:
    """Writes turns in the tokenizer's chat template, or, where it has none, as lines of a dialogue.

    The encoder reads such a text as the ids that `wise.router.turns.render` gives for the same turns.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._tokenizer: Any = encoder.tokenizer
        self._templated = bool(getattr(self._tokenizer, "chat_template", None))
        if self._templated:
            try:
                self._template("a", "b", "c")
            except (TemplateError, ValueError, TypeError, KeyError):
                self._templated = False

    @property
    def about(self) -> str:
        """The form in words."""
        return TEMPLATE_FORM if self._templated else PLAIN_FORM

    def text(self, *turns: str) -> str:
        """`turns`, the user's and the model's by turns, the user's first and last, ready to be answered."""
        return self._template(*turns) if self._templated else _plain(*turns)

    def _template(self, *turns: str) -> str:
        messages = [{"role": "assistant" if place % 2 else "user", "content": turn} for place, turn in enumerate(turns)]
        text = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        bos = self._tokenizer.bos_token
        # A template often writes the beginning of sequence that the encoder puts there as well.
        if bos and text.startswith(bos) and self._encoder.prompt(text)[:2] == [self._tokenizer.bos_token_id] * 2:
            text = text.removeprefix(bos)
        return text


def _plain(*turns: str) -> str:
    lines = [f"{'Assistant' if place % 2 else 'User'}: {turn}" for place, turn in enumerate(turns)]
    return "\n".join([*lines, "Assistant:"])
