"""Prometheus metrics of one worker, in a registry of its own (docs/metrics.md)."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from chatbot.engine.interface import EngineStats

log = structlog.get_logger()

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LIMITS = ("queue_seconds", "reply_seconds")  # settings, by their names
OUTCOMES = ("end", "length", "failed", "lost", "released")
COMPLETION_OUTCOMES = ("end", "length", "failed", "cancelled")


class WorkerMetrics(Collector):
    """What replies cost and how they ended. The engine's numbers are a snapshot that the worker's
    loop takes, because a scrape runs in another thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.engine: EngineStats | None = None
        self._replies = Counter(
            "frontdesk_replies", "Replies by how this worker left them.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        for outcome in OUTCOMES:
            self._replies.labels(outcome)
        self.first_text = Histogram(
            "frontdesk_first_text_seconds",
            "From the reply's place in the queue to its first text in the log.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.seconds = Histogram(
            "frontdesk_reply_seconds",
            "From taking a reply to its end, of completed replies.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge(
            "frontdesk_replies_running", "Replies being written now.", registry=registry
        )
        self._completions = Counter(
            "frontdesk_completions", "API requests by how they ended here.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        for outcome in COMPLETION_OUTCOMES:
            self._completions.labels(outcome)
        self.completions_running = Gauge(
            "frontdesk_completions_running",
            "API requests that this worker has taken.",
            registry=registry,
        )
        self._limited = Counter(
            "frontdesk_limited",
            "What was refused or ended because a limit was reached.",
            ["limit"],
            registry=registry,
        )
        for limit in LIMITS:
            self._limited.labels(limit)
        registry.register(self)

    def ended(self, outcome: str) -> None:
        """Count a reply; ``outcome`` is one of OUTCOMES."""
        self._replies.labels(outcome).inc()

    def completion_ended(self, outcome: str) -> None:
        """Count an API request; ``outcome`` is one of COMPLETION_OUTCOMES."""
        self._completions.labels(outcome).inc()

    def limited(self, limit: str) -> None:
        """``limit`` is one of LIMITS."""
        self._limited.labels(limit).inc()

    def collect(self) -> Iterator[Metric]:
        """The engine's numbers."""
        stats = self.engine
        if stats is None:
            return
        prefill = CounterMetricFamily(
            "frontdesk_prefill_tokens",
            "Prompt tokens by where their keys and values came from.",
            labels=["source"],
        )
        prefill.add_metric(["cached"], stats.prefill_tokens_cached)
        prefill.add_metric(["computed"], stats.prefill_tokens_computed)
        yield prefill
        counters = {
            "frontdesk_generated_tokens": ("Tokens of replies.", stats.generated_tokens),
            "frontdesk_preemptions": ("Replies that gave up their cache.", stats.preemptions),
            "frontdesk_cache_evictions": ("Cached blocks that were reused.", stats.evictions),
        }
        for name, (text, count) in counters.items():
            yield CounterMetricFamily(name, text, value=count)
        gauges = {
            "frontdesk_engine_running": ("Requests in the batch.", stats.running),
            "frontdesk_engine_waiting": ("Requests before the batch.", stats.waiting),
            "frontdesk_engine_adapters": ("Adapters loaded.", len(stats.adapters)),
            "frontdesk_engine_step_seconds": ("The last step.", stats.last_step_seconds),
            "frontdesk_engine_healthy": ("0: what it needs is away.", int(stats.healthy)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        drafts = CounterMetricFamily(
            "frontdesk_draft_tokens",
            "Tokens guessed ahead, by source and whether the model chose the same.",
            labels=["source", "outcome"],
        )
        for item in stats.drafts:
            drafts.add_metric([item.source, "accepted"], item.accepted)
            drafts.add_metric([item.source, "rejected"], item.drafted - item.accepted)
        yield drafts
        blocks = GaugeMetricFamily(
            "frontdesk_kv_blocks", "Blocks of the KV cache by state.", labels=["state"]
        )
        blocks.add_metric(["used"], stats.blocks_used)
        blocks.add_metric(["cached"], stats.blocks_cached)
        blocks.add_metric(["free"], stats.blocks_total - stats.blocks_used - stats.blocks_cached)
        yield blocks


@contextmanager
def serve_metrics(registry: CollectorRegistry, port: int) -> Iterator[None]:
    """Answer ``/metrics`` on ``port`` while inside; nothing when it is 0."""
    if not port:
        yield
        return
    server, thread = start_http_server(port, registry=registry)
    log.info("worker.metrics", port=port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
