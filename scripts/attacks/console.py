"""Attacks on what an operator sees: metrics, logs, and the list of edits."""

from __future__ import annotations

import json
import time
import urllib.parse
from typing import Any

from service_process import Service

from attacks import AttackError

FRANCE = "The capital of France is"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
METRICS = (
    "wise_first_token_seconds_count",
    "wise_inter_token_seconds_count",
    'wise_tickets{status="queued"}',
    "wise_oldest_queued_seconds",
    "wise_cache_tokens",
)
LOGGED = ("request", "trace", "version", "completion_tokens")


def post(service: Service, path: str, body: dict[str, Any]) -> Any:
    return service.fetch(path, body, headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})


def b16_metrics(service: Service) -> str:
    """Times of tokens, the queue of edits and the cache must be measured."""
    post(service, "/v1/completions", {"model": "wise-demo", "prompt": FRANCE})
    lines = service.ask("/metrics")[2].splitlines()
    metrics = {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}
    missing = [name for name in METRICS if name not in metrics]
    if missing or not metrics["wise_first_token_seconds_count"]:
        raise AttackError(f"not measured: {', '.join(missing) or 'first tokens'}")
    return f"{len(metrics)} samples, the first token among them"


def b16_logs(service: Service) -> str:
    """Every line on stderr must be JSON, and a request have tokens, version and trace."""
    post(service, "/v1/completions", {"model": "wise-demo", "prompt": FRANCE})
    end = time.monotonic() + 5
    while '"/v1/completions"' not in service.log.read_text() and time.monotonic() < end:
        time.sleep(0.1)  # a request is logged behind its answer
    lines, plain = [], []
    for line in service.log.read_text().splitlines():
        try:
            lines.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            plain.append(line)
    if plain:
        raise AttackError(f"{len(plain)} of {len(lines) + len(plain)} lines are not JSON: {plain[0]:.60}")
    [request] = [line for line in lines if line.get("path") == "/v1/completions"]
    missing = [name for name in LOGGED if name not in request]
    if missing or request["trace"] != TRACE:
        raise AttackError(f"the line of a request lacks {', '.join(missing)}")
    return f"{len(lines)} lines of JSON; a request has tokens, version and trace"


def b17_search(service: Service) -> str:
    """A superseded edit must be no failure, and edits be searched."""
    edits = [{"prompt": FRANCE, "target": target, "subject": "France"} for target in ("Lyon", "Nice")]
    lyon, nice = post(service, "/v1/edits", {"edits": edits, "wait": "live"})["edits"]
    if (lyon["status"], nice["status"]) != ("superseded", "live"):
        raise AttackError(f"an edit that a later one took the place of is {lyon['status']}")
    query = urllib.parse.urlencode({"text": "NICE", "valid_at": "2030-01-01", "newest": "true"})
    found = [edit["target"] for edit in service.fetch(f"/v1/edits?{query}")["data"]]
    if found != ["Nice"]:
        raise AttackError(f"a search for one edit found {found}")
    return "the superseded edit is called so, and the other one found by its text"
