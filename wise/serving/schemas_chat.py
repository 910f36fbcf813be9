"""The bodies of chats as OpenAI's clients send and read them: messages, tools, answers; and those of tokenizing."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, model_validator

from wise.serving.schemas import Body, Name, Text
from wise.serving.schemas_completions import NOT_USED, Answer, Choice, GenerationBody, TokenId, Whole

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class ContentPart(Body):
    type: Literal["text"]
    text: Text


class FunctionCall(Body):
    name: Text
    arguments: Text = Field(description="A JSON object.")


class ToolCall(Body):
    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="`developer` means `system`.")
    content: Text | list[ContentPart] | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = Field(None, description="What an assistant called.")
    tool_call_id: Text | None = Field(None, description="The call whose result a tool's message is.")
    refusal: None = Field(None, description="Not offered; clients send back what they received.")
    audio: None = Field(None, description="Not offered.")
    function_call: None = Field(None, description="Not offered: use tool_calls.")
    annotations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Not offered.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("content: null was given: a text was expected, or tool_calls of an assistant")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls: were given by {self.role!r}: only an assistant calls tools")
        for call in self.tool_calls or ():
            _arguments(call)
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        more: dict[str, Any] = {"name": self.name, "tool_call_id": self.tool_call_id} if self.role == "tool" else {}
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _arguments(call)}}
            for call in self.tool_calls or ()
        ]
        more |= {"tool_calls": calls}
        return message | {name: value for name, value in more.items() if value}


def _arguments(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        text = f"{call.function.arguments!r:.80}"
        raise ValueError(f"tool_calls: the arguments {text} were given: a JSON object was expected")
    return arguments


class Function(Body):
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of the arguments.")
    strict: bool | None = Field(None, description=NOT_USED)


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: FunctionName


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(GenerationBody):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Whole | None = Field(None, ge=1, description="Tokens of an answer; default: what the context holds.")
    max_completion_tokens: Whole | None = Field(None, ge=1, description="The same, by its newer name.")
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = Field(
        None, description="Functions that the model may call; passed to its chat template."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="`required`, or a function, makes the answer a call, by a grammar; default: `auto`."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: only the first call is given.")
    modalities: list[Literal["text"]] | None = Field(None, description="There is one.")
    verbosity: Literal["medium"] | None = Field(None, description="Not offered: only its default.")
    reasoning_effort: Literal["none"] | None = Field(None, description="Not offered: only `none`.")
    functions: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Not offered: use tools.")
    function_call: Literal["none"] | None = Field(None, description="Not offered: use tool_choice.")
    audio: None = Field(None, description="Not offered.")
    prediction: None = Field(None, description="Not offered.")
    web_search_options: None = Field(None, description="Not offered.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: goes with logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: is max_completion_tokens by an older name; give one of them")
        choice = self.tool_choice
        if choice not in (None, "none", "auto") and not self.forced:
            name = choice.function.name if isinstance(choice, NamedTool) else choice
            raise ValueError(f"tool_choice: {name!r} was given, and it is not among tools")
        if self.forced and self.response_format is not None and self.response_format.type != "text":
            raise ValueError("response_format: goes with a tool_choice of 'none' or 'auto'")
        return self

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model is given."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def forced(self) -> list[Tool]:
        """The tools of which the answer must call one; empty if it need not."""
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools or [] if tool.function.name == self.tool_choice.function.name]
        return self.offered if self.tool_choice == "required" else []


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Choice):
    message: ChatMessage


class ChatCompletion(Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


# -- tokenizing -------------------------------------------------------------------------------------


class TokenizeRequest(Body):
    """A text, or messages, as vLLM takes them."""

    model: Name | None = Field(None, description=NOT_USED)
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = Field(True, description="Of a text: begin as the model's texts begin.")
    add_generation_prompt: Literal[True] = Field(True, description="Of messages: only true.")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either a prompt or messages")
        return self


class TokenizeAnswer(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Body):
    model: Name | None = Field(None, description=NOT_USED)
    tokens: list[TokenId]


class DetokenizeAnswer(BaseModel):
    prompt: str
