"""Server-sent events: their format, and a stream that ends with the reason if it cannot go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from wise.safe_text import json_line
from wise.serving.auth import Access
from wise.serving.http_errors import error_body, http_error

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
RECHECK = 1.0
"""Seconds between two looks at the token of an open stream."""


def event(data: Any, *, kind: str | None = None, number: int | None = None) -> str:
    """One event, whose data is a line of JSON."""
    head = (f"id: {number}\n" if number is not None else "") + (f"event: {kind}\n" if kind is not None else "")
    return f"{head}data: {json_line(data, separators=(',', ':'))}\n\n"


def event_stream(
    events: AsyncIterator[str], access: Access, headers: dict[str, str] | None = None
) -> StreamingResponse:
    """An answer that sends events. It ends with an error event if they cannot go on, and as soon as the token is no
    longer valid."""
    return StreamingResponse(
        _while_valid(events, access), media_type="text/event-stream", headers=HEADERS | (headers or {})
    )


async def _while_valid(events: AsyncIterator[str], access: Access) -> AsyncIterator[str]:
    async def next_event() -> str | None:
        return await anext(events, None)

    next_line: asyncio.Task[str | None] | None = None
    try:
        while True:
            next_line = next_line or asyncio.create_task(next_event())
            await asyncio.wait({next_line}, timeout=RECHECK)
            access.check()
            if next_line.done():
                line, next_line = next_line.result(), None
                if line is None:
                    return
                yield line
    except Exception as error:  # the status is sent already: the error is an event
        yield event(error_body(http_error(error)), kind="error")
    finally:
        if next_line is not None:
            next_line.cancel()
        elif isinstance(events, AsyncGenerator):
            await events.aclose()
