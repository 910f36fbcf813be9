"""Routes of history: `/v1/versions`, to list, compare and roll back, and `/v1/events`, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from wise.edits import Edit
from wise.memory.store.edit_request import LIVE, Event, Version
from wise.serving.auth import Admin, AuthorizedRoute, NamespaceReader, Reader, sees, sees_all
from wise.serving.event_stream import event, event_stream
from wise.serving.http_errors import bad_request, conflict, not_found
from wise.serving.logs import audit
from wise.serving.routes_edits import when_served
from wise.serving.schemas import DiffAnswer, EditSummary, EventView, RollbackRequest, VersionList, VersionView
from wise.serving.service import Service, ServiceDep

router = APIRouter(prefix="/v1", route_class=AuthorizedRoute)
Number = Annotated[int, Path(ge=0, lt=2**63)]
UNSAID = "unsaid"
"""The kind of the event that follows `live` if the engine does not say the edit."""
PAGE = 500
"""Events of one read."""
HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that no proxy takes the stream for dead."""
EVENT = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
    "description": "`data` is an EventView in JSON, `id` its number and `event` its kind.",
}


@router.get("/versions", tags=["versions"])
def list_versions(
    service: ServiceDep,
    _: Reader,
    after: Annotated[int | None, Query(ge=0, lt=2**63, description="The last version not wanted.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> VersionList:
    """Versions, the newest first; the last of all is version 0, the base without edits."""
    versions = [*service.store.journal.versions(before=after, newest=limit)]
    if len(versions) < limit and after != 0:
        versions.append(service.store.journal.version(0))
    views, last = [VersionView(**vars(version)) for version in versions], versions[-1].number if versions else 0
    current = service.follower.current.version
    return VersionList(current=current, data=views, has_more=last > 0, next_after=last or None)


@router.get("/versions/{number}", tags=["versions"])
def show(number: Number, service: ServiceDep, _: Reader) -> VersionView:
    return VersionView(**vars(_version(service, number)))


@router.get("/versions/{number}/diff", tags=["versions"])
def diff(
    number: Number,
    service: ServiceDep,
    _: Reader,
    against: Annotated[int | None, Query(ge=0, lt=2**63, description="Default: the version before.")] = None,
) -> DiffAnswer:
    """What turns the version `against` into this one."""
    after = _readable(service, number)
    before = _readable(service, after.parent if against is None else against)
    difference = service.store.diff(before.number, after.number)
    return DiffAnswer(
        before=before.number,
        after=after.number,
        added=[EditSummary(**vars(edit)) for edit in difference.added],
        removed=[EditSummary(**vars(edit)) for edit in difference.removed],
        changed=[(EditSummary(**vars(old)), EditSummary(**vars(new))) for old, new in difference.changed],
    )


@router.post("/versions/{number}/rollback", tags=["versions"])
async def rollback(
    number: Number, service: ServiceDep, holder: Admin, body: RollbackRequest | None = None
) -> VersionView:
    """Makes the memory of an earlier version current again, bit for bit, as a new one; answered once that is served."""
    await run_in_threadpool(_readable, service, number)
    reason = body.reason if body else None
    result = await service.command("rollback", version=number, author=holder.name, reason=reason)
    audit("rollback", by=holder.name, to=number, version=result["number"])
    return await when_served(service, VersionView(**result))


def _version(service: Service, number: int) -> Version:
    current = service.store.journal.version()
    if number > current.number:
        raise not_found(f"there is no version {number}; the last is {current.number}", "version_not_found")
    return service.store.journal.version(number)


def _readable(service: Service, number: int) -> Version:
    if (version := _version(service, number)).collected:
        raise conflict(f"version {number} was collected and can no longer be read")
    return version


@router.get(
    "/events",
    tags=["events"],
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": EVENT}}, "description": "Events."}},
)
async def events(
    request: Request,
    service: ServiceDep,
    _: NamespaceReader,
    since: Annotated[
        int | None, Query(ge=0, lt=2**63, description="The last event not wanted; default: only new ones.")
    ] = None,
    follow: Annotated[bool, Query(description="Continue with what happens later, and do not end.")] = True,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**63, description="As browsers send it.")] = None,
) -> StreamingResponse:
    """Events in their order, without gaps. An edit's `live` comes when it is served here. A token that is bound to
    namespaces gets the events of edits in these alone."""
    start = last_event_id if last_event_id is not None else since
    first = service.follower.last_event if start is None else start
    if first > service.follower.last_event and not (await run_in_threadpool(_read_events, service, first - 1, 1))[0]:
        param = "since" if last_event_id is None else "Last-Event-ID"
        raise bad_request(f"{param}: there is no event {first} yet; leave it out, or give 0 for all events", param)
    return event_stream(_stream(service, first, follow), request.state.access)


async def _stream(service: Service, last: int, follow: bool) -> AsyncIterator[str]:
    with service.follower.listen() as listener:
        yield ": open\n\n"
        while True:
            while last < service.follower.last_event:
                limit = min(PAGE, service.follower.last_event - last)
                stored_events, edits = await run_in_threadpool(_read_events, service, last, limit)
                for stored_event in stored_events:
                    edit = edits.get(stored_event.ticket or 0)
                    last = stored_event.number
                    if sees_all() or (edit is not None and sees(edit.namespace)):
                        view = EventView.of(stored_event, edit.id if edit else None).model_dump()
                        yield event(view, kind=stored_event.kind, number=stored_event.number)
                        wrong_answers = service.wrong_answers if stored_event.kind == LIVE else {}
                        wrong_answer = wrong_answers.get(edit.id) if edit else None
                        if wrong_answer is not None:
                            unsaid_event = view | {"kind": UNSAID, "detail": {"said": wrong_answer}}
                            yield event(unsaid_event, kind=UNSAID, number=stored_event.number)
            if not follow or service.draining.is_set():
                return
            if not await listener.news(HEARTBEAT):
                yield ": still here\n\n"


def _read_events(service: Service, last: int, limit: int) -> tuple[Sequence[Event], dict[int, Edit]]:
    """Events, and the edit of each ticket in them."""
    stored_events = service.store.journal.events(since=last, limit=limit)
    numbers = sorted({event.ticket for event in stored_events if event.ticket})
    return stored_events, {ticket.number: ticket.edit for ticket in service.store.journal.tickets(numbers=numbers)}
