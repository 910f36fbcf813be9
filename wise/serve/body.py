"""What comes in with a request: as much as may, and to its end, so that the answer is heard.

A server that answers and closes while the client is still sending has the connection reset, and many a client then
tells of that and not of the answer. So what is left of a body after the answer is read and thrown away, for a while.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

LINGER = 10.0
"""Seconds for which a body that nobody wants is still read."""


class Body:
    """The body of one request. `receive` stands in for the server's own."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self._receive, self._limit = receive, limit
        self._size = int(length) if length.isdigit() else 0
        """Bytes that it will have, or has had."""
        self._seen = 0
        self.coming = self._size > 0 or b"transfer-encoding" in headers
        """Whether some of it was not read yet."""

    async def receive(self) -> Message:
        """Raises HTTPException 413 for one that is, or says it will be, over the limit."""
        self._check()
        message = await self._next()
        self._check()
        return message

    async def drain(self) -> None:
        """Reads what is still coming, and keeps none of it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while self.coming:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._size = max(self._size, self._seen)
        self.coming = message["type"] == "http.request" and message.get("more_body", False)
        return message

    def _check(self) -> None:
        if self._size > self._limit:
            raise HTTPException(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is over the {self._limit} bytes that are taken; send less at once",
            )
