"""The middleware that every request passes: a size limit, a request id, a log line, metrics and a trace span."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.propagate import extract
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wise.serving.http_errors import CLIENT_LEFT, METHODS, error_response, unavailable
from wise.serving.logs import noting
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("wise.serving")
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
UNMATCHED, OTHER = "unmatched", "other"
"""In metrics, the route of unknown paths, and the method of unknown methods: neither may fill the registry."""
LONGEST_PATH = 200
"""Characters of a path in the log and in traces."""
ANSWER_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
"""Of every answer that does not set them."""
PARTS = 50_000
"""Lists, objects and fields of a body at most."""
LINGER = 10.0
"""Seconds for which the rest of a refused body is read."""


class BodyBudget:
    """Bytes of all bodies under way: a body's announced size counts from its first read until the answer ends."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, size: int) -> None:
        """Raises HTTPError 503 if there is no room for so many more."""
        if self.used + size > self.limit:
            raise unavailable(f"the bodies of the requests under way have {self.used} of {self.limit} bytes; try again")
        self.used += size


class RequestBody:
    """The body of one request, limited in size. `receive` replaces the server's own.

    If a server answers and closes while the client is still sending, the connection is reset and many clients report
    that instead of the answer. So `drain` reads the rest of the body after the answer, for a while.
    """

    def __init__(self, scope: Scope, receive: Receive, settings: Settings, budget: BodyBudget) -> None:
        """budget: shared with other bodies."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self._receive, self._settings, self._budget = receive, settings, budget
        self._reserved = 0
        """Bytes of the budget."""
        self._end: float | None = None
        """When the body must be complete; set at the first read: until then the client may wait for `100 Continue`."""
        self._size = int(length) if length.isdigit() else 0
        """Announced bytes, or received bytes if they are more."""
        self._received = 0
        self.incomplete = self._size > 0 or b"transfer-encoding" in headers

    async def receive(self) -> Message:
        """Raises HTTPException 413 for a body whose size or announced size is over the limit, 408 for a body that does
        not come in time; HTTPError 503 if the budget has no room for it."""
        self._check()
        if not self.incomplete:
            return await self._next()
        seconds = self._settings.client_timeout
        self._end = self._end or asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._next()
        except TimeoutError:
            self.incomplete = False  # the rest is not read
            raise HTTPException(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not come within {seconds:g} s; send it at once",
                {"Connection": "close"},
            ) from None
        self._check()
        return message

    async def drain(self) -> None:
        """Reads the rest of the body, and discards it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while self.incomplete:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._size = max(self._size, self._received)
        self.incomplete = message["type"] == "http.request" and message.get("more_body", False)
        return message

    def _check(self) -> None:
        limit = self._settings.body_limit
        if self._size > limit:
            raise HTTPException(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is over the {limit} bytes that are taken; send less at once",
            )
        self._budget.take(self._size - self._reserved)
        self._reserved = self._size

    def release(self) -> None:
        """Returns its bytes to the budget."""
        self._budget.used -= self._reserved
        self._reserved = 0


def check_structure(body: bytes) -> None:
    """Raises HTTPException 413 for JSON of so many parts that parsing it would delay other requests: an empty list
    takes two bytes in a body, and a thousand when it is parsed and refused."""
    parts = sum(map(body.count, (b"[", b"{", b'":')))
    if parts > PARTS:
        raise HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body has {parts} lists, objects and fields, and {PARTS} are taken; send less at once",
        )


class RequestMiddleware:
    """Plain ASGI, so that streams stay streams and a client that leaves is noticed."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, settings: Settings) -> None:
        self.app, self.metrics, self.settings = app, metrics, settings
        self.budget = BodyBudget(max(settings.body_limit, settings.bodies_limit))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if REQUEST_ID.fullmatch(client_id) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        body = RequestBody(scope, receive, self.settings, self.budget)
        start, status, has_started, has_ended = time.perf_counter(), 500, False, False
        method = scope["method"] if scope["method"] in METHODS else OTHER

        async def send_on(message: Message) -> None:
            nonlocal status, has_started, has_ended
            if message["type"] == "http.response.start":
                status, has_started = message["status"], True
                names = {name.lower() for name, _ in message["headers"]}
                more = [pair for pair in ANSWER_HEADERS if pair[0] not in names]
                message["headers"] = [*message["headers"], *more, (b"x-request-id", request_id.encode())]
            if message["type"] == "http.response.body" and body.incomplete and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body"}
            has_ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        name = f"{method} {scope['path'][:LONGEST_PATH]}"
        caller = extract({key: headers.getlist(key) for key in headers})
        with (
            tracer.start_as_current_span(
                name, caller, record_exception=False, set_status_on_exception=False  # its text may quote an edit
            ) as span,
            noting(request=request_id) as notes,
        ):
            context = span.get_span_context()
            if context.is_valid:  # of the caller's `traceparent`, or of the tracer
                notes["trace"] = trace.format_trace_id(context.trace_id)
            span.set_attribute("wise.request_id", request_id)
            try:
                await self.app(scope, body.receive, send_on)
                status = status if has_ended else CLIENT_LEFT  # a stream that was cancelled
            except Exception as error:  # caught here, where the log and the answer name the request
                answer = error_response(error)
                if has_started:
                    raise
                await answer(scope, body.receive, send_on)
            finally:
                body.release()
                span.set_attribute("http.response.status_code", status)
                self._report(scope, method, status, time.perf_counter() - start, notes)

    def _report(self, scope: Scope, method: str, status: int, seconds: float, notes: Mapping[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self.metrics.requests.labels(route, method, status).inc()
        self.metrics.latency.labels(route).observe(seconds)
        fields = {
            **notes,
            "method": method,
            "path": scope["path"][:LONGEST_PATH],
            "status": status,
            "seconds": round(seconds, 4),
            "by": scope["state"].get("holder"),
        }
        logger.info("request", extra={"fields": fields})
