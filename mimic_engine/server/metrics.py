"""Prometheus metrics of one service, ``mimic_*``; histograms begin at 50 microseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from mimic_engine.batching.in_flight import BatchReport

SECONDS = (
    *(50e-6, 100e-6, 200e-6, 500e-6),
    *(1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Own registry, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mimic_requests", "Answered requests", ["route", "status"], registry=self.registry
        )
        self.request_s = self._histogram("mimic_request_seconds", "From first byte to answer", ["route"])
        self.prepare_s = self._histogram(
            "mimic_prepare_seconds", "Image decoding and tokenisation, a request"
        )
        self.queue_s = self._histogram("mimic_queue_seconds", "Wait of a mention for the device")
        self.batch_s = self._histogram("mimic_batch_seconds", "Device time of a batch")
        self.batch_size = Histogram(
            "mimic_batch_size", "Mentions in a batch", registry=self.registry, buckets=SIZES
        )
        self.batch_failures = Counter(
            "mimic_batch_failures", "Batches in which the engine failed", registry=self.registry
        )
        self.mentions = Counter(
            "mimic_mentions", "Mentions by outcome (ok or an error code)", ["outcome"], registry=self.registry
        )

    def _histogram(self, name: str, text: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(name, text, labels or [], registry=self.registry, buckets=SECONDS)

    def count_outcome(self, outcome: str) -> None:
        """Count a mention that was answered: "ok", or the code of its error."""
        self.mentions.labels(outcome).inc()

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when the metrics are."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def watch_counts(
        self, name: str, text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], int]]
    ) -> None:
        """Add a counter that is read when the metrics are: label values to counts."""
        self.registry.register(_Counts(name, text, labels, read))

    def on_batch(self, report: BatchReport) -> None:
        """Record a batch (called on the device thread)."""
        self.batch_s.observe(report.service_s)
        self.batch_size.observe(report.size)
        for seconds in report.queue_s:
            self.queue_s.observe(seconds)
        if report.failed:
            self.batch_failures.inc()

    def render(self) -> bytes:
        """Give the text exposition format."""
        return generate_latest(self.registry)


class _Counts(Collector):
    """Counts that somebody else keeps."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], int]]
    ) -> None:
        self._name, self._text, self._labels, self._read = name, text, labels, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Give the present counts."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self._read().items():
            family.add_metric(values, count)
        yield family
