"""JSON schemas as grammars that say which tokens may come next, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wise.errors import ConfigError
from wise.serving.engines import EngineError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

CACHE_SIZE = 64
"""Compiled schemas that are cached."""
OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""One space where people write one, since a small model that may write more blanks can write them without end. An
unsupported keyword is refused."""


class Matcher:
    """Follows one answer through a grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed(self, width: int) -> Tensor:
        """`[width]` bool: the tokens that may come next; the logits' width may exceed the vocabulary. Raises
        EngineError if the grammar is too complex at this point."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise EngineError(f"the answer cannot go on within its JSON schema: {self._matcher.get_error()}")
        bits = np.unpackbits(mask, bitorder="little", count=min(width, 8 * len(mask))).astype(bool)
        return torch.from_numpy(np.pad(bits, (0, width - len(bits))))

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)


class Grammars:
    """Compiles JSON schemas for one tokenizer. Several threads may use it, also the event loop's: a request for a
    compiled schema does not wait while another schema is compiled, which may take seconds."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        """ends: the tokens at which an answer ends."""
        self._tokenizer, self._ends = tokenizer, sorted(ends)
        self._compiled = lru_cache(CACHE_SIZE)(self._compile)

    def matcher(self, schema: str) -> Matcher:
        """A matcher at the beginning of an answer. The first call takes a second. Raises ConfigError for an unsupported
        schema."""
        return Matcher(self._compiled(schema).deep_copy())

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        import llguidance.hf

        tokenizer: Any = self._tokenizer
        return llguidance.hf.from_tokenizer(tokenizer, eos_token=self._ends)

    def _compile(self, schema: str) -> LLMatcher:
        try:
            import llguidance
        except ImportError as error:
            raise ConfigError("JSON schemas need llguidance; install wise with the extra `serve`") from error
        try:
            vocabulary = self._vocabulary
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.loads(schema), overrides=OPTIONS)
        except ValueError as error:
            raise ConfigError(f"this JSON schema is not supported: {error}") from error
        compiled = llguidance.LLMatcher(vocabulary, grammar, log_level=0)
        if compiled.is_error():
            raise ConfigError(f"this JSON schema is not supported: {compiled.get_error()}")
        return compiled
