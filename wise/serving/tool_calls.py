"""Calls of tools in the text of an answer: as Hermes and Qwen write them, and as one bare JSON object.

An answer in another form stays text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any
from uuid import uuid4

from wise.serving.engines.sequence import overlap
from wise.serving.schemas_chat import FunctionCall, Tool, ToolCall

OPENING, CLOSING = "<tool_call>", "</tool_call>"
DECODER = json.JSONDecoder()


class ToolCallParser:
    """Separates the calls of one answer from its text, as it comes."""

    def __init__(self, names: Collection[str]) -> None:
        """names: of the functions that may be called. With none everything is text."""
        self._names = names
        self._has_text = False
        """Whether the answer has text that is not blank."""
        self._pending = ""
        """Text that is, or may become, a call."""

    def add(self, text: str) -> str:
        """Takes more text of the answer; returns the part that certainly belongs to no call."""
        if not self._names:
            return text
        self._pending += text
        if not self._has_text and (not self._pending.strip() or self._pending.lstrip().startswith("{")):
            return ""
        at = self._pending.find(OPENING)
        at = len(self._pending) - overlap(self._pending, OPENING) if at < 0 else at
        final, self._pending = self._pending[:at], self._pending[at:]
        self._has_text = self._has_text or bool(final.strip())
        return final

    def end(self) -> tuple[str, list[ToolCall]]:
        """The rest of the text, and the calls."""
        calls = self._calls(self._pending.strip())
        return ("", calls) if calls else (self._pending, [])

    def _calls(self, text: str) -> list[ToolCall]:
        """The calls that a text consists of; none if it has other content."""
        calls = []
        while text:
            text = text.removeprefix(OPENING).lstrip()
            try:
                value, end = DECODER.raw_decode(text)
            except ValueError:
                return []
            call = self._call(value)
            if call is None:
                return []
            calls.append(call)
            text = text[end:].lstrip().removeprefix(CLOSING).lstrip()
        return calls

    def _call(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        function = FunctionCall(name=value["name"], arguments=json.dumps(arguments, ensure_ascii=False))
        return ToolCall(id=f"call_{uuid4().hex[:24]}", function=function)


def call_schema(tools: Sequence[Tool]) -> str:
    """The JSON schema of a call of one of the tools, as JSON."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": _moved_schema(
                    tool.function.parameters or {"type": "object"}, f"/anyOf/{i}/properties/arguments"
                ),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, tool in enumerate(tools)
    ]
    return json.dumps({"anyOf": calls})


def _moved_schema(schema: Any, place: str) -> Any:
    """A schema whose references to itself stay valid at `place` of another schema."""
    if isinstance(schema, list):
        return [_moved_schema(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: f"#{place}{value[1:]}" if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved_schema(value, place)
        for name, value in schema.items()
    }
