"""The metrics of the service, for Prometheus. No label has a value that a client may choose."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wise.memory.store.edit_request import FOLLOWS, now

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("wise_requests", "HTTP requests.", ["route", "method", "status"], **on)
        self.latency = Histogram("wise_request_seconds", "Seconds until it is answered.", ["route"], buckets=LONG, **on)
        self.first = Histogram("wise_first_token_seconds", "Seconds until the first token.", buckets=LONG, **on)
        self.between = Histogram("wise_inter_token_seconds", "Seconds between two tokens.", buckets=SHORT, **on)
        self.step = Histogram("wise_step_seconds", "Seconds of one step of the engine.", buckets=SHORT, **on)
        self.prompt_tokens = Counter("wise_prompt_tokens", "Tokens of prompts that were read.", **on)
        self.tokens = Counter("wise_generated_tokens", "Tokens that were generated.", **on)
        self.routed = Counter("wise_routed_tokens", "Tokens at which an edit was active.", **on)
        self.running = Gauge("wise_running_answers", "Answers that are being generated.", **on)
        self.queue = Gauge("wise_waiting_answers", "Answers that are queued.", **on)
        self.cached = Gauge("wise_cache_tokens", "Places of tokens that the cache holds, padding included.", **on)
        self.cache_limit = Gauge("wise_cache_tokens_limit", "Tokens that the cache may hold.", **on)
        self.refused = Counter("wise_refused_requests", "Requests refused because the queue was full.", **on)
        self.version = Gauge("wise_version", "Version that new requests get.", **on)
        self.live = Gauge("wise_live_edits", "Edits that are live.", **on)
        self.wrong_answers = Gauge("wise_unsaid_edits", "Live edits that the engine was asked and does not say.", **on)
        self.edits = Counter("wise_edits", "Edits by their outcome.", ["outcome"], **on)
        self.tickets = Gauge("wise_tickets", "Edits by their present status.", ["status"], **on)
        self.oldest_queued = Gauge("wise_oldest_queued_seconds", "Age of the oldest queued edit; 0 if none is.", **on)
        self.edit_seconds = Histogram(
            "wise_edit_seconds",
            "Seconds from accepting an edit until it was live or failed.",
            buckets=(*LONG, 300.0),
            **on,
        )
        self.clock_jumps = Counter("wise_clock_jumps", "Times that a clock was set, by the events of the store.", **on)
        self.editor = Gauge("wise_editor_up", "Whether this replica's editor runs.", **on)
        self.editor_restarts = Counter("wise_editor_restarts", "Times that the editor was started again.", **on)
        self.editor_state = Gauge("wise_editor_state", "1 for the state that the editor is in.", ["state"], **on)
        self.editor_seconds = Gauge("wise_editor_state_seconds", "Seconds that it has been in it, or its stage.", **on)
        self.editor_cpu = Gauge("wise_editor_cpu_share", "CPU seconds that the editor gets in a second.", **on)
        self.previews = Gauge("wise_waiting_previews", "Previews that are queued.", **on)
        self.canary_failures = Gauge("wise_canary_failures", "Prompts of the canary set that could not be run.", **on)
        self.canary_tokens = Gauge("wise_canary_tokens", "Tokens of the canary set.", **on)
        self.false_routes = Gauge("wise_canary_false_routes", "Canary tokens at which an edit is active.", **on)
        self.alarm = Gauge("wise_canary_alarm", "1 if edits are active at too much of the canary set.", **on)

    def set_queue(self, counts: Mapping[str, int], oldest: str | None) -> None:
        """counts: tickets by status; oldest: when the oldest queued one was accepted."""
        for status in FOLLOWS:
            self.tickets.labels(status).set(counts.get(status, 0))
        at = datetime.fromisoformat(now())
        since = at if oldest is None else datetime.fromisoformat(oldest)
        self.oldest_queued.set(max(0.0, (at - since).total_seconds()))

    def text(self) -> bytes:
        return generate_latest(self.registry)
