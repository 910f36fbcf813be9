"""Routes of edits: `/v1/edits`, to submit, list, show, replace, preview, delete and erase them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from wise.edits import DEFAULT_NAMESPACE, Edit
from wise.errors import EditError, StoreError
from wise.memory.store.edit_request import FAILED, LIVE, QUEUED, RETIRED, TRAINING, UNDER_WAY, EditRequest, Ticket
from wise.memory.store.ticket_search import TicketFilter, search_tickets
from wise.serving import schemas
from wise.serving.auth import Admin, AuthorizedRoute, Holder, NamespaceEditor, NamespaceReader, sees
from wise.serving.clients import while_connected
from wise.serving.edit_size import check_size
from wise.serving.http_errors import bad_request, conflict, not_found, unavailable
from wise.serving.logs import audit
from wise.serving.store_service import StoreService, StoreServiceDep
from wise.training.report import SUPERSEDED

router = APIRouter(prefix="/v1", tags=["edits"], route_class=AuthorizedRoute)
SETTLED: dict[int | str, dict[str, Any]] = {
    200: {"model": schemas.EditsAnswer, "description": "Each edit is live or has failed."}
}
EditId = Annotated[schemas.Text, Path(max_length=200)]
POLL = 1.0
"""Seconds after which a wait looks again, even without news."""


Key = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="The same key with the same edits submits nothing twice."),
]
Moment = Annotated[schemas.Text | None, Query(max_length=64, description="ISO 8601; UTC if it names no zone.")]
Words = Annotated[schemas.Text | None, Query(min_length=1, max_length=200)]


def _ticket_filter(
    status: Annotated[schemas.Status | None, Query()] = None,
    text: Annotated[
        schemas.Text, Query(max_length=200, description="In prompt, target, subject, other wordings or reason.")
    ] = "",
    author: Words = None,
    namespace: Annotated[schemas.Namespace | None, Query(min_length=1, max_length=200)] = None,
    accepted_from: Moment = None,
    accepted_until: Moment = None,
    valid_at: Moment = None,
) -> TicketFilter:
    superseded = status == SUPERSEDED
    return TicketFilter(  # raises EditError
        status=FAILED if superseded else status,
        outcome=SUPERSEDED if superseded else None,
        not_outcome=SUPERSEDED if status == FAILED else None,
        text=text,
        author=author,
        namespaces=None if namespace is None else frozenset({namespace}),
        accepted_from=accepted_from,
        accepted_until=accepted_until,
        valid_at=valid_at,
    )


@router.post("/edits", status_code=202, responses=SETTLED)
async def submit(
    body: schemas.EditsRequest,
    request: Request,
    service: StoreServiceDep,
    holder: NamespaceEditor,
    response: Response,
    idempotency_key: Key = None,
) -> schemas.EditsAnswer:
    """Accepts edits; once answered, they survive whatever happens. They are trained in their order."""
    limit = service.settings.edit_limit
    if len(body.edits) > limit:
        raise bad_request(f"edits: {len(body.edits)} were given and {limit} are taken at once", "edits")
    namespace = service.namespace(body.model)

    def validate() -> list[EditRequest]:
        _check_namespace(service, namespace)
        return [_checked_request(service, item, namespace, holder, f"edits.{i}") for i, item in enumerate(body.edits)]

    tickets = await _accept(service, await run_in_threadpool(validate), holder.name, idempotency_key)
    return await _answer(service, tickets, body.wait, request, response)


@router.get("/edits")
def list_edits(
    service: StoreServiceDep,
    holder: NamespaceReader,
    ticket_filter: Annotated[TicketFilter, Depends(_ticket_filter)],
    after: Annotated[int | None, Query(ge=0, lt=2**63, description="The last ticket not wanted.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    newest: Annotated[bool, Query(description="The newest first; default: in their order.")] = False,
) -> schemas.EditList:
    """Edits that meet every condition that is given, in the order in which they were submitted."""
    ticket_filter = ticket_filter.within(holder.namespaces)
    page = search_tickets(service.store.journal, ticket_filter, after=after, limit=limit, newest=newest)
    views = [schemas.EditView.of(ticket, service.wrong_answers) for ticket in page.tickets]
    return schemas.EditList(data=views, has_more=page.last is not None, next_after=page.last)


@router.post("/edits/preview")
async def preview(
    body: schemas.PreviewRequest, request: Request, service: StoreServiceDep, holder: NamespaceEditor
) -> schemas.PreviewAnswer:
    """Answers to an edit's prompt, its paraphrases and further prompts, before and after it. Nothing is changed.

    Previews are made one after the other, in turns of their holders; too many get a 429. One whose client leaves ends.
    """

    async def previewed() -> dict[str, Any]:
        async with service.previews.turn(holder.name):
            edit, prompts = await run_in_threadpool(_to_preview, service, body, holder)
            return await service.command("preview", edit=edit.to_dict(), prompts=prompts)

    return schemas.PreviewAnswer(**await while_connected(request, previewed()))


def _to_preview(service: StoreService, body: schemas.PreviewRequest, holder: Holder) -> tuple[Edit, list[str]]:
    """The edit, and the prompts besides its own. Raises HTTPError for an edit that cannot be previewed."""
    encoder, limit = service.encoder, service.settings.preview_limit
    prompts = [*body.edit.paraphrases, *body.prompts]
    if 1 + len(prompts) > limit:
        raise bad_request(
            f"prompts: with the edit's own prompt and its paraphrases these are {1 + len(prompts)} texts, and "
            f"preview_limit={limit} are asked at once; give fewer",
            "prompts",
        )
    characters = service.settings.edit_characters
    for place, prompt in enumerate(body.prompts):
        if len(prompt) > characters:
            param = f"prompts.{place}"
            raise bad_request(f"{param}: it has {len(prompt)} characters and {characters} are read", param)
    edit = _checked_request(service, body.edit, service.namespace(body.model), holder, "edit").edit
    prompts = [*edit.paraphrases, *body.prompts]
    for param, text in (("edit", encoder.own_prompt(edit)), *(("prompts", prompt) for prompt in prompts)):
        question = encoder.question(text)
        if len(question.ids) >= encoder.context:
            raise bad_request(f"{param}: {question.text!r:.60} does not fit the context of {encoder.context}", param)
    return edit, prompts


@router.get("/edits/{edit_id}")
def show(edit_id: EditId, service: StoreServiceDep, _: NamespaceReader) -> schemas.EditHistory:
    """An edit as it was last submitted, and its events since."""
    ticket = _newest_ticket(service, edit_id)
    events = [schemas.EventView.of(event, edit_id) for event in service.store.journal.events(ticket=ticket.number)]
    view = schemas.EditView.of(ticket, service.wrong_answers)
    return schemas.EditHistory(**view.model_dump(), events=events)


@router.put("/edits/{edit_id}", status_code=202, responses=SETTLED)
async def replace(
    edit_id: EditId,
    body: schemas.Replacement,
    request: Request,
    service: StoreServiceDep,
    holder: NamespaceEditor,
    response: Response,
    idempotency_key: Key = None,
) -> schemas.EditsAnswer:
    """Submits another answer to a live edit's prompt; the old one stays until the new one is live."""
    ticket = await run_in_threadpool(_newest_ticket, service, edit_id)
    if ticket.status != LIVE:
        raise conflict(f"edit {edit_id!r} is {ticket.status}, and only a live one can be replaced")

    def validate() -> EditRequest:
        validity = {"valid_from": ticket.valid_from, "valid_until": ticket.valid_until}
        replacement = schemas.EditIn.of(ticket.edit, **validity | body.model_dump(exclude={"wait"}, exclude_none=True))
        return _checked_request(service, replacement, ticket.edit.namespace, holder, "")

    tickets = await _accept(service, [await run_in_threadpool(validate)], holder.name, idempotency_key)
    return await _answer(service, tickets, body.wait, request, response)


@router.delete("/edits/{edit_id}")
async def delete(
    edit_id: EditId,
    service: StoreServiceDep,
    holder: NamespaceEditor,
    reason: Annotated[schemas.Text | None, Query(min_length=1, max_length=2000)] = None,
) -> schemas.VersionView:
    """Removes an edit: a live one, or one that is queued or in training, which is cancelled.

    Answered when it is not served here any more.
    """
    ticket = await run_in_threadpool(_newest_ticket, service, edit_id)
    if ticket.status not in UNDER_WAY:
        raise conflict(f"edit {edit_id!r} is {ticket.status}; only one that is live or under way can be deleted")
    result = await service.command("delete", edit_ids=[edit_id], author=holder.name, reason=reason)
    audit("delete", by=holder.name, edit=edit_id, version=result["number"])
    version = await when_served(service, schemas.VersionView(**result))
    if holder.namespaces is None:
        return version
    live = sum(len(handle.state.edits) for handle in service.visible().values())
    # the version may be the last one of other holders
    visible_fields = {"edits": live, "author": holder.name, "reason": reason}
    return version.model_copy(update=visible_fields)


@router.post("/edits/{edit_id}/erase")
async def erase(
    edit_id: EditId, service: StoreServiceDep, holder: Admin, body: schemas.ErasureRequest | None = None
) -> schemas.ErasureAnswer:
    """Takes the text and the tensors of a deleted edit out of every file of the store. This cannot be undone.

    Its id, dates and digests stay. Versions that held it can no longer be read or rolled back to.
    """
    ticket = await run_in_threadpool(_newest_ticket, service, edit_id)
    if ticket.status in UNDER_WAY:
        raise conflict(f"edit {edit_id!r} is {ticket.status}; delete it first, then erase it")
    how = body or schemas.ErasureRequest(reason=None, with_author=False)
    result = await service.command("erase", edit_ids=[edit_id], author=holder.name, **how.model_dump())
    audit("erase", by=holder.name, edit=edit_id, versions=result["versions"])
    return schemas.ErasureAnswer(**result)


async def when_served(service: StoreService, version: schemas.VersionView) -> schemas.VersionView:
    """The version, once it is served here. Raises HTTPError if that takes too long."""
    end = time.monotonic() + service.settings.request_timeout
    with service.follower.listen() as listener:
        while service.follower.current.version < version.number:
            if time.monotonic() > end:
                raise unavailable(f"version {version.number} was made, and is not served here yet; see /ready")
            await listener.news(POLL)
    return version


def _check_namespace(service: StoreService, namespace: str) -> None:
    """Raises HTTPError 409 for a new namespace if the most namespaces have edits, live or under way."""
    namespaces, limit = set(service.follower.current.handles), service.settings.namespaces
    if namespace in namespaces or namespace == DEFAULT_NAMESPACE:
        return
    namespaces |= service.store.journal.namespaces((QUEUED, TRAINING))
    if namespace not in namespaces and len(namespaces) >= limit:
        raise conflict(f"{len(namespaces)} namespaces hold edits, and namespaces={limit}; use one of them")


def _checked_request(
    service: StoreService, item: schemas.EditIn, namespace: str, holder: Holder, place: str
) -> EditRequest:
    """An edit that this model accepts. Raises HTTPError that names its place in the body."""
    try:
        edit = item.edit(namespace=namespace, author=holder.name)
        check_size(edit, service.encoder, service.settings)
        service.encoder.validate(edit)
        return EditRequest(edit=edit, **item.model_dump(include={"reason", "valid_from", "valid_until"}))
    except EditError as error:
        raise bad_request(f"{place}: {error}" if place else str(error), place or None) from error


async def _accept(
    service: StoreService, edit_requests: Sequence[EditRequest], by: str, key: str | None
) -> tuple[Ticket, ...]:
    """Raises HTTPError at shutdown, and for edits that conflict with what is stored."""
    service.refuse_if_draining()
    holder_key = None if key is None else f"{by}:{key}"

    def store() -> tuple[Ticket, ...]:
        try:
            return service.store.enqueue(edit_requests, key=holder_key)
        except EditError as error:  # each edit alone is valid: it conflicts with a stored one
            raise conflict(str(error)) from error

    tickets = await run_in_threadpool(store)
    ids, numbers = [ticket.edit.id for ticket in tickets], [ticket.number for ticket in tickets]
    audit("edit", by=by, edits=ids, tickets=numbers)
    return tickets


async def _answer(
    service: StoreService, tickets: Sequence[Ticket], wait: schemas.Wait, request: Request, response: Response
) -> schemas.EditsAnswer:
    """With `wait=live` each edit is waited for, unless the client leaves; the status says whether all are settled."""
    if wait == "live":
        tickets = await while_connected(request, _settled_tickets(service, tickets))
        if all(ticket.status in (LIVE, FAILED, RETIRED) for ticket in tickets):
            response.status_code = HTTPStatus.OK
    views = [schemas.EditView.of(ticket, service.wrong_answers) for ticket in tickets]
    return schemas.EditsAnswer(version=service.follower.current.version, edits=views)


async def _settled_tickets(service: StoreService, tickets: Sequence[Ticket]) -> Sequence[Ticket]:
    """The tickets once each has failed or is live and served here; at the end of the time, as they are then."""
    end = time.monotonic() + service.settings.request_timeout
    numbers = [ticket.number for ticket in tickets]
    with service.follower.listen() as listener:
        while True:
            version = service.follower.current.version  # before reading: edits live in it are served
            with suppress(StoreError):  # the edits were accepted: the answer says so
                tickets = await run_in_threadpool(lambda: service.store.journal.tickets(numbers=numbers))
            is_settled = all(t.status in (LIVE, FAILED, RETIRED) and (t.live_in or 0) <= version for t in tickets)
            if is_settled or time.monotonic() > end or service.draining.is_set():
                return tickets
            await listener.news(POLL)


def _newest_ticket(service: StoreService, edit_id: str) -> Ticket:
    """Raises HTTPError 404, also for an edit that the holder of the request's token may not see."""
    tickets = [ticket for ticket in service.store.journal.tickets(edit_id=edit_id) if sees(ticket.edit.namespace)]
    if not tickets:
        raise not_found(f"there is no edit {edit_id!r:.80}; GET /v1/edits lists them", "edit_not_found")
    return tickets[-1]
