"""`/v1/edits`: hand in, list, look at, replace, preview and delete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from wise.edits import check_lengths
from wise.errors import EditError, did_you_mean
from wise.memory.store.edit_request import FAILED, LIVE, QUEUED, RETIRED, EditRequest, Ticket
from wise.serve.access import Editor, Reader, Served
from wise.serve.edit_schemas import (
    EditHistory,
    EditIn,
    EditList,
    EditsAnswer,
    EditsRequest,
    EditView,
    EventView,
    PreviewAnswer,
    PreviewRequest,
    Replacement,
    Status,
    VersionView,
)
from wise.serve.edition import DEFAULT
from wise.serve.logs import audited
from wise.serve.problems import conflict, invalid, missing, unavailable
from wise.serve.schemas import Text, Turn
from wise.serve.security import Holder
from wise.serve.service import Service

router = APIRouter(prefix="/v1", tags=["edits"])
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="The same key with the same edits takes nothing in twice."),
]
EditId = Annotated[Text, Path(max_length=200)]
LOOK = 1.0
"""Seconds after which a wait looks again, whatever it was told."""


@router.post(
    "/edits", status_code=202, responses={200: {"model": EditsAnswer, "description": "Each is live or has failed."}}
)
async def hand_in(
    body: EditsRequest,
    request: Request,
    response: Response,
    service: Served,
    holder: Editor,
    idempotency_key: IdempotencyKey = None,
) -> EditsAnswer:
    """Takes edits in; once answered, they survive whatever happens. They are trained in their order."""
    if len(body.edits) > service.settings.edit_limit:
        limit = service.settings.edit_limit
        raise invalid(f"edits: {len(body.edits)} were given and {limit} are taken at once", "edits")
    namespace = _namespace(service, body.model)
    wanted = [_requested(service, item, namespace, holder, f"edits.{i}") for i, item in enumerate(body.edits)]
    return await _take(service, request, response, holder, wanted, idempotency_key, body.wait == "live")


@router.get("/edits")
def listed(
    service: Served,
    _: Reader,
    status: Annotated[Status | None, Query()] = None,
    namespace: Annotated[Text | None, Query(max_length=200)] = None,
    after: Annotated[int, Query(ge=0, lt=2**63, description="The last ticket not wanted.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> EditList:
    """Edits in the order in which they were handed in."""
    found = service.store.journal.tickets(status=status, namespace=namespace, since=after, limit=limit + 1)
    return EditList(data=[EditView.of(ticket) for ticket in found[:limit]], has_more=len(found) > limit)


@router.post("/edits/preview")
async def preview(body: PreviewRequest, service: Served, holder: Editor) -> PreviewAnswer:
    """What an edit would make of its prompt, its paraphrases and further prompts. Nothing is changed."""
    wanted = _requested(service, body.edit, _namespace(service, body.model), holder, "edit").edit
    encoder, asked = service.encoder, [*wanted.paraphrases, *body.prompts]
    for param, prompt in (("edit", encoder.own_prompt(wanted)), *(("prompts", prompt) for prompt in asked)):
        question = encoder.question(prompt)
        if len(question.ids) >= encoder.context:
            raise invalid(f"{param}: {question.text!r:.60} does not fit the context of {encoder.context}", param)
    told = await run_in_threadpool(service.command, "preview", edit=wanted.to_dict(), prompts=asked)
    return PreviewAnswer(**told)


@router.get("/edits/{edit_id}")
def looked_at(edit_id: EditId, service: Served, _: Reader) -> EditHistory:
    """An edit as it was last handed in, and what happened to it since."""
    ticket = _newest(service, edit_id)
    events = service.store.journal.events(ticket=ticket.number)
    told = [EventView.of(event, edit_id) for event in events]
    return EditHistory(**EditView.of(ticket).model_dump(), events=told)


@router.put(
    "/edits/{edit_id}",
    status_code=202,
    responses={200: {"model": EditsAnswer, "description": "It is live or has failed."}},
)
async def replaced(
    edit_id: EditId,
    body: Replacement,
    request: Request,
    response: Response,
    service: Served,
    holder: Editor,
    idempotency_key: IdempotencyKey = None,
) -> EditsAnswer:
    """Hands in another answer to a live edit's prompt; the old one stays until the new one is live."""
    ticket = await run_in_threadpool(_newest, service, edit_id)
    if ticket.status != LIVE:
        raise conflict(f"edit {edit_id!r} is {ticket.status}, and only a live one can be replaced")
    old = ticket.edit
    given = EditIn(
        prompt=old.prompt,
        target=body.target,
        subject=old.subject if body.subject is None else body.subject,
        aliases=list(old.aliases) if body.aliases is None else body.aliases,
        messages=[Turn.model_validate(message._asdict()) for message in old.messages],
        paraphrases=list(old.paraphrases) if body.paraphrases is None else body.paraphrases,
        locality=list(old.locality) if body.locality is None else body.locality,
        reason=body.reason,
    )
    wanted = _requested(service, given, old.namespace, holder, "")
    return await _take(service, request, response, holder, [wanted], idempotency_key, body.wait == "live")


@router.delete("/edits/{edit_id}")
async def deleted(
    edit_id: EditId,
    request: Request,
    service: Served,
    holder: Editor,
    reason: Annotated[Text | None, Query(min_length=1, max_length=2000)] = None,
) -> VersionView:
    """Takes an edit out, live or still queued. Answered when it is not served here any more."""
    ticket = await run_in_threadpool(_newest, service, edit_id)
    if ticket.status not in (LIVE, QUEUED):
        raise conflict(f"edit {edit_id!r} is {ticket.status}; only one that is live or queued can be deleted")
    told = await run_in_threadpool(
        service.command, "delete", edit_ids=[edit_id], author=holder.name, reason=reason
    )
    audited("delete", by=holder.name, request=request.state.request_id, edit=edit_id, version=told["number"])
    await served_from(service, told["number"])
    return VersionView(**{name: value for name, value in told.items() if name != "manifest"})


async def served_from(service: Service, version: int) -> None:
    """Waits until a version is served here. Raises a Problem where that takes too long."""
    end = time.monotonic() + service.settings.deadline
    with service.follower.listen() as listening:
        while service.follower.current.version < version:
            if time.monotonic() > end:
                raise unavailable(f"version {version} was made, and is not served here yet; see /ready")
            await listening.news(LOOK)


# -- within -----------------------------------------------------------------------------------------


def _namespace(service: Service, model: str | None) -> str:
    name, at, namespace = (model or service.name).partition("@")
    if name != service.name or (at and not namespace.strip()):
        raise missing(f"model: {model!r:.80} is not served; {did_you_mean(name, [service.name])}", "model_not_found")
    return namespace or DEFAULT


def _requested(service: Service, item: EditIn, namespace: str, holder: Holder, where: str) -> EditRequest:
    """An edit that this model can take. Raises a Problem that names its place."""
    kept = item.model_dump(include={"reason", "valid_from", "valid_until"})
    encoder = service.encoder
    try:
        edit = item.edit(namespace=namespace, author=holder.name)
        encoder.check(edit)
        reserve = len(encoder.bos) + len(encoder.terminator)
        check_lengths([edit], lambda text: len(encoder.tokenizer(text)["input_ids"]), encoder.context, reserve)
        return EditRequest(edit=edit, **kept)
    except EditError as error:
        raise invalid(f"{where}: {error}" if where else str(error), where or None) from error


async def _take(
    service: Service,
    request: Request,
    response: Response,
    holder: Holder,
    wanted: Sequence[EditRequest],
    key: str | None,
    wait: bool,
) -> EditsAnswer:
    if service.draining.is_set():
        raise unavailable("the service is about to end; ask another replica, or try again")
    named = None if key is None else f"{holder.name}:{key}"

    def enqueue() -> tuple[Ticket, ...]:
        try:
            return service.store.enqueue(wanted, key=named)
        except EditError as error:  # each by itself is fine: it goes against what is there
            raise conflict(str(error)) from error

    tickets = await run_in_threadpool(enqueue)
    ids = [ticket.edit.id for ticket in tickets]
    audited("edit", by=holder.name, request=request.state.request_id, edits=ids, tickets=[t.number for t in tickets])
    if wait:
        tickets = await _settled(service, tickets)
        if all(ticket.status in (LIVE, FAILED, RETIRED) for ticket in tickets):
            response.status_code = HTTPStatus.OK
    return EditsAnswer(version=service.follower.current.version, edits=[EditView.of(ticket) for ticket in tickets])


async def _settled(service: Service, tickets: Sequence[Ticket]) -> tuple[Ticket, ...]:
    """The tickets once each is live or has failed, and that is served here; or as they are when time is over."""
    end = time.monotonic() + service.settings.deadline
    numbers = [ticket.number for ticket in tickets]

    def now() -> tuple[Ticket, ...]:
        return service.store.journal.tickets(numbers=numbers)

    with service.follower.listen() as listening:
        while True:
            version = service.follower.current.version  # before asking: what is live by then is served
            found = await run_in_threadpool(now)
            done = all(t.status in (LIVE, FAILED, RETIRED) and (t.live_in or 0) <= version for t in found)
            if done or time.monotonic() > end or service.draining.is_set():
                return found
            await listening.news(LOOK)


def _newest(service: Service, edit_id: str) -> Ticket:
    found = service.store.journal.tickets(edit_id=edit_id)
    if not found:
        raise missing(f"there is no edit {edit_id!r:.80}; GET /v1/edits lists them", "edit_not_found")
    return found[-1]
