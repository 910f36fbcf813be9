"""What every request passes: a size limit, an id, a line in the log, and the counters."""

from __future__ import annotations

import logging
import re
import time
from uuid import uuid4

from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wise.serve.body import Body
from wise.serve.metrics import Metrics

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("wise.serve")
_ID = re.compile(rb"[\w.-]{1,64}")
UNMATCHED = "unmatched"
"""In the metrics, for paths that are none of ours: they must not fill the registry."""


class Passage:
    """Pure ASGI, so that streams stay streams and a client that leaves is noticed."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, body_limit: int) -> None:
        self.app, self.metrics, self.body_limit = app, metrics, body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode() if _ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        body = Body(scope, receive, self.body_limit)
        begun, status = time.perf_counter(), 500

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            if message["type"] == "http.response.body" and body.coming and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body"}
            await send(message)

        with tracer.start_as_current_span(f"{scope['method']} {scope['path']}") as span:
            span.set_attribute("wise.request_id", request_id)
            try:
                await self.app(scope, body.receive, told)
            finally:
                span.set_attribute("http.response.status_code", status)
                self._note(scope, request_id, status, time.perf_counter() - begun)

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self.metrics.requests.labels(route, scope["method"], status).inc()
        self.metrics.latency.labels(route).observe(seconds)
        told = {
            "request": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "by": scope["state"].get("holder"),
        }
        logger.info("request", extra={"told": told})
