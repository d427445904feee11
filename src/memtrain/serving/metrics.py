"""What Prometheus may ask: a registry of its own for every application, so that two in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from memtrain.memory.chat import Call

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800)
TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """Counters of one application; names begin with ``memtrain_``."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # process_resident_memory_bytes and the like, where the system tells
        self.requests = Counter(
            "memtrain_requests", "Requests answered.", ("route", "method", "status"), registry=registry
        )
        self.seconds = Histogram(
            "memtrain_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.first_text = Histogram(
            "memtrain_first_text_seconds",
            "From the start of a chat turn to its first text.",
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("memtrain_requests_in_flight", "Requests under way.", registry=registry)
        self.turns = Counter("memtrain_turns", "Turns committed.", ("kind",), registry=registry)
        self.stopped = Counter(
            "memtrain_turns_stopped", "Turns that ended without a commit.", ("reason",), registry=registry
        )
        self.tokens = Counter(
            "memtrain_tokens", "Tokens of the model's calls.", ("call", "direction"), registry=registry
        )
        self.chunks = Counter("memtrain_chunks_read", "Chunks of long inputs read.", registry=registry)
        self.sessions = Gauge("memtrain_sessions", "Sessions kept, of all owners.", registry=registry)

    def count_turn(self, kind: str, calls: Sequence[Call]) -> None:
        """A finished turn (``chat``, ``read``, ``ask``) and what it took."""
        self.turns.labels(kind).inc()
        for call in calls:
            self.tokens.labels(call.kind, "prompt").inc(call.prompt_tokens)
            self.tokens.labels(call.kind, "completion").inc(call.completion_tokens)

    def text(self, sessions: Callable[[], int]) -> bytes:
        """The whole in Prometheus' text format; ``sessions`` counts those kept. Blocks as long as it does."""
        self.sessions.set(sessions())
        return generate_latest(self.registry)
