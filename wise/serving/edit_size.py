"""The limits of an edit's size, checked when it is submitted and again before it is trained."""

from __future__ import annotations

from wise.edits import Edit, texts_of
from wise.errors import EditError
from wise.serving.settings import Settings
from wise.training.encoding import Encoder


def check_size(edit: Edit, encoder: Encoder, settings: Settings) -> None:
    """Raises EditError, naming the field, for an edit that is larger than `settings` allow."""

    def count(text: str) -> int:
        return len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])

    limit = settings.edit_characters
    for name, text in texts_of(edit):
        if len(text) > limit:  # before any text is tokenized
            raise EditError(f"field {name!r}: it has {len(text)} characters and edit_characters={limit}; shorten it")
    target, limit, total = count(edit.target), settings.target_tokens, 0
    if target > limit:
        raise EditError(f"field 'target': it has {target} tokens and target_tokens={limit}; shorten it")
    for name, text in texts_of(edit):
        if name != "target":
            total += count(text) + (target if name.startswith(("prompt", "paraphrases")) else 0)
        if total > settings.edit_tokens:
            raise EditError(
                f"field {name!r}: up to it the texts of the edit have {total} tokens, each wording with the target, "
                f"and edit_tokens={settings.edit_tokens}; give fewer or shorter ones"
            )
