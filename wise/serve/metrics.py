"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """A registry of its own for each service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "wise_requests", "Requests by route, method and status.", ["route", "method", "status"], registry=registry
        )
        self.latency = Histogram(
            "wise_request_seconds", "Seconds until a request was answered in full.", ["route"], buckets=LONG,
            registry=registry,
        )
        self.first = Histogram(
            "wise_first_token_seconds", "Seconds until the first token of an answer.", buckets=LONG, registry=registry
        )
        self.step = Histogram(
            "wise_step_seconds", "Seconds that a step of the engine took.", buckets=SHORT, registry=registry
        )
        self.prompt_tokens = Counter("wise_prompt_tokens", "Tokens of prompts that were read.", registry=registry)
        self.tokens = Counter("wise_generated_tokens", "Tokens that were generated.", registry=registry)
        self.routed = Counter("wise_routed_tokens", "Tokens at which an edit spoke.", registry=registry)
        self.rows = Gauge("wise_running_answers", "Answers that share a step.", registry=registry)
        self.queue = Gauge("wise_waiting_answers", "Answers that wait for room.", registry=registry)
        self.refused = Counter("wise_refused_requests", "Requests refused since too many wait.", registry=registry)
        self.version = Gauge("wise_version", "Version that new requests get.", registry=registry)
        self.live = Gauge("wise_live_edits", "Edits that are live.", registry=registry)
        self.edits = Counter("wise_edits", "Edits by what became of them.", ["outcome"], registry=registry)
        self.edit_seconds = Histogram(
            "wise_edit_seconds", "Seconds from an edit's acknowledgement until it was live or had failed.",
            buckets=(*LONG, 300.0), registry=registry,
        )
        self.editor = Gauge("wise_editor_up", "Whether this replica's editor runs.", registry=registry)
        self.canary_tokens = Gauge("wise_canary_tokens", "Tokens of the canary set.", registry=registry)
        self.false_routes = Gauge(
            "wise_canary_false_routes", "Tokens of the canary set at which an edit speaks.", registry=registry
        )
        self.alarm = Gauge(
            "wise_canary_alarm", "1 where more of the canary set is routed than may be.", registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
