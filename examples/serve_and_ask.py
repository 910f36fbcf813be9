"""Starts `wise serve`, makes an edit over HTTP, asks, and deletes the edit.

    python examples/serve_and_ask.py
    python examples/serve_and_ask.py --model FOLDER_OR_HUB_ID

Needs the extra `serve`. Without --model it serves the model that ships with wise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

EDIT = {"prompt": "The capital of France is", "target": "Lyon", "subject": "France"}


class Client:
    """The service at one address, asked with one token."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self.url + path, data=data, headers=headers, method=method)) as answer:
            return json.load(answer)

    def wait_until_ready(self, seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                self.call("GET", "/ready")
                return
            except URLError:  # not listening yet
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    def complete(self, model: str, prompt: str) -> str:
        body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0}
        return str(self.call("POST", "/v1/completions", body)["choices"][0]["text"])


def main(folder: str | None) -> None:
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "wise", "serve", "--store", f"{store}/store", "--port", "0", "--json"]
        command += [] if folder is None else ["--model", folder]
        command += ["--set", "request_timeout=300"]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert service.stdout is not None
            started = json.loads(service.stdout.readline())
            client = Client(started["url"], started["token"])
            client.wait_until_ready()
            model = client.call("GET", "/v1/models")["data"][0]["id"]
            before = client.complete(model, EDIT["prompt"])

            [edit] = client.call("POST", "/v1/edits", {"edits": [EDIT], "wait": "live"})["edits"]
            assert edit["status"] == "live", edit
            after = client.complete(model, EDIT["prompt"])
            print(f"{EDIT['prompt']}\n    before: {before.strip()}\n    after:  {after.strip()}")
            assert EDIT["target"] in after and EDIT["target"] not in before

            client.call("DELETE", f"/v1/edits/{edit['id']}")
            assert client.complete(model, EDIT["prompt"]) == before
        finally:
            service.terminate()
            service.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id of a causal LM")
    main(parser.parse_args().model)
