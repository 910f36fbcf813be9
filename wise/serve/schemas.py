"""The bodies of completions and questions, as OpenAI's clients send and read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag


def _whole(text: str) -> str:
    """JSON can write halves of characters, which no tokenizer takes, and NUL, which no database does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from None
    if "\0" in text:
        raise ValueError(f"character {text.index(chr(0))} is NUL")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Name = Annotated[Text, StringConstraints(max_length=256)]
Stop = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]
Prompt = Annotated[Text, StringConstraints(min_length=1)]
LONGEST_CONVERSATION = 64
"""Messages."""


class Body(BaseModel):
    """Fields that are not known are refused: a mistyped one would be ignored in silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Extras(Body):
    """What is ours, under `wise`."""

    routes: bool = Field(False, description="Tell the route of every token, and not only where an edit spoke.")
    deadline: float | None = Field(None, gt=0, description="Seconds that this request may take, if less than ours.")


class StreamOptions(Body):
    include_usage: bool = False


class Generation(Body):
    """What completions and chats have in common."""

    model: Name = Field(description="The model's name; `NAME@NAMESPACE` answers with the edits of that namespace.")
    temperature: float | None = Field(None, ge=0, le=2, description="0, or left out, takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, description="Answers to each prompt.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="Not used.")
    wise: Extras | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0, description="Not offered: only 0.")
    frequency_penalty: float | None = Field(None, ge=0, le=0, description="Not offered: only 0.")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def extras(self) -> Extras:
        return self.wise or Extras(routes=False, deadline=None)


class CompletionRequest(Generation):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    ) = Field(description="A text, texts, or the token ids of one or several.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens of an answer; 16 if left out.")
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


class ChatRequest(Generation):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1, description="Tokens of an answer; what the context holds if left out.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same, by its newer name.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class Turn(Body):
    """One message of a conversation that ends with the user's question."""

    role: Literal["system", "user", "assistant"]
    content: Prompt


def _kind(prompt: object) -> Literal["text", "conversation"]:
    return "text" if isinstance(prompt, str) else "conversation"


Question = Annotated[
    Annotated[Prompt, Tag("text")]
    | Annotated[list[Turn], Field(min_length=1, max_length=LONGEST_CONVERSATION), Tag("conversation")],
    Discriminator(_kind),  # so that what is wrong with a conversation is said, and not that it is no text
]


class AskRequest(Body):
    """Greedy answers without and with the edits."""

    model: Name | None = Field(None, description="As in completions; the default namespace if left out.")
    prompts: Annotated[list[Question], Field(min_length=1)] = Field(
        description="Texts, or conversations with the user's question last."
    )
    chat: bool | None = Field(
        None,
        description="Whether texts are asked as turns of a chat. Left out: in `hybrid` where the model has a chat "
        "template, else as plain text.",
    )
    max_tokens: int = Field(32, ge=1)


# -- what is answered -------------------------------------------------------------------------------


class SpokenEdit(BaseModel):
    id: str | None
    prompt: str | None
    target: str | None
    tokens: list[int] = Field(description="Places of the tokens at which it spoke, from the first of the prompt.")


class TokenRoute(BaseModel):
    place: int
    token: str
    part: Literal["prompt", "answer"]
    edit: str | None = Field(description="The edit that spoke when this token was read; null is the base.")
    slot: int | None
    score: float | None
    threshold: float | None


class WiseTold(BaseModel):
    """Which version answered, and which edits spoke."""

    version: int
    namespace: str
    edits: list[list[SpokenEdit]] = Field(description="For each choice.")
    routes: list[list[TokenRoute]] | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    """What the answers of completions and chats have in common."""

    index: int
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length"] | None


class Answer(BaseModel):
    """What completions and chats have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    wise: WiseTold


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


class Asked(BaseModel):
    prompt: str
    before: str = Field(description="What the base says.")
    after: str = Field(description="What is said with the edits.")
    edits: list[SpokenEdit]
    routes: list[TokenRoute]


class AskAnswer(BaseModel):
    version: int
    namespace: str
    answers: list[Asked]
