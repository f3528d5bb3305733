"""Numbers for dashboards: vLLM's names where the meaning is the same, kvern's own with their units.

The counts of the engine are read from its snapshot when somebody asks; the rest is counted here, one update a
delta at most.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvern.core.ports import EngineStats

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_LABELS = ("model_name", "engine")

# name, help, field of EngineStats
_GAUGES = (
    ("vllm:num_requests_running", "Sequences being computed", "running"),
    ("vllm:num_requests_waiting", "Sequences waiting to be computed", "waiting"),
    ("kvern:kv_pages_used", "KV pages held by live sequences", "pages_used"),
    ("kvern:kv_pages_cached", "KV pages held by the prefix cache alone", "pages_cached"),
    ("kvern:kv_pages_total", "KV pages of the engine", "pages_total"),
    ("kvern:engine_last_step_age_seconds", "Time since the engine loop last finished a step", "last_step_age_s"),
    ("kvern:engine_resident_bytes", "Resident memory of the engine process", "resident_bytes"),
)
_COUNTERS = (
    ("vllm:num_preemptions", "Sequences that lost their memory and were computed again", "preemptions"),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", "prefix_queries_tokens"),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", "prefix_hits_tokens"),
    ("vllm:prompt_tokens", "Prompt tokens processed", "prompt_tokens"),
    ("vllm:generation_tokens", "Tokens generated", "generation_tokens"),
    ("kvern:engine_steps", "Steps of the engine", "steps"),
)


class _EngineCollector(Collector):
    """The engine's snapshot as metric families."""

    def __init__(self, labels: tuple[str, str]) -> None:
        self._labels = labels
        self.stats: EngineStats | None = None

    def collect(self) -> Iterator[Metric]:
        stats = self.stats
        if stats is None:
            return
        for name, text, field in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            gauge.add_metric(self._labels, float(getattr(stats, field)))
            yield gauge
        usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of KV pages in use, 0 to 1", labels=_LABELS)
        usage.add_metric(self._labels, stats.pages_used / stats.pages_total if stats.pages_total else 0.0)
        yield usage
        for name, text, field in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            counter.add_metric(self._labels, float(getattr(stats, field)))
            yield counter


class ServerMetrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self, model_name: str) -> None:
        self._labels = (model_name, "0")
        self._registry = CollectorRegistry()
        self._engine = _EngineCollector(self._labels)
        self._registry.register(self._engine)
        self._first = self._histogram("vllm:time_to_first_token_seconds", "Arrival to first token", _SECONDS)
        self._between = self._histogram("vllm:inter_token_latency_seconds", "Time between tokens", _SECONDS)
        self._whole = self._histogram("vllm:e2e_request_latency_seconds", "Arrival to last token", _SECONDS)
        self._prompt = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self._generation = self._histogram("vllm:request_generation_tokens", "Tokens generated", _TOKENS)
        self._success = Counter(
            "vllm:request_success", "Answers that ended by themselves", (*_LABELS, "finished_reason"),
            registry=self._registry,
        )  # fmt: skip
        self._discarded = self._counter("kvern:discarded_tokens", "Tokens made past a stop string; not billed")
        self._left = self._counter("kvern:requests_left", "Answers whose client left before their end")
        self._http = Counter("kvern:http_responses", "HTTP answers", ("route", "status"), registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(name, text, _LABELS, buckets=buckets, registry=self._registry)
        return family.labels(*self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry).labels(*self._labels)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def later_tokens(self, seconds_each: float, count: int) -> None:
        for _ in range(count):
            self._between.observe(seconds_each)

    def finished(self, reason: str, seconds: float, prompt_tokens: int, generated_tokens: int) -> None:
        self._whole.observe(seconds)
        self._prompt.observe(prompt_tokens)
        self._generation.observe(generated_tokens)
        self._success.labels(*self._labels, reason).inc()

    def discarded(self, tokens: int) -> None:
        self._discarded.inc(tokens)

    def left(self) -> None:
        self._left.inc()

    def answered(self, route: str, status: int) -> None:
        self._http.labels(route, str(status)).inc()

    def text(self, stats: EngineStats | None) -> bytes:
        """The Prometheus text format; engine counts are left out when ``stats`` is None (the engine is away)."""
        self._engine.stats = stats
        return generate_latest(self._registry)
