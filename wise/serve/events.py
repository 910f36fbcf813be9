"""`/v1/events`: all that happens to edits and versions, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from wise.memory.store.edit_request import Event
from wise.serve.access import Reader, Served
from wise.serve.edit_schemas import EventView
from wise.serve.service import Service

router = APIRouter(prefix="/v1", tags=["events"])
AT_ONCE = 500
EVENT = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
    "description": "`data` is an EventView in JSON, `id` its number and `event` its kind.",
}
HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that nobody between takes the stream for dead."""


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": EVENT}}, "description": "Events."}},
)
async def events(
    service: Served,
    _: Reader,
    since: Annotated[
        int | None, Query(ge=0, lt=2**63, description="The last event not wanted; only new ones if left out.")
    ] = None,
    follow: Annotated[bool, Query(description="Go on with what happens later, and do not end.")] = True,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**63, description="As browsers send it.")] = None,
) -> StreamingResponse:
    """Events in their order, without gaps. An edit's `live` comes when it is served here."""
    start = last_event_id if last_event_id is not None else since
    first = service.follower.seen if start is None else start
    return StreamingResponse(
        _told(service, first, follow),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _told(service: Service, last: int, follow: bool) -> AsyncIterator[str]:
    with service.follower.listen() as listening:
        yield ": open\n\n"
        while True:
            while last < service.follower.seen:
                wanted = min(AT_ONCE, service.follower.seen - last)
                found, names = await run_in_threadpool(_read, service, last, wanted)
                for event in found:
                    view = EventView.of(event, names.get(event.ticket or 0))
                    data = json.dumps(view.model_dump(), ensure_ascii=False)
                    yield f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n"
                    last = event.number
            if not follow or service.draining.is_set():
                return
            if not await listening.news(HEARTBEAT):
                yield ": still here\n\n"


def _read(service: Service, last: int, limit: int) -> tuple[Sequence[Event], dict[int, str]]:
    """Events, and the edit of each ticket that they speak of."""
    found = service.store.journal.events(since=last, limit=limit)
    numbers = sorted({event.ticket for event in found if event.ticket})
    return found, {ticket.number: ticket.edit.id for ticket in service.store.journal.tickets(numbers=numbers)}
