"""Numbers for Prometheus. Labels are routes, statuses and reasons: nothing that a caller writes."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """All figures of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "sidrec_requests", "Answered requests.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "sidrec_request_seconds", "Time to the answer.", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.degraded = Counter(
            "sidrec_degraded_answers", "Answers with popular items instead.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.batch = Histogram(
            "sidrec_batch_requests", "Requests answered together.",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "sidrec_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=registry
        )
        self.events = Counter("sidrec_events", "Events.", ["state"], registry=registry)
        self.commit = Histogram(
            "sidrec_commit_seconds", "Time of a commit.", buckets=SECONDS, registry=registry
        )
        self.queue = Gauge("sidrec_queue", "Requests that wait.", registry=registry)
        self.items = Gauge("sidrec_items", "Available items.", registry=registry)
        self.catalogue = Gauge(
            "sidrec_catalogue_version", "Changes of the catalogue.", registry=registry
        )
        self.compiled = Gauge(
            "sidrec_compiled", "1 where the generator is searched by a compiled call.",
            registry=registry,
        )  # fmt: skip

    def watch(self, queue: Callable[[], float], items: Callable[[], float],
              catalogue: Callable[[], float], compiled: Callable[[], float]) -> None:  # fmt: skip
        """Read these where they are when they are asked for."""
        self.queue.set_function(queue)
        self.items.set_function(items)
        self.catalogue.set_function(catalogue)
        self.compiled.set_function(compiled)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
