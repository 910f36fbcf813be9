"""The bodies of requests and answers: what they have in common, edits, versions, events.

`schemas_completions` and `schemas_chat` hold those of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    Tag,
    ValidationError,
)

from wise.edits import Edit
from wise.errors import EditError
from wise.memory.store.edit_request import FAILED, LIVE, Event, Ticket
from wise.safe_text import finite
from wise.training.report import SUPERSEDED


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
Namespace = Annotated[Text, AfterValidator(partial(normalize, "NFC"))]
"""As it is stored, in whichever form its letters are composed."""
Name = Annotated[Text, StringConstraints(max_length=256)]
Prompt = Annotated[Text, StringConstraints(min_length=1)]
Prompts = Annotated[list[Prompt], Field(max_length=64)]
Reason = Annotated[Text, StringConstraints(min_length=1, max_length=2_000)]
Instant = Annotated[Text, Field(description="ISO 8601; UTC if it names no zone.", max_length=64)]
Wait = Literal["ticket", "live"]
Status = Literal["queued", "training", "live", "failed", "superseded", "retired"]
"""`superseded`: it failed because a later edit took its place."""


def _end_at_first_error(schema: Any) -> None:
    """Makes all lists within a schema end at their first error."""
    if isinstance(schema, dict) and schema.get("type") == "list":
        schema["fail_fast"] = True
    if isinstance(schema, dict | list | tuple):
        for part in schema.values() if isinstance(schema, dict) else schema:
            _end_at_first_error(part)


class Body(BaseModel):
    """Refuses unknown fields: a mistyped one would be ignored silently. Of a list the first error is enough: a list of
    a million would make a million errors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema = handler(source)
        _end_at_first_error(schema)
        return schema


# -- questions --------------------------------------------------------------------------------------


class Turn(Body):
    """One message of a conversation that ends with the user's question."""

    role: Literal["system", "user", "assistant"]
    content: Prompt


Question = Annotated[
    Annotated[Prompt, Tag("text")]
    | Annotated[list[Turn], Field(min_length=1, max_length=MAX_TURNS), Tag("conversation")],
    # So that an error names what is wrong with a conversation, and not that it is no text.
    Discriminator(lambda prompt: "text" if isinstance(prompt, str) else "conversation"),
]


# -- edits ------------------------------------------------------------------------------------------


class EditIn(Body):
    """One wanted change."""

    prompt: Prompt | None = Field(None, description="Ends right before the answer. Default: the last of `messages`.")
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

    @classmethod
    def of(cls, edit: Edit, **changed: Any) -> EditIn:
        """An edit as it may be submitted, without id, author and namespace; `changed` names fields that have another
        value. Raises EditError for what the library takes and this does not."""
        fields = {name: value for name, value in edit.to_dict().items() if name in cls.model_fields}
        try:
            return cls(**fields | changed)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise EditError(
                f"edit {edit.prompt!r:.60}: field {place!r}: {problem['msg'].removeprefix('Value error, ')}"
            ) from error


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
    valid_from: Instant | None = None
    valid_until: Instant | None = None
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


def sendable(value: Any) -> Any:
    """A JSON value of the journal as it can be sent: only numbers that JSON has, and no half of a surrogate pair."""
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {sendable(name): sendable(item) for name, item in value.items()}
    return [sendable(item) for item in value] if isinstance(value, list) else value


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
        description="The result of training. By the name of a wording or question, `holds` says whether it is answered "
        "as promised, `before` what was answered without the edit, and `said` what was answered with it."
    )
    unsaid: str | None = Field(
        default=None,
        description="What this service's engine says in place of the target: with `engine=vllm` each live edit is "
        "asked once. Null if it says the target.",
    )
    problem: str | None = Field(
        default=None, description="Why this row of the journal cannot be read; the other fields are what is left of it."
    )

    @classmethod
    def of(cls, ticket: Ticket, wrong_answers: Mapping[str, str]) -> EditView:
        """wrong_answers: of the engine, by edit id."""
        edit, outcome = ticket.edit, sendable(ticket.verified)
        superseded = ticket.status == FAILED and (outcome or {}).get("status") == SUPERSEDED
        view_fields: dict[str, Any] = {
            "ticket": ticket.number,
            "messages": [message._asdict() for message in edit.messages],
            "status": SUPERSEDED if superseded else ticket.status,
            "outcome": outcome,
            "unsaid": wrong_answers.get(edit.id) if ticket.status == LIVE else None,
            "problem": ticket.problem or None,
        }
        return cls(**vars(edit) | vars(ticket) | view_fields)


class EditList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EditView]
    has_more: bool = Field(description="Ask again with `after` set to `next_after`.")
    next_after: int | None = Field(
        description="The last ticket that was looked at. A search looks at a bounded number of edits, so a page may "
        "have fewer edits than `limit`, or none, and more may follow."
    )


class EditsAnswer(BaseModel):
    version: int = Field(description="The version that is served.")
    edits: list[EditView]


class FileAnswer(BaseModel):
    edits: list[EditIn] = Field(description="As `POST /v1/edits` takes them.")
    warnings: list[str] = Field(description="Of defects that were skipped, and of fields that were not used.")


# -- events and versions ----------------------------------------------------------------------------


class EventView(BaseModel):
    number: int
    at: str
    kind: str = Field(
        description="The new status of an edit, or `erased`; or `version` or `collected`; or `unsaid` of an edit that "
        "went live and that this service's engine does not say."
    )
    edit: str | None = Field(description="Its edit.")
    ticket: int | None
    version: int | None
    author: str | None
    detail: dict[str, Any]

    @classmethod
    def of(cls, event: Event, edit: str | None) -> EventView:
        view_fields: dict[str, Any] = {"edit": edit, "detail": sendable(event.detail)}
        return cls(**vars(event) | view_fields)


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


class VersionList(BaseModel):
    object: Literal["list"] = "list"
    current: int = Field(description="The version that is served.")
    data: list[VersionView]
    has_more: bool = Field(description="Ask again with `after` set to `next_after`.")
    next_after: int | None


class EditSummary(BaseModel):
    id: str
    prompt: str
    target: str
    namespace: str


class DiffAnswer(BaseModel):
    before: int
    after: int
    added: list[EditSummary]
    removed: list[EditSummary]
    changed: list[tuple[EditSummary, EditSummary]]


class RollbackRequest(Body):
    reason: Reason | None = None


class ErasureRequest(Body):
    reason: Reason | None = Field(None, description="It is kept, and so must not repeat the text.")
    with_author: bool = Field(False, description="Erase from the edit's events who asked for it, too.")


class ErasureAnswer(BaseModel):
    tickets: list[int] = Field(description="Whose text was erased now.")
    versions: list[int] = Field(description="That held the edit, and can no longer be read or rolled back to.")
    blobs: int = Field(description="Files removed.")
    left: dict[str, list[str]] = Field(
        description="Fields of the edit whose text other edits say too, and the ids of some of these: they keep it."
    )
