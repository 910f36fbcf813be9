"""Limits of connections: their number, and how long a client may be silent, or slow to send or to read.

uvicorn closes a connection that is silent between two requests. It waits without end for the first request, for a head
that comes byte by byte, and for a client that does not read, and takes connections until no file descriptor is left.
This protocol of it adds what is missing. It needs no lock: all of it runs in the event loop.

When there is no room, a new connection replaces the oldest one that no holder of a token is using: one that is silent,
or whose request has not been authorized. So strangers cannot keep users out. A new connection is refused, with an
answer that says so, only if every connection is in use.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from wise.progress import SECONDS_A_LINE
from wise.serving.http_errors import BUSY, RETRY_AFTER, HTTPError, bad_request, error_response
from wise.serving.middleware import ANSWER_HEADERS
from wise.serving.settings import Settings

logger = logging.getLogger(__name__)

BACKLOG = 256
"""Connections that the event loop accepts in one turn, before any of them is looked at."""
RESERVED = 512
"""File descriptors for other uses: the store, the editor, connections of this turn and refused ones."""
PARTING = 1.0
"""Seconds in which a refused client may read the answer."""
REFUSALS = 64
"""Refused clients that get this time at once; the connections of more are closed at once."""
IPV6_NETWORK = 64
"""Bits that a provider gives to one customer."""
HEAD, STALLED = "head", "stalled"


class Connections:
    """The open connections of one server."""

    def __init__(self, settings: Settings) -> None:
        self.total, self.per_address = affordable(settings.max_connections), settings.address_connections
        self.client_timeout = settings.client_timeout
        """Seconds that a client may take to send a request's head, or to read what is sent to it."""
        self._open: dict[LimitedProtocol, None] = {}
        """In the order of their last use."""
        self._by_address: Counter[str] = Counter()
        self._refused = 0
        self._last_line = -SECONDS_A_LINE
        self.parting: set[LimitedProtocol] = set()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, new: LimitedProtocol) -> HTTPError | None:
        """Adds a connection; or returns the error with which it is refused."""
        for count, limit, address in (
            (self._by_address[new.address], self.per_address, new.address),
            (len(self._open), self.total, None),
        ):
            if count >= limit and not self._make_room(address):
                self._log_refusal(new)
                subject = "your address has" if address else "the service has"
                return HTTPError(
                    HTTPStatus.TOO_MANY_REQUESTS if address else HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{subject} {limit} connections in use, which are as many as may be; close one, or try again later",
                    type=BUSY,
                    code="too_many_connections",
                    headers={"Retry-After": str(RETRY_AFTER)},
                )
        self._open[new] = None
        self._by_address[new.address] += 1
        return None

    def touch(self, connection: LimitedProtocol) -> None:
        if connection in self._open:
            self._open[connection] = self._open.pop(connection)

    def leave(self, connection: LimitedProtocol) -> None:
        self.parting.discard(connection)
        if connection in self._open:
            del self._open[connection]
            self._by_address[connection.address] -= 1
            self._by_address += Counter()  # addresses without a connection are forgotten

    def _make_room(self, address: str | None) -> bool:
        """Closes the oldest unused connection, of this address if one is given. Returns whether there was one."""
        for connection in self._open:
            if address in (None, connection.address) and not connection.in_use():
                self.leave(connection)
                connection.transport.abort()
                return True
        return False

    def _log_refusal(self, new: LimitedProtocol) -> None:
        self._refused += 1
        now = time.monotonic()
        if now - self._last_line >= SECONDS_A_LINE:
            fields = {"refused": self._refused, "address": new.address}
            logger.warning("connections are refused", extra={"fields": fields})
            self._refused, self._last_line = 0, now


class LimitedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._all = connections
        self.address = ""
        self._refused = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        """HEAD ends a connection whose request does not come, STALLED one whose client does not read."""

    def in_use(self) -> bool:
        """Whether an authorized request is being answered, or its answer is not read yet."""
        if self.cycle is None or "access" not in self.scope["state"]:
            return False
        return not self.cycle.response_complete or self.transport.get_write_buffer_size() > 0

    # -- asyncio's calls ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = _address(transport)
        problem = self._all.admit(self)
        if problem is None:
            self._expect(HEAD, self._head_is_late)
        else:
            self._refuse(problem)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect(HEAD, self._head_is_late)
        else:
            self._stop(HEAD)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop(STALLED)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.leave(self)
        self._stop(HEAD)
        self._stop(STALLED)
        super().connection_lost(exc)

    # -- uvicorn's calls ------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self._all.touch(self)
        super().on_response_complete()
        self._end_in_time()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_in_time()

    def shutdown(self) -> None:
        if not self._refused:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(bad_request(msg))

    # -- limits ---------------------------------------------------------------------------------------

    def _expect(self, name: str, at_end: Callable[[], None]) -> None:
        """Calls `at_end` when the client's time is over, unless `_stop` is called before."""
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(self._all.client_timeout, at_end)

    def _stop(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()

    def _head_is_late(self) -> None:
        del self._timers[HEAD]
        if self.conn.trailing_data[0]:
            limit = f"the request did not come within {self._all.client_timeout:g} s"
            self._refuse(HTTPError(HTTPStatus.REQUEST_TIMEOUT, f"{limit}; send it at once"))
        else:
            self.transport.abort()

    def _end_in_time(self) -> None:
        """A closing connection first sends its buffer; this limits the time for that."""
        if self.transport.is_closing():
            self._expect(STALLED, self.transport.abort)

    def _refuse(self, error: HTTPError) -> None:
        """Answers, and closes when the client has read it: a connection with unread input is reset at once."""
        self._refused = True
        self._stop(HEAD)
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        answer = error_response(error)
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
        lines += [b"%s: %s" % pair for pair in (*answer.raw_headers, *ANSWER_HEADERS, (b"Connection", b"close"))]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        if len(self._all.parting) >= REFUSALS:
            self.transport.abort()
            return
        self._all.parting.add(self)
        self.transport.write_eof()
        self.loop.call_later(PARTING, self.transport.abort)


def _address(transport: asyncio.BaseTransport) -> str:
    """The client's IPv4 address, or the network of its IPv6 address, since one customer has all of that network."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return ""
    address = ip_address(str(peer[0]).partition("%")[0])
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, IPV6_NETWORK), strict=False))


def affordable(limit: int) -> int:
    """The number of connections, at most `limit`, for which this process has file descriptors; raises its limit of
    descriptors first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limit + RESERVED
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limit
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(limit, soft - RESERVED))
