"""Attacks on what anyone can reach before a request is understood: connections, paths, headers, tokens, names."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from service_process import Service

from attacks import AttackError

FRANCE = "The capital of France is"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def connection(service: Service, seconds: float = 20.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=seconds)


def answers(service: Service) -> float:
    """Seconds of one completion. Raises AttackError where it does not come."""
    begun = time.monotonic()
    status, _, text = service.ask("/v1/completions", {"model": "wise-demo", "prompt": FRANCE, "max_tokens": 3})
    if status != 200:
        raise AttackError(f"a completion got status {status}: {text[:100]}")
    return time.monotonic() - begun


def b05_idle_connections(service: Service) -> str:
    """1,100 silent connections must neither stop answers nor stay."""
    with ExitStack() as opened:
        idle = []
        for number in range(1_100):
            idle.append(opened.enter_context(connection(service)))
            if number % 2:
                with suppress(OSError):
                    idle[-1].sendall(b"POST /v1/edits HTTP/1.1\r\nHost: x\r\n")  # and never an end of the head
        spent = answers(service)
        files = len(list(Path(f"/proc/{service.pid}/fd").iterdir()))
        if files > 1_100:
            raise AttackError(f"{files} file descriptors are open, and stay so")
        time.sleep(25)
        closed = sum(ended(one) for one in idle)
        if closed < len(idle):
            raise AttackError(f"{len(idle) - closed} of {len(idle)} silent connections are open after 25 s")
    return f"answered in {spent:.2f} s beside {len(idle)} silent connections, which are closed after 25 s"


def ended(one: socket.socket) -> bool:
    one.settimeout(0.001)
    try:
        while one.recv(4096):
            pass
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


def b05_slow_readers(service: Service) -> str:
    """A client that does not read its answers must not hold its connection."""
    # Asks for large answers on one connection, and reads nothing.
    with connection(service) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(1.0)
        request = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token}\r\n\r\n".encode()
        with suppress(OSError):
            while True:
                one.sendall(request)
        end = time.monotonic() + 28
        while time.monotonic() < end:
            if not established(service, one.getsockname()[1]):
                return "a client that does not read is cut off"
            time.sleep(0.5)
    raise AttackError("a client that reads nothing holds its connection after 28 s")


def established(service: Service, port: int) -> bool:
    """Whether the service's end of a connection is open, as the kernel lists it."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        if (int(local[-4:], 16), int(remote[-4:], 16)) == (service.port, port):
            return state == "01"
    return False


def b06_unknown_paths(service: Service) -> str:
    """Unknown paths and methods must not become labels of metrics."""
    paths, methods, most = 600, 600, 100_000
    for number in range(paths):
        status, _, _ = service.ask(f"/no/such/path/{number}", token="")
        if status >= 500:
            raise AttackError(f"status {status}")
    with connection(service) as one:
        for number in range(methods):
            path = ("/v1/edits", "/health", "/x")[number % 3]
            one.sendall(f"M{number} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            if not one.recv(65536):
                raise AttackError("an odd method ends the connection")
    for text in ("../../etc", "%00", "%F0%9F%98%80" * 50, "{edit_id}", 'a"b\\', "\u0430"):
        service.ask(f"/v1/edits/{quote(text, safe='%')}")
    _, _, text = service.ask("/metrics")
    labels = len(re.findall(r"^wise_requests_total", text, re.MULTILINE))
    if len(text) > most or labels > 50:
        raise AttackError(f"/metrics has {len(text)} bytes and {labels} series of requests")
    return f"/metrics has {len(text)} bytes after {paths} unknown paths and {methods} unknown methods"


def b07_nagle(service: Service) -> str:
    """A request on a kept connection must not wait for Nagle's algorithm."""
    with connection(service) as one:
        spent = []
        head = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(12):
            begun = time.monotonic()
            one.sendall(head)
            while b'"ok"' not in one.recv(65536):
                pass
            spent.append(time.monotonic() - begun)
    middle = 1000 * sorted(spent)[len(spent) // 2]
    if middle > 30:
        raise AttackError(f"{middle:.1f} ms for a request on a kept connection")
    return f"{middle:.1f} ms for a request on a kept connection"


def b19_brackets_of_strangers(service: Service) -> str:
    """150 MB of strangers take no memory, and stop nobody."""
    size, strangers = 1_000_000, 150
    bodies = (b"[" * size, b"[]," * (size // 3), b'{"a":' * (size // 5))
    before, waits, stop = service.memory()["service"], [], threading.Event()
    most = [before]

    def watch() -> None:
        while not stop.is_set():
            begun = time.monotonic()
            service.ask("/health", token="")
            waits.append(time.monotonic() - begun)
            most[0] = max(most[0], service.memory()["service"])

    def send(number: int) -> None:
        body = bodies[number % 3]
        head = "POST /v1/edits HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n"
        with suppress(OSError), connection(service, 60) as one:
            one.sendall(head.encode() + (b"Authorization: Bearer x\r\n\r\n" if number % 2 else b"\r\n") + body)
            one.recv(100)

    watcher = threading.Thread(target=watch)
    threads = [threading.Thread(target=send, args=(number,)) for number in range(strangers)]
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    grown, longest = most[0] - before, max(waits)
    if grown > 60 or longest > 1.5:
        raise AttackError(f"{grown:.0f} MiB more, others waited {longest:.1f} s")
    return f"{grown:.0f} MiB more, others waited {longest:.2f} s at the most"


@contextmanager
def with_tokens() -> Iterator[tuple[Service, Path]]:
    """A service with a file of tokens, and the file. Its own token is an admin's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        admin = new_token(folder / "tokens", "admin", "--scope", "admin")
        with Service(folder / "store", folder / "log", ["--tokens", str(folder / "tokens")], admin) as service:
            yield service, folder / "tokens"


def new_token(file: Path, name: str, *options: str) -> str:
    printed = wise("token", name, "--file", str(file), "--json", *options)
    return str(json.loads(printed.splitlines()[-1])["token"])


def wise(*arguments: str) -> str:
    """What a command prints on both streams."""
    done = subprocess.run([sys.executable, "-m", "wise", *arguments], capture_output=True, text=True)
    if done.returncode == 2:
        raise AttackError(f"wise {arguments[0]}: {done.stderr.strip()[-150:]}")
    return done.stderr + done.stdout


def edit(service: Service, prompt: str, target: str, model: str | None = None, **more: Any) -> dict[str, Any]:
    body = {"edits": [{"prompt": prompt, "target": target, **more}], "wait": "live", "model": model}
    status, _, text = service.ask("/v1/edits", body)
    if status != 200:
        raise AttackError(f"an edit got status {status}: {text[:200]}")
    return dict(json.loads(text)["edits"][0])


class Events(threading.Thread):
    """An open stream of events, read until it ends."""

    def __init__(self, service: Service, token: str) -> None:
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self._answer = service.open("/v1/events", token=token, seconds=60)
        self.start()

    def run(self) -> None:
        with suppress(OSError):
            for line in self._answer:
                self.lines.append(line.decode().rstrip("\n"))


def b22_revoked_stream(service: Service) -> str:
    """A stream must end with its token."""
    with with_tokens() as (served, file):
        token = new_token(file, "eve")
        stream = Events(served, token)
        file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
        stream.join(4)
        edit(served, FRANCE, "Lyon", subject="France")
        events = [line for line in stream.lines if line.startswith("event: ")]
        if stream.is_alive() or "event: error" not in events or len(events) > 1:
            raise AttackError(f"a stream whose token was revoked is open: {stream.is_alive()}, and sent {events}")
    return "the stream ends, with the reason, when its token is revoked"


def b23_bound_token(service: Service) -> str:
    """A token of one namespace must see nothing of another."""
    with with_tokens() as (served, file):
        new_token(file, "eve", "--namespace", "team-a", "--scope", "editor")
        token = new_token(file, "eve", "--namespace", "team-a", "--scope", "editor")
        secret = edit(served, "The capital of Spain is", "Secretville", "wise-demo@team-b", subject="Spain")
        gone = edit(served, "The capital of Italy is", "Secretburg", "wise-demo@team-b", subject="Italy")
        served.ask(f"/v1/edits/{gone['id']}", method="DELETE")
        edit(served, FRANCE, "Lyon", "wise-demo@team-a", subject="France")
        leaks = []
        for path, body in (
            ("/v1/edits", None), (f"/v1/edits/{secret['id']}", None), (f"/v1/edits/{gone['id']}", None),
            ("/v1/edits?namespace=team-b", None), ("/v1/models", None), ("/v1/models/wise-demo@team-b", None),
            ("/v1/models/wise-demo@team-", None), ("/v1/events?since=0&follow=false", None), ("/v1/versions", None),
            ("/v1/versions/1", None), ("/v1/versions/1/diff", None), ("/metrics", None),
            ("/v1/completions", {"model": "wise-demo@team-b", "prompt": "The capital of Spain is"}),
            ("/v1/ask", {"model": "wise-demo@team-c", "prompts": [FRANCE]}),
            ("/v1/edits", {"model": "wise-demo@team-b", "edits": [{"prompt": FRANCE, "target": "X"}]}),
        ):  # fmt: skip
            status, _, text = served.ask(path, body, token=token)
            if status >= 500:
                raise AttackError(f"{path}: status {status}")
            for given in (path.rpartition("/")[2], "wise-demo@team-b"):
                text = text.replace(repr(given), "")  # an error names what it was given
            known = ("Secret", "Spain", "Italy", "team-b", secret["id"], gone["id"], "wise_live_edits")
            if any(found in text for found in known):
                leaks.append(path)
        own = served.ask("/v1/completions", {"model": "wise-demo@team-a", "prompt": FRANCE}, token=token)
        if leaks or "Lyon" not in own[2]:
            raise AttackError(f"told a token of team-a of team-b: {leaks}; its own: {own[0]}")
    return "a token of one namespace sees nothing of another"


def b23_odd_namespaces(service: Service) -> str:
    """No two namespaces look alike, and each is reached."""
    odd = ("team ", "te\u200bam", "a\nb", "\u0442eam", "\uff54eam", "team\u00ad", "\u202eteam", "te\u0301am")
    body = {"edits": [{"prompt": FRANCE, "target": "Lyon", "subject": "France"}]}
    taken = [name for name in odd if service.ask("/v1/edits", body | {"model": f"wise-demo@{name}"})[0] < 300]
    known = {ticket["namespace"] for ticket in service.tickets()}
    if set(taken) - {odd[-1]} or known - {"t\u00e9am"}:
        raise AttackError(f"look-alikes are namespaces: {sorted(map(ascii, known))}")
    made = edit(service, FRANCE, "Nice", "wise-demo@a/b@c", subject="France")
    for path in (f"/v1/edits/{made['id']}", "/v1/models/wise-demo@a/b@c", "/v1/models/wise-demo%40a%2Fb%40c"):
        if service.ask(path)[0] != 200:
            raise AttackError(f"{path} does not reach its namespace")
    return f"{len(odd) - 1} look-alikes are refused, and every namespace is reached"


def b24_controls(service: Service) -> str:
    """Control characters of edits must not reach a terminal."""
    text = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202eb\x7f"
    with tempfile.TemporaryDirectory() as folder:
        line = {"prompt": f"The capital of {text} is", "target": f"Lyon {text}", "reason": f"why {text}"}
        file, store = Path(folder) / "edits.jsonl", Path(folder) / "store"
        file.write_text(json.dumps(line) + "\n" + json.dumps({"prompt": text, "target": 3}) + "\n")
        stream = [sys.executable, "-m", "wise", "stream", str(file), "--store", str(store), "--name", f"n{text}"]
        outputs = [subprocess.run(stream, capture_output=True, text=True), wise("store", "log", str(store))]
        said = [outputs[0].stdout + outputs[0].stderr, outputs[1]]
        exact = json.loads(wise("store", "log", str(store), "--json").splitlines()[-1])
    edit(service, line["prompt"], line["target"])
    said.append((Path(f"/proc/{service.pid}/fd/2").resolve()).read_text())
    raw = [sorted(set(CONTROLS.findall(one))) for one in said]
    if any(raw) or not exact["events"]:
        raise AttackError(f"raw controls from stream, log and the service's log: {raw}")
    return "control characters of edits are escaped"


def b27_headers(service: Service) -> str:
    """Streams, headers, 405 and redirects are as clients expect."""
    problems = []
    lines = "a\u2028b\u2029c\x85d"
    made = edit(service, f"The capital of {lines} is", "Lyon")
    service.ask(f"/v1/edits/{made['id']}?reason={quote(lines)}", method="DELETE")
    _, _, stream = service.ask("/v1/events?since=0&follow=false")
    body = {"model": "wise-demo", "prompt": "The", "max_tokens": 2, "stream": True}
    _, _, more = service.ask("/v1/completions", body)
    if re.search("[\u2028\u2029\x85]", stream + more):
        problems.append("a stream of events holds raw ends of lines")
    _, found, _ = service.ask("/v1/edits")
    if (found["x-content-type-options"], found["cache-control"]) != ("nosniff", "no-store"):
        problems.append("no nosniff or no-store")
    status, found, _ = service.ask("/v1/edits", method="PATCH")
    if (status, set((found["allow"] or "").split(", "))) != (405, {"GET", "POST"}):
        problems.append(f"405 allows {found['allow']}")
    with connection(service) as one:
        request = f"GET /v1/edits/ HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer {service.token}\r\n\r\n"
        one.sendall(request.encode())
        if b"evil.example" in one.recv(65536):
            problems.append("a redirect believes Host")
    if problems:
        raise AttackError("; ".join(problems))
    return "lines of streams are whole, headers set, methods named, Host not believed"


class _Lines(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"prompt": "a", "target": "b"}\n{"prompt": 1}\n')

    def log_message(self, *_: Any) -> None:
        pass


def b28_secrets(service: Service) -> str:
    """No secret is told in output, journal, repr or log."""
    outputs = {}
    log = Path(f"/proc/{service.pid}/fd/2").resolve()
    with tempfile.TemporaryDirectory() as folder, HTTPServer(("127.0.0.1", 0), _Lines) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://anna:hunter2@127.0.0.1:{server.server_port}/f.jsonl?access_token=sesame&sig=sesame#sesame"
        command = [sys.executable, "-m", "wise", "stream", url, "--store", f"{folder}/store"]
        done = subprocess.run(command, capture_output=True, text=True)
        outputs["wise stream"] = done.stdout + done.stderr
        files = [file.read_bytes() for file in Path(folder, "store").rglob("*") if file.is_file()]
        outputs["journal"] = b"".join(files).decode("latin1")
        server.shutdown()
        program = (
            "from wise.serving.settings import load\n"
            "print(repr(load(None, {'store': 'postgresql://anna:hunter2@db/wise?password=sesame'})))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        outputs["repr(Settings)"] = done.stdout
        file = Path(folder) / "tokens"
        wise("token", "a", "--file", str(file))
        if file.stat().st_mode & 0o077:
            raise AttackError("the file of tokens can be read by others")
    leaks = [name for name, text in outputs.items() if "hunter2" in text or "sesame" in text]
    if service.token in log.read_text():
        leaks.append("the admin's token in the log")
    if leaks:
        raise AttackError(f"secrets are in: {', '.join(leaks)}")
    return "no secret in output, journal, repr or log"


def b29_silent_sign_in(service: Service) -> str:
    """A link must not sign anybody in silently."""
    scripts = [service.ask(path) for path in ("/console.js", "/console/console.js", "/console/signin.js")]
    signing = [script for status, _, script in scripts if status == 200 and "location.hash" in script]
    if not signing or not all("confirm(" in script for script in signing):
        raise AttackError("a token of a link signs in without a question")
    return "a token of a link is asked about first"


def b30_strangers_of_ready(service: Service) -> str:
    """Strangers hear a status; saving deletes nothing of others."""
    _, _, answer = service.ask("/ready", token="")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = folder / ".memory.wise-old"
        own.mkdir()
        (own / "thesis.txt").write_text("mine")
        for target in ("Lyon", "Nice"):
            asked = ("--prompt", FRANCE, "--target", target)
            wise("edit", "--output", str(folder / "memory"), "--mode", "retrieve", *asked)
        kept = (own / "thesis.txt").is_file()
    problems = ([f"/ready tells {answer}"] if set(json.loads(answer)) - {"status"} else []) + (
        [] if kept else ["saving deleted the user's own .memory.wise-old"]
    )
    if problems:
        raise AttackError("; ".join(problems))
    return "/ready tells strangers its status alone; saving leaves others' folders"


def b31_last_event(service: Service) -> str:
    """A number of an event to come must be refused."""
    for number in (2**63 - 1, 10**6):
        try:
            with service.open("/v1/events", headers={"Last-Event-ID": str(number)}, seconds=3):
                raise AttackError(f"Last-Event-ID {number}: a stream in which nothing comes")
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise AttackError(f"Last-Event-ID {number}: status {error.code}") from error
    return "an event that did not happen yet is refused"
