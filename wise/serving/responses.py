"""OpenAI's Responses API on top of chats: its bodies, the chat that one asks for, and its answers, whole or streamed.

Nothing is stored, so a conversation is sent whole with each request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from wise.serving.answers import ChatSerializer, GeneratedAnswer, deltas_of, usage_of
from wise.serving.engines import Job
from wise.serving.event_stream import event
from wise.serving.schemas import Body, Text
from wise.serving.schemas_chat import ChatRequest, Function, NamedFunction, ToolCall
from wise.serving.schemas_completions import NOT_USED, GenerationBody, JsonSchema, Usage, Whole, WiseMetadata
from wise.serving.service import Service

LOGPROBS = "message.output_text.logprobs"
Progress = Literal["in_progress", "completed", "incomplete"]


class TextPart(Body):
    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Not offered.")
    logprobs: list[Any] | None = Field(None, description=NOT_USED)


class Item(Body):
    id: Text | None = Field(None, description=NOT_USED)
    status: Progress | None = Field(None, description=NOT_USED)


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def message(self) -> dict[str, Any]:
        return {"role": self.role, "content": _joined_text(self.content)}


class CallItem(Item):
    """A call of a function by an assistant."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text = Field(description="A JSON object.")

    def message(self) -> dict[str, Any]:
        call = {"id": self.call_id, "function": {"name": self.name, "arguments": self.arguments}}
        return {"role": "assistant", "tool_calls": [call]}


class CallOutputItem(Item):
    """The result of a called function."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | list[TextPart]

    def message(self) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": self.call_id, "content": _joined_text(self.output)}


def _joined_text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _kind(item: object) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if kind in ("function_call", "function_call_output") else "message"


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class FunctionTool(Function):
    type: Literal["function"]

    def for_chat(self) -> dict[str, Any]:
        return {"type": "function", "function": self.model_dump(exclude={"type"})}


class ChosenFunction(NamedFunction):
    type: Literal["function"]

    def for_chat(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.name}}


class TextFormat(JsonSchema):
    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="A JSON schema.")  # type: ignore[assignment]

    def for_chat(self) -> dict[str, Any]:
        schema = self.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        return {"type": self.type, "json_schema": schema if self.type == "json_schema" else None}


class TextConfig(Body):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = Field(None, description="Not offered: only its default.")


class ResponseRequest(GenerationBody):
    input: Text | Annotated[list[InputItem], Field(min_length=1)]
    instructions: Text | None = Field(None, description="A system message before `input`.")
    max_output_tokens: Whole | None = Field(None, ge=1, description="Default: what the context holds.")
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: only the first call is given.")
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    previous_response_id: Text | None = Field(None, description="Not offered: answers are not stored.")
    conversation: Any = Field(None, description="Not offered: answers are not stored.")
    n: Literal[1] | None = Field(None, description="There is one answer.")
    response_format: None = Field(None, description="Not offered: use `text.format`.")
    truncation: Literal["disabled"] | None = Field(None, description="Not offered: only `disabled`.")
    background: Literal[False] | None = Field(None, description="Not offered.")
    reasoning: None = Field(None, description="Not offered.")

    @field_validator("previous_response_id", "conversation")
    @classmethod
    def _check_stored(cls, value: object) -> None:
        if value is not None:
            raise ValueError("answers are not stored here; send the earlier turns in `input`")

    @model_validator(mode="after")
    def _check_chat(self) -> ResponseRequest:
        try:
            _ = self.chat
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
        return self

    @cached_property
    def chat(self) -> ChatRequest:
        """The chat that is asked for. Raises pydantic's ValidationError, before the request itself is valid."""
        shared = set(GenerationBody.model_fields) - {"n", "response_format", "stream_options"}
        fields = self.model_dump(include=shared, exclude_none=True)
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        for item in items:
            message = item if isinstance(item, dict) else item.message()
            if messages and "tool_calls" in message and "tool_calls" in messages[-1]:
                messages[-1]["tool_calls"] += message["tool_calls"]
            else:
                messages.append(message)
        form = self.text.format if self.text else None
        choice = self.tool_choice
        more = {
            "messages": messages,
            "max_tokens": self.max_output_tokens,
            "response_format": form and form.for_chat(),
            "tools": [tool.for_chat() for tool in self.tools or ()],
            "tool_choice": choice.for_chat() if isinstance(choice, ChosenFunction) else choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "logprobs": self.logprobs,
            "top_logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }
        return ChatRequest.model_validate(fields | more)

    @property
    def logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())


class ResponseAnswer(BaseModel):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    model: str
    status: Progress
    incomplete_details: dict[str, str] | None = None
    error: None = None
    instructions: str | None
    output: list[dict[str, Any]] = Field(description="A message, or calls of functions, or both.")
    parallel_tool_calls: bool
    tool_choice: Any
    tools: list[dict[str, Any]]
    store: Literal[False] = False
    usage: dict[str, Any] | None = None
    wise: WiseMetadata | None = None


class ResponseSerializer(ChatSerializer):
    """Writes the only answer to a request."""

    def __init__(self, service: Service, request: ResponseRequest, version: int) -> None:
        super().__init__(service, request.chat, version)
        choice, tools = request.tool_choice, request.tools or []
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid4().hex}",
            "created_at": self.head["created"],
            "model": request.model,
            "instructions": request.instructions,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "tool_choice": choice.model_dump() if isinstance(choice, ChosenFunction) else choice or "auto",
            "tools": [{"parameters": None, "strict": None} | tool.model_dump(exclude_none=True) for tool in tools],
        }
        self._message_id = f"msg_{uuid4().hex}"
        self._number = -1

    def answer(self, answers: Sequence[GeneratedAnswer], usage: Usage) -> dict[str, Any]:
        [of] = answers
        return self._answer(of, self._output(of, *self.parts(0, of)))

    async def stream(
        self, job: Job, answers: Sequence[GeneratedAnswer], on_end: Callable[[Usage], None]
    ) -> AsyncIterator[str]:
        [of] = answers
        response = ResponseAnswer(**self._head, status="in_progress", output=[]).model_dump()
        place = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        text, has_message = "", False
        calls: Sequence[ToolCall] = ()
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)
        async for delta in deltas_of(job, answers):
            more, calls = self.parts(0, delta)
            if not has_message and (more or (delta.finish and not calls)):
                has_message = True
                item = self._message("in_progress", [])
                yield self._event("response.output_item.added", output_index=0, item=item)
                yield self._event("response.content_part.added", **place, part=self._part("", None))
            if more or (has_message and delta.logprobs):
                text += more
                logprobs = self.token_logprobs(delta) or []
                yield self._event("response.output_text.delta", **place, delta=more, logprobs=logprobs)
        on_end(usage_of(answers))
        output = self._output(of, text, calls, has_message=has_message)
        for line in self._end(output, place):
            yield line
        yield await self.service.in_thread(self._last, of, output)

    def _last(self, of: GeneratedAnswer, output: list[dict[str, Any]]) -> str:
        response = self._answer(of, output)
        return self._event(f"response.{response['status']}", response=response)

    def _end(self, output: Sequence[dict[str, Any]], place: dict[str, Any]) -> Iterator[str]:
        for index, item in enumerate(output):
            if item["type"] == "message":
                [part] = item["content"]
                fields = {"text": part["text"], "logprobs": part["logprobs"] or []}
                yield self._event("response.output_text.done", **place, **fields)
                yield self._event("response.content_part.done", **place, part=part)
            else:
                added = item | {"arguments": "", "status": "in_progress"}
                yield self._event("response.output_item.added", output_index=index, item=added)
                at = {"item_id": item["id"], "output_index": index}
                yield self._event("response.function_call_arguments.delta", **at, delta=item["arguments"])
                fields = {"name": item["name"], "arguments": item["arguments"]}
                yield self._event("response.function_call_arguments.done", **at, **fields)
            yield self._event("response.output_item.done", output_index=index, item=item)

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind=kind)

    def _output(
        self, of: GeneratedAnswer, text: str, calls: Sequence[ToolCall], *, has_message: bool = False
    ) -> list[dict[str, Any]]:
        """The items of an answer. has_message: it has a message, even without text."""
        status: Progress = "completed" if of.finish == "stop" else "incomplete"
        part = self._part(text, self.token_logprobs(of))
        message = [self._message(status, [part])] if has_message or text.strip() or not calls else []
        return message + [
            {
                "type": "function_call",
                "id": f"fc_{uuid4().hex}",
                "call_id": call.id,
                "name": call.function.name,
                "arguments": call.function.arguments,
                "status": "completed",
            }
            for call in calls
        ]

    def _message(self, status: Progress, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "message", "id": self._message_id, "role": "assistant", "status": status, "content": content}

    @staticmethod
    def _part(text: str, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _answer(self, of: GeneratedAnswer, output: list[dict[str, Any]]) -> dict[str, Any]:
        counts, whole = usage_of([of]), of.finish == "stop"
        usage = {
            "input_tokens": counts.prompt_tokens,
            "output_tokens": counts.completion_tokens,
            "total_tokens": counts.total_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        return ResponseAnswer(
            **self._head,
            status="completed" if whole else "incomplete",
            incomplete_details=None if whole else {"reason": "max_output_tokens"},
            output=output,
            usage=usage,
            wise=self.metadata([of]),
        ).model_dump()
