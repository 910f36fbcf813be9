"""The bodies of requests and answers: completions as OpenAI's clients send and read them, edits, versions, events."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    Tag,
)
from pydantic_core import CoreSchema

from wise.edits import Edit
from wise.memory.store.edit_request import Event, Ticket, Version


def _check_characters(text: str) -> str:
    """JSON can hold half a surrogate pair, which no tokenizer takes, and NUL, which no database does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from None
    if "\0" in text:
        raise ValueError(f"character {text.index(chr(0))} is NUL")
    return text


MAX_TURNS = 64
Text = Annotated[str, AfterValidator(_check_characters)]
Name = Annotated[Text, StringConstraints(max_length=256)]
Stop = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]
Prompt = Annotated[Text, StringConstraints(min_length=1)]
Prompts = Annotated[list[Prompt], Field(max_length=64)]
Reason = Annotated[Text, StringConstraints(min_length=1, max_length=2_000)]
Instant = Annotated[Text, Field(description="ISO 8601; UTC if it names no zone.", max_length=64)]
Wait = Literal["ticket", "live"]
Status = Literal["queued", "training", "live", "failed", "retired"]


def _end_at_first_error(schema: Any) -> None:
    """Makes all lists within a schema end at their first error."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _end_at_first_error(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _end_at_first_error(part)


class Body(BaseModel):
    """Refuses unknown fields: a mistyped one would be ignored silently. Of a list the first error is enough: a list of
    a million would make a million errors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _end_at_first_error(schema)
        return schema


# -- completions and chats --------------------------------------------------------------------------


class WiseOptions(Body):
    """What is not OpenAI's, under `wise`."""

    routes: bool = Field(False, description="Report the route of every token, and not only where an edit is active.")
    deadline: float | None = Field(
        None, gt=0, description="Seconds that this request may take, if less than `request_timeout`."
    )


class StreamOptions(Body):
    include_usage: bool = False


class GenerationBody(Body):
    """What completions and chats have in common."""

    model: Name = Field(description="The model's name; `NAME@NAMESPACE` answers with the edits of that namespace.")
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, description="Answers to each prompt.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="Not used.")
    wise: WiseOptions | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0, description="Not offered: only 0.")
    frequency_penalty: float | None = Field(None, ge=0, le=0, description="Not offered: only 0.")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def options(self) -> WiseOptions:
        return self.wise or WiseOptions(routes=False, deadline=None)


class CompletionRequest(GenerationBody):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    ) = Field(description="A text, texts, or the token ids of one or several.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens of an answer; default: 16.")
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] | None = Field(None, description="Not offered: only false.")
    best_of: int | None = Field(None, ge=1, le=1, description="Not offered: only 1.")


class ContentPart(Body):
    type: Literal["text"]
    text: Text


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(min_length=1)]
    name: Text | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationBody):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1, description="Tokens of an answer; default: what the context holds.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same, by its newer name.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class ActiveEdit(BaseModel):
    """An edit that was active in an answer."""

    id: str | None
    prompt: str | None
    target: str | None
    tokens: list[int] = Field(description="Positions of the tokens at which it was active, from 0 in the prompt.")


class TokenRoute(BaseModel):
    place: int
    token: str
    part: Literal["prompt", "answer"]
    edit: str | None = Field(description="The edit that was active when this token was read; null is the base.")
    slot: int | None
    score: float | None
    threshold: float | None


class WiseMetadata(BaseModel):
    """Which version answered, and which edits were active."""

    version: int
    namespace: str
    edits: list[list[ActiveEdit]] = Field(description="For each choice.")
    routes: list[list[TokenRoute]] | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    index: int
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length"] | None


class Answer(BaseModel):
    """What the answers of completions and chats have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    wise: WiseMetadata


class CompletionChoice(Choice):
    text: str


class Completion(Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class ChatMessage(BaseModel):
    role: Literal["assistant"] | None = "assistant"
    content: str


class ChatChoice(Choice):
    message: ChatMessage


class ChatCompletion(Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "wise"
    edits: int = Field(description="Edits that are live in this namespace.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


# -- questions --------------------------------------------------------------------------------------


class Turn(Body):
    """One message of a conversation that ends with the user's question."""

    role: Literal["system", "user", "assistant"]
    content: Prompt


def _kind(prompt: object) -> Literal["text", "conversation"]:
    return "text" if isinstance(prompt, str) else "conversation"


Question = Annotated[
    Annotated[Prompt, Tag("text")]
    | Annotated[list[Turn], Field(min_length=1, max_length=MAX_TURNS), Tag("conversation")],
    Discriminator(_kind),  # so that an error names what is wrong with a conversation, and not that it is no text
]


class AskRequest(Body):
    """Greedy answers without and with the edits."""

    model: Name | None = Field(None, description="As in completions; default: the default namespace.")
    prompts: Annotated[list[Question], Field(min_length=1)] = Field(
        description="Texts, or conversations with the user's question last."
    )
    chat: bool | None = Field(
        None,
        description="Whether texts are asked as turns of a chat. Default: in `hybrid` if the model has a chat "
        "template, else as plain text.",
    )
    max_tokens: int = Field(32, ge=1)


class AskedPrompt(BaseModel):
    prompt: str
    before: str = Field(description="The base's answer.")
    after: str = Field(description="The answer with the edits.")
    edits: list[ActiveEdit]
    routes: list[TokenRoute]


class AskAnswer(BaseModel):
    version: int
    namespace: str
    answers: list[AskedPrompt]


# -- edits ------------------------------------------------------------------------------------------


class EditIn(Body):
    """One wanted change."""

    prompt: Prompt | None = Field(
        None, description="The question; ends right before the answer. Default: the last of `messages`."
    )
    target: Prompt = Field(description="The wanted answer, without what ends it.")
    subject: Prompt | None = Field(None, description="What the edit is about, as it is written in `prompt`.")
    aliases: Prompts = Field([], description="Other names of the subject that users may use.")
    messages: Annotated[list[Turn], Field(max_length=MAX_TURNS)] = Field(
        [], description="The conversation in which it is asked, the user's question last."
    )
    paraphrases: Prompts = Field([], description="Other wordings that fitting may use.")
    locality: Prompts = Field([], description="Prompts whose answers must not change, that fitting may use.")
    reason: Reason | None = None
    valid_from: Instant | None = None
    valid_until: Instant | None = None

    def edit(self, *, namespace: str, author: str) -> Edit:
        """Raises EditError if it is not a valid edit."""
        fields = self.model_dump(exclude={"reason", "valid_from", "valid_until"})
        return Edit(**fields | {"prompt": self.prompt or ""}, namespace=namespace, author=author)


class EditsRequest(Body):
    edits: Annotated[list[EditIn], Field(min_length=1)]
    model: Name | None = Field(None, description="`NAME@NAMESPACE` puts them in that namespace, which may be new.")
    wait: Wait = Field("ticket", description="`live`: answer when each is live or has failed; else at once.")


class Replacement(Body):
    """What changes of an edit; fields that are not given stay as they are."""

    target: Prompt
    subject: Prompt | None = None
    aliases: Prompts | None = None
    paraphrases: Prompts | None = None
    locality: Prompts | None = None
    reason: Reason | None = None
    wait: Wait = "ticket"


class PreviewRequest(Body):
    edit: EditIn
    model: Name | None = None
    prompts: Prompts = Field(
        [],
        description="Asked besides the edit's own prompt and paraphrases. Each is asked as a turn of a chat in "
        "`hybrid` if the model has a chat template, else as plain text. The edit's own prompt is asked "
        "in its `messages`, if any.",
    )


class PreviewAnswer(BaseModel):
    outcome: dict[str, Any]
    replaced: list[str] = Field(description="Live edits that it would replace.")
    answers: list[dict[str, str]] = Field(description="`prompt`, `before` and `after`, the edit's own prompt first.")


class EditView(BaseModel):
    """An edit and its status."""

    id: str
    ticket: int
    prompt: str
    target: str
    subject: str | None
    aliases: list[str]
    messages: list[Turn]
    paraphrases: list[str]
    locality: list[str]
    namespace: str
    author: str | None
    reason: str | None
    valid_from: str | None
    valid_until: str | None
    accepted_at: str
    status: Status
    live_in: int | None
    retired_in: int | None
    outcome: dict[str, Any] | None = Field(
        description="The result of training; `holds` says of each wording whether it is answered as promised."
    )

    @classmethod
    def of(cls, ticket: Ticket) -> EditView:
        edit = ticket.edit
        of_edit = "id", "prompt", "target", "subject", "aliases", "paraphrases", "locality", "namespace", "author"
        of_ticket = "reason", "valid_from", "valid_until", "accepted_at", "status", "live_in", "retired_in"
        fields = {name: getattr(edit, name) for name in of_edit} | {name: getattr(ticket, name) for name in of_ticket}
        messages = [Turn(**message._asdict()) for message in edit.messages]
        outcome = None if ticket.verified is None else dict(ticket.verified)
        return cls(**fields, ticket=ticket.number, messages=messages, outcome=outcome)


class EditList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EditView]
    has_more: bool = Field(description="Ask again with `after` the last ticket.")


class EditsAnswer(BaseModel):
    version: int = Field(description="The version that is served.")
    edits: list[EditView]


# -- events and versions ----------------------------------------------------------------------------


class EventView(BaseModel):
    number: int
    at: str
    kind: str = Field(description="The new status of an edit, or `version` or `collected`.")
    edit: str | None = Field(description="Its edit.")
    ticket: int | None
    version: int | None
    author: str | None
    detail: dict[str, Any]

    @classmethod
    def of(cls, event: Event, edit: str | None) -> EventView:
        names = "number", "at", "kind", "ticket", "version", "author"
        return cls(**{name: getattr(event, name) for name in names}, edit=edit, detail=dict(event.detail))


class EditHistory(EditView):
    """An edit with its events since it was last submitted."""

    events: list[EventView]


class VersionView(BaseModel):
    number: int
    kind: str
    parent: int
    at: str
    author: str | None
    reason: str | None
    edits: int = Field(description="How many are live in it.")
    collected: bool = Field(description="Whether it can no longer be read.")

    @classmethod
    def of(cls, version: Version) -> VersionView:
        return cls(**version.to_dict())


class VersionList(BaseModel):
    object: Literal["list"] = "list"
    current: int = Field(description="The version that is served.")
    data: list[VersionView]


class EditSummary(BaseModel):
    id: str
    prompt: str
    target: str
    namespace: str

    @classmethod
    def of(cls, edit: Edit) -> EditSummary:
        return cls(id=edit.id, prompt=edit.prompt, target=edit.target, namespace=edit.namespace)


class DiffAnswer(BaseModel):
    before: int
    after: int
    added: list[EditSummary]
    removed: list[EditSummary]
    changed: list[tuple[EditSummary, EditSummary]]


class RollbackRequest(Body):
    reason: Reason | None = None
