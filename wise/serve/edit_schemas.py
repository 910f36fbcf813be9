"""The bodies of edits, versions and events."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from wise.edits import Edit
from wise.memory.store.edit_request import Event, Ticket, Version
from wise.serve.schemas import LONGEST_CONVERSATION, Body, Name, Prompt, Text, Turn

Prompts = Annotated[list[Prompt], Field(max_length=64)]
Reason = Annotated[Text, StringConstraints(min_length=1, max_length=2_000)]
Instant = Annotated[Text, Field(description="ISO 8601; UTC where it names no zone.", max_length=64)]
Wait = Literal["ticket", "live"]
Status = Literal["queued", "training", "live", "failed", "retired"]


Turns = Annotated[list[Turn], Field(max_length=LONGEST_CONVERSATION)]


class EditIn(Body):
    """One wanted change."""

    prompt: Prompt | None = Field(
        None, description="What is asked; ends right before the answer. The last of `messages` where it is left out."
    )
    target: Prompt = Field(description="The wanted answer, without what ends it.")
    subject: Prompt | None = Field(None, description="What the edit is about, as it is written in `prompt`.")
    aliases: Prompts = Field([], description="Other names of the subject, by which users may call it.")
    messages: Turns = Field([], description="The conversation in which it is asked, the user's question last.")
    paraphrases: Prompts = Field([], description="Other wordings that fitting may use.")
    locality: Prompts = Field([], description="Prompts whose answers must not move, that fitting may use.")
    reason: Reason | None = None
    valid_from: Instant | None = None
    valid_until: Instant | None = None

    def edit(self, *, namespace: str, author: str) -> Edit:
        """Raises EditError where it is none."""
        told = self.model_dump(exclude={"reason", "valid_from", "valid_until"})
        return Edit(**told | {"prompt": self.prompt or ""}, namespace=namespace, author=author)


class EditsRequest(Body):
    edits: Annotated[list[EditIn], Field(min_length=1)]
    model: Name | None = Field(None, description="`NAME@NAMESPACE` puts them in that namespace, which may be new.")
    wait: Wait = Field("ticket", description="`live`: answer when each is live or has failed; else at once.")


class Replacement(Body):
    """What changes of an edit; what is left out stays."""

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
        description="Asked beside the edit's own prompt and paraphrases. Each is asked as a turn of a chat in `hybrid` "
        "where the model has a chat template, else as plain text; the edit's own prompt in its `messages`, if any.",
    )


class EditView(BaseModel):
    """An edit, and where it stands."""

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
        description="What was found when it was trained; `holds` says of each wording whether it is as promised."
    )

    @classmethod
    def of(cls, ticket: Ticket) -> EditView:
        edit = ticket.edit
        return cls(
            id=edit.id,
            ticket=ticket.number,
            prompt=edit.prompt,
            target=edit.target,
            subject=edit.subject,
            aliases=list(edit.aliases),
            messages=[Turn.model_validate(message._asdict()) for message in edit.messages],
            paraphrases=list(edit.paraphrases),
            locality=list(edit.locality),
            namespace=edit.namespace,
            author=edit.author,
            reason=ticket.reason,
            valid_from=ticket.valid_from,
            valid_until=ticket.valid_until,
            accepted_at=ticket.accepted_at,
            status=ticket.status,  # type: ignore[arg-type]  # pydantic checks it
            live_in=ticket.live_in,
            retired_in=ticket.retired_in,
            outcome=None if ticket.verified is None else dict(ticket.verified),
        )


class EditList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EditView]
    has_more: bool = Field(description="Ask again with `after` the last ticket.")


class EditsAnswer(BaseModel):
    version: int = Field(description="The version that is served.")
    edits: list[EditView]


class EventView(BaseModel):
    number: int
    at: str
    kind: str = Field(description="A status that an edit took, or `version` or `collected`.")
    edit: str | None = Field(description="Its edit.")
    ticket: int | None
    version: int | None
    author: str | None
    detail: dict[str, Any]

    @classmethod
    def of(cls, event: Event, edit: str | None) -> EventView:
        return cls(
            number=event.number,
            at=event.at,
            kind=event.kind,
            edit=edit,
            ticket=event.ticket,
            version=event.version,
            author=event.author,
            detail=dict(event.detail),
        )


class EditHistory(EditView):
    """An edit with all that happened to it since it was last handed in."""

    events: list[EventView]


class PreviewAnswer(BaseModel):
    outcome: dict[str, Any]
    replaced: list[str] = Field(description="Live edits that it would take the place of.")
    answers: list[dict[str, str]] = Field(description="`prompt`, `before` and `after`, the edit's own prompt first.")


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
        return cls(**{name: value for name, value in version.to_dict().items() if name != "manifest"})


class VersionList(BaseModel):
    object: Literal["list"] = "list"
    current: int = Field(description="The version that is served.")
    data: list[VersionView]


class EditShort(BaseModel):
    id: str
    prompt: str
    target: str
    namespace: str


class DiffAnswer(BaseModel):
    before: int
    after: int
    added: list[EditShort]
    removed: list[EditShort]
    changed: list[tuple[EditShort, EditShort]]


class RollbackRequest(Body):
    reason: Reason | None = None
