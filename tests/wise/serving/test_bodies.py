"""Bodies of requests: their total size is limited, and bodies that do not come end."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import pytest
from serving import PATIENCE, running
from waiting import until


def test_bodies_under_way_have_one_budget(tmp_path: Path) -> None:
    with running(tmp_path / "store", editing=False, body_limit=40_000, bodies_limit=100_000) as served:
        port = int(served.url.rpartition(":")[2])
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\nExpect: 100-continue\r\n"
        with ExitStack() as opened, served.client("reader") as client:

            def begin(token: str, size_header: str) -> socket.socket:
                """Announces a body. The service sends `100 Continue` as soon as it reads the body."""
                connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
                connection.sendall(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
                assert connection.recv(4096).startswith(f"HTTP/1.1 {size_header} ".encode())
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


def test_a_client_that_leaves_within_its_body_is_no_error_of_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path / "store", editing=False) as served, served.client("reader") as client:

        def counted(status: int) -> bool:
            route = f'wise_requests_total{{method="POST",route="/v1/completions",status="{status}"}} 1.0'
            return route in client.get("/metrics").text.splitlines()

        assert client.post("/v1/completions", content=b"{").status_code == 400 and counted(400)
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=PATIENCE) as leaving:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\nExpect: 100-continue\r\n"
            leaving.sendall(f"{head}Authorization: Bearer reader\r\n\r\n".encode())
            assert leaving.recv(4096).startswith(b"HTTP/1.1 100 ")
            leaving.sendall(b"{")
        until(lambda: counted(499))
        assert not counted(500) and not [record for record in caplog.records if record.levelname == "ERROR"]
