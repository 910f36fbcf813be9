"""Bodies of requests: what all of them may hold together."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
from serving import PATIENCE, running
from waiting import until


def test_bodies_under_way_have_one_budget(tmp_path: Path) -> None:
    with running(tmp_path / "store", editing=False, body_limit=40_000, bodies_limit=100_000) as served:
        port = int(served.url.rpartition(":")[2])
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\nExpect: 100-continue\r\n"
        with ExitStack() as opened, served.client("reader") as client:

            def begin(token: str, said: str) -> socket.socket:
                """Announces a body. The service says to go on as soon as it reads it."""
                connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
                connection.sendall(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
                assert connection.recv(4096).startswith(f"HTTP/1.1 {said} ".encode())
                return connection

            def ask(size: int) -> httpx.Response:
                return client.post("/v1/completions", content=b" " * size)

            assert ask(30_000).status_code == 400 and ask(50_000).status_code == 413
            for _ in range(3):
                begin("nobody", "401")
            half, _ = [begin("reader", "100") for _ in range(2)]
            refused = ask(30_000)
            assert refused.status_code == 503 and "80000 of 100000 bytes" in refused.text
            assert refused.json()["error"]["code"] == "unavailable" and refused.headers["retry-after"]
            assert ask(10_000).status_code == 400, "there is room for it"
            half.close()
            until(lambda: ask(30_000).status_code == 400)
