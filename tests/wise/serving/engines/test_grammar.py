"""Schemas that are compiled, for many requests at once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from wise.demo import model_path
from wise.errors import ConfigError
from wise.serving.engines import grammar
from wise.serving.engines.grammar import Grammars

LONG = 60.0
COMPILED, SLOW = '{"type": "object"}', '{"type": "string"}'


def test_nobody_waits_for_the_schema_of_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop asks for compiled schemas, and could answer no request while it waits."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    grammars, compiling, goes_on = Grammars(tokenizer, [tokenizer.eos_token_id]), threading.Event(), threading.Event()
    grammars.matcher(COMPILED)

    def loads(text: str) -> Any:
        if text == SLOW:
            compiling.set()
            assert goes_on.wait(LONG)
        return json.loads(text)

    monkeypatch.setattr(grammar, "json", SimpleNamespace(loads=loads))
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(grammars.matcher, SLOW)
        assert compiling.wait(LONG)
        try:
            assert not threads.submit(grammars.matcher, COMPILED).result(LONG).complete
            assert not slow.done(), "the control: this one does wait"
        finally:
            goes_on.set()
        assert not slow.result(LONG).complete


def test_a_schema_that_is_not_supported_is_refused_each_time() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    grammars = Grammars(tokenizer, [tokenizer.eos_token_id])
    for _ in range(2):
        with pytest.raises(ConfigError, match="not supported"):
            grammars.matcher('{"type": "something"}')
