"""Connections: silent and slow ones end, there is always room for a user, and a refusal gives its reason."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from serving import PATIENCE, Running, running
from waiting import until

from wise.serving.connections import RESERVED, affordable

IN_TOTAL, OF_AN_ADDRESS = 10, 8
CLIENT_TIMEOUT = 0.3
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
reached: list[bool] = []


def reach(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    reached.append(True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = {"max_connections": IN_TOTAL, "address_connections": OF_AN_ADDRESS, "client_timeout": CLIENT_TIMEOUT}
    folder = tmp_path_factory.mktemp("connections") / "store"
    with running(folder, editing=False, on_start=reach, **limits) as service:
        yield service


@pytest.fixture(autouse=True)
def nobody_left(served: Running) -> Iterator[None]:
    yield
    until(lambda: len(served.server.connections) == 0)


def connect(served: Running, content: bytes = b"", *, source: str = "127.0.0.1") -> socket.socket:
    port = int(served.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(source, 0))
    connection.sendall(content)
    return connection


def wait_for_stream(stream: socket.socket) -> None:
    """Returns when a stream of events has begun; its head and its first line may come together."""
    received = b""
    while b": open" not in received:
        new = stream.recv(65536)
        assert new, received
        received += new


def rest(connection: socket.socket) -> bytes:
    """All bytes until the service closes the connection."""
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return b""


def request(path: str, token: str, *, method: str = "GET", length: int = 0) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    return (head + (f"Content-Length: {length}\r\n" if length else "") + "\r\n").encode()


def answer(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    while received and not received.endswith(b"}"):  # head and body may come apart
        received += connection.recv(65536)
    return received


def test_it_says_that_it_serves_when_the_port_accepts(served: Running) -> None:
    assert reached == [True]


def test_a_client_that_sends_nothing_or_half_a_head_is_not_waited_for(served: Running) -> None:
    with connect(served) as silent, connect(served, b"GET /health HTT") as half, connect(served, HEALTH) as keep_alive:
        assert answer(keep_alive).startswith(b"HTTP/1.1 200 ")
        head, _, body = rest(half).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ") and b"Connection: close" in head
        assert "0.3 s" in json.loads(body)["error"]["message"]
        assert rest(silent) == b""
        keep_alive.sendall(HEALTH)
        assert answer(keep_alive).startswith(b"HTTP/1.1 200 ")  # a silence between two requests is no late request


def test_a_body_that_stops_coming_is_not_waited_for(served: Running) -> None:
    with connect(served, request("/v1/edits", "admin", method="POST", length=100) + b"{") as half:
        response = rest(half)
    assert response.startswith(b"HTTP/1.1 408 ") and b"the body did not come within 0.3 s" in response


def test_a_client_that_reads_nothing_is_cut_off(served: Running) -> None:
    """It requests far more than the buffers of both systems hold, in many requests of one connection."""
    with connect(served) as deaf:
        deaf.settimeout(0.1)
        with pytest.raises((TimeoutError, ConnectionError)):
            while True:
                deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        until(lambda: len(served.server.connections) == 0)


def test_silent_connections_give_way_to_new_ones(served: Running) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(served, b"GET /")) for _ in range(3 * OF_AN_ADDRESS)]
        user = stack.enter_context(connect(served, HEALTH))
        assert answer(user).startswith(b"HTTP/1.1 200 ")
        assert len(served.server.connections) <= OF_AN_ADDRESS
        assert rest(silent[0])[:13] in (b"", b"HTTP/1.1 408 ")  # on a busy machine the request is late before that


@pytest.mark.slow
def test_strangers_give_way_and_users_do_not(served: Running) -> None:
    events, body = "/v1/events", {"method": "POST", "length": 1_000_000}
    with ExitStack() as stack:
        users = [stack.enter_context(connect(served, request(events, "reader"))) for _ in range(OF_AN_ADDRESS - 1)]
        for user in users:
            wait_for_stream(user)
        strangers = [stack.enter_context(connect(served, request("/v1/edits", "nobody", **body))) for _ in range(5)]
        last = stack.enter_context(connect(served, request(events, "reader")))
        wait_for_stream(last)
        for stranger in strangers:
            assert b"HTTP/1.1 200" not in rest(stranger)

        head, _, response = rest(stack.enter_context(connect(served))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 ") and b"retry-after: " in head
        assert "your address has 8 connections" in json.loads(response)["error"]["message"]
        streams = [stack.enter_context(connect(served, request(events, "reader"), source="127.0.0.2")) for _ in "ab"]
        for stream in streams:
            wait_for_stream(stream)
        response = rest(stack.enter_context(connect(served, source="127.0.0.3")))
        assert response.startswith(b"HTTP/1.1 503 ") and b"the service has 10 connections" in response

        users.pop().close()
        until(lambda: len(served.server.connections) < IN_TOTAL)
        with connect(served, HEALTH, source="127.0.0.3") as again:
            assert answer(again).startswith(b"HTTP/1.1 200 ")


def test_what_is_no_http_gets_an_error_of_the_one_shape(served: Running) -> None:
    with connect(served, b"\x16\x03\x01\x02\x00 not http\r\n\r\n") as odd:
        head, _, body = rest(odd).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_answers_do_not_wait_for_acknowledgements(served: Running) -> None:
    with connect(served, HEALTH) as connection:
        answer(connection)
        [protocol] = served.server.server_state.connections
        peer = protocol.transport.get_extra_info("socket")
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize(
    ("limits", "count", "expected"),
    [
        ((20_000, 20_000), 1000, None),
        ((1024, 20_000), 1000, (1000 + RESERVED, 20_000)),
        ((1024, resource.RLIM_INFINITY), 1000, (1000 + RESERVED, resource.RLIM_INFINITY)),
        ((256, 1024), 1024 - RESERVED, (1024, 1024)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 1000, None),
    ],
)
def test_there_are_no_more_connections_than_file_descriptors(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], count: int, expected: tuple[int, int] | None
) -> None:
    limits_set: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new_limits: limits_set.append(new_limits))
    assert affordable(1000) == count and limits_set == ([] if expected is None else [expected])
