"""The text and the bytes of single tokens, for all spellings of tokenizers."""

from __future__ import annotations

import re
from functools import lru_cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How tokenizers with a fallback to bytes spell one."""
SPACE = "\u2581"
"""How the tokenizers of SentencePiece spell a space."""


class TokenText:
    """Spells the tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        by_byte = "ByteLevel" in str(getattr(backend, "decoder", ""))
        characters: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
        self._bytes = {character: byte for byte, character in characters.items()} if by_byte else None
        self._special = frozenset(tokenizer.all_special_ids)
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self.longest = max(map(len, tokenizer.get_vocab()))
        """Characters of the longest token: no text has fewer tokens than its length divided by this."""
        self.bytes = lru_cache(65_536)(self._bytes_of)

    def is_special(self, token: int) -> bool:
        """Whether a token is no part of an answer's text."""
        return token in self._special

    def text(self, token: int) -> str:
        """Its text; where it is a part of a character, its bytes as OpenAI writes them (`bytes:\\xe2\\x82`)."""
        content = self.bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _bytes_of(self, token: int) -> bytes:
        spelling = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(spelling, str):
            return b""  # models have more rows than their tokenizers have tokens
        if token in self._added or token in self._special:
            return spelling.encode()
        if self._bytes is not None:
            return bytes(self._bytes[character] for character in spelling if character in self._bytes)
        if match := BYTE.fullmatch(spelling):
            return bytes([int(match[1], 16)])
        if SPACE in spelling:
            return spelling.replace(SPACE, " ").encode()
        return str(self._tokenizer.decode([token])).encode()
